import { broken } from './codec.js';
import { asBuffer } from './guest-memory.js';
import type { PeerMemory } from './kept-memory.js';

/** What a bit stands for (VHOST_LOG_PAGE). */
const PAGE_BYTES = 4096;

/**
 * Which pages of a guest's memory we have written: a bitmap that the peer reads and clears while we set bits in it.
 */
export class DirtyLog {
  readonly memory: PeerMemory;
  /** Where in its file it begins. */
  readonly fileOffset: number;
  readonly #bits: Buffer;

  constructor(memory: PeerMemory, fileOffset: number) {
    this.memory = memory;
    this.fileOffset = fileOffset;
    this.#bits = asBuffer(memory.view(0, memory.lengthBytes));
  }

  /** Errors: those of broken(), for what is beyond the log. */
  mark(address: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    const first = Math.floor(address / PAGE_BYTES);
    const last = Math.floor((address + lengthBytes - 1) / PAGE_BYTES);
    if (last >= this.#bits.length * 8) throw broken(`the log has no bit for address ${address}`);
    for (let page = first; page <= last; page++) {
      const bit = page % 8;
      Atomics.or(this.#bits, (page - bit) / 8, 2 ** bit);
    }
  }

  close(): void {
    this.memory.unmap();
  }
}
