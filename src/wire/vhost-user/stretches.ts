import { assert, defined } from '../../base/assert.js';
import type { IoVector } from '../../base/io-vector.js';

/** Memory of a guest in pieces, as a chain of descriptors names it. Used anew for each chain, without allocating. */
export class Stretches {
  readonly buffers: Buffer[] = [];
  readonly starts: number[] = [];
  readonly lengths: number[] = [];
  /** Where the guest has them. */
  readonly addresses: number[] = [];
  count = 0;
  totalBytes = 0;

  clear(): void {
    this.count = 0;
    this.totalBytes = 0;
  }

  /** Keeps no memory alive. */
  forget(): void {
    this.clear();
    this.buffers.length = 0;
  }

  add(buffer: Buffer, start: number, lengthBytes: number, address: number): void {
    const i = this.count++;
    this.buffers[i] = buffer;
    this.starts[i] = start;
    this.lengths[i] = lengthBytes;
    this.addresses[i] = address;
    this.totalBytes += lengthBytes;
  }

  #length(i: number): number {
    return defined(this.lengths[i], 'a stretch');
  }

  #start(i: number): number {
    return defined(this.starts[i], 'a stretch');
  }

  buffer(i: number): Buffer {
    return defined(this.buffers[i], 'a stretch');
  }

  /** Which stretch a position is in, and where in its buffer. */
  #locate(position: number): number {
    assert(position >= 0 && position < this.totalBytes, 'a position in the stretches');
    let i = 0;
    let before = 0;
    while (position >= before + this.#length(i)) before += this.#length(i++);
    this.#at = this.#start(i) + position - before;
    return i;
  }

  #at = 0;

  readByte(position: number): number {
    const i = this.#locate(position);
    return defined(this.buffer(i)[this.#at], 'a byte of a stretch');
  }

  /** Little-endian. */
  readUint32(position: number): number {
    const i = this.#locate(position);
    const at = this.#at;
    if (at + 4 <= this.#start(i) + this.#length(i)) return this.buffer(i).readUInt32LE(at);
    let value = 0;
    for (let byte = 3; byte >= 0; byte--) value = value * 256 + this.readByte(position + byte);
    return value;
  }

  /** Little-endian; what is 2^53 or more is not exact, and stays so. */
  readUint64(position: number): number {
    return this.readUint32(position) + this.readUint32(position + 4) * 2 ** 32;
  }

  write(position: number, bytes: Uint8Array): void {
    bytes.forEach((byte, k) => {
      const i = this.#locate(position + k);
      this.buffer(i)[this.#at] = byte;
    });
  }

  /** The last byte, cut off: its buffer is that of the last stretch, which may be empty now. Answers where it is there. */
  cutLastByte(): number {
    const last = this.count - 1;
    const length = this.#length(last) - 1;
    this.lengths[last] = length;
    this.totalBytes--;
    return this.#start(last) + length;
  }

  /** Lends [from, totalBytes) to a request. */
  lendTo(vector: IoVector, from: number): void {
    if (from === this.totalBytes) return vector.setBuffer(EMPTY);
    const first = this.#locate(from);
    const at = this.#at;
    if (from + this.#start(first) + this.#length(first) - at === this.totalBytes)
      return vector.setBuffer(this.buffer(first), at);
    const pieces: Buffer[] = [];
    for (let i = first; i < this.count; i++) {
      const start = i === first ? at : this.#start(i);
      const end = this.#start(i) + this.#length(i);
      if (end > start) pieces.push(this.buffer(i).subarray(start, end));
    }
    vector.setBuffers(pieces);
  }
}

const EMPTY = Buffer.alloc(0);
