import type { HostSharing, SharedMemory } from '../../host/sharing.js';

/** A peer's memory with the descriptor that it was mapped by, for another process. */
export interface PeerMemory extends SharedMemory {
  readonly fd: number;
}

export class KeptMemory implements PeerMemory {
  readonly fd: number;
  readonly #sharing: HostSharing;
  readonly #memory: SharedMemory;

  /** Takes the descriptor over once it is mapped. Errors: those of mapping. */
  constructor(sharing: HostSharing, fd: number, fileOffset: number, lengthBytes: number) {
    this.#memory = sharing.map(fd, fileOffset, lengthBytes);
    this.#sharing = sharing;
    this.fd = fd;
  }

  get lengthBytes(): number {
    return this.#memory.lengthBytes;
  }

  view(offset: number, lengthBytes: number): Uint8Array {
    return this.#memory.view(offset, lengthBytes);
  }

  unmap(): void {
    this.#memory.unmap();
    this.#sharing.close(this.fd);
  }
}
