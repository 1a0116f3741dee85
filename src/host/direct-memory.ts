import { isAligned } from '../base/align.js';
import { assert } from '../base/assert.js';
import { IoVector } from '../base/io-vector.js';
import type { Syscalls } from './syscalls.js';

/** O_DIRECT wants memory aligned as well as offsets and lengths, which only we can see to. */
export class DirectMemory {
  readonly #system: Syscalls;
  readonly #unitBytes: number;

  constructor(system: Syscalls, unitBytes: number) {
    this.#system = system;
    this.#unitBytes = unitBytes;
  }

  /** Asserts that a request is whole units; those who ask know them. */
  check(position: number, lengthBytes: number): void {
    const unit = this.#unitBytes;
    assert(isAligned(position, unit) && isAligned(lengthBytes, unit), 'O_DIRECT request is not aligned');
  }

  /** Each piece begins and ends where O_DIRECT wants it. */
  isAligned(memory: IoVector, from: number, lengthBytes: number): boolean {
    const unit = this.#unitBytes;
    return memory
      .pieces(from, lengthBytes)
      .every((piece) => isAligned(piece.length, unit) && this.#system.addressModulo(piece, unit) === 0);
  }

  buffer(lengthBytes: number): Buffer {
    return this.#system.alignedBuffer(lengthBytes, this.#unitBytes);
  }

  copyOf(memory: IoVector, from: number, lengthBytes: number): Buffer {
    const copy = this.buffer(lengthBytes);
    memory.copyTo(copy, from, lengthBytes);
    return copy;
  }
}
