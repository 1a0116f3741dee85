import { IoVector } from '../base/io-vector.js';
import type { FileTraits } from './host.js';
import type { CallResult } from './native-calls.js';
import type { OpenDescriptor } from './open-descriptor.js';
import type { Syscalls } from './syscalls.js';

/** What of a file is sent from the page cache to a socket, without a copy in our memory. */
export class FileSending {
  readonly #descriptor: OpenDescriptor;
  readonly #system: Syscalls;
  readonly #traits: FileTraits;
  readonly #isDirect: boolean;
  readonly #probe = IoVector.of(Buffer.alloc(1));
  readonly #recalls = new Set<() => void>();

  constructor(descriptor: OpenDescriptor, system: Syscalls, traits: FileTraits, isDirect: boolean) {
    this.#descriptor = descriptor;
    this.#system = system;
    this.#traits = traits;
    this.#isDirect = isDirect;
  }

  /**
   * All of a stretch can be sent now without a wait for a device. A page in the page cache may still be on its way there;
   * as they arrive in order, the first and the last are looked at.
   */
  isAtHand(position: number, lengthBytes: number): boolean {
    if (this.#isDirect || this.#traits.isRemote || this.#descriptor.isClosed) return false;
    if (this.#traits.inMemory) return true;
    const { fd } = this.#descriptor;
    if (!this.#system.isCached(fd, position, lengthBytes)) return false;
    return this.#isReadable(position) && this.#isReadable(position + lengthBytes - 1);
  }

  #isReadable(position: number): boolean {
    return this.#system.readNoWait(this.#descriptor.fd, this.#probe, 0, 1, position) === 1;
  }

  /** Sends what the socket takes now; 0 at the end of the file. */
  send(socketFd: number, position: number, lengthBytes: number): CallResult {
    return this.#system.sendFile(socketFd, this.#descriptor.fd, position, lengthBytes);
  }

  /** A copy, made at once, with zeroes where the file has ended; undefined when it cannot be read any more. */
  copyNow(position: number, lengthBytes: number): Buffer | undefined {
    const copy = Buffer.alloc(lengthBytes);
    const memory = IoVector.of(copy);
    const { fd } = this.#descriptor;
    for (let done = 0; done < lengthBytes;) {
      const got = this.#system.read(fd, memory, done, lengthBytes - done, position + done);
      if (got < 0) return undefined;
      if (got === 0) break;
      done += got;
    }
    return copy;
  }

  /** Until the answer is called, `recall` is told before the file closes. */
  lend(recall: () => void): () => void {
    this.#recalls.add(recall);
    return () => this.#recalls.delete(recall);
  }

  /** The file closes. */
  recall(): void {
    for (const recall of this.#recalls) recall();
    this.#recalls.clear();
  }
}
