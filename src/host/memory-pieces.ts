import { assert } from '../base/assert.js';
import type { IoVector } from '../base/io-vector.js';
import { MiB } from '../base/limits.js';
import type { Koffi } from './koffi.js';

/** UIO_MAXIOV: most pieces of memory of one call. */
export const MOST_PIECES = 1024;
/** struct iovec. */
const IOVEC_BYTES = 16;
/** The address of memory up to this size is kept, and with it the memory. */
const MOST_KEPT_BYTES = MiB;

/** Where the memory of one call at a time is: what is made at once. */
export class MemoryPieces {
  readonly #koffi: () => Koffi;
  readonly #pieces = new Uint32Array((MOST_PIECES * IOVEC_BYTES) / 4);
  #address = 0;
  readonly #addresses = [new KnownAddress(), new KnownAddress()] as const;

  constructor(koffi: () => Koffi) {
    this.#koffi = koffi;
  }

  /** Of the struct iovecs that were set. */
  get address(): number {
    return this.#address;
  }

  /**
   * The address of a stretch in one piece, else 0. Numbers are exact: user addresses are below 2^47. `side`: reads and
   * writes each have a buffer of theirs again and again.
   */
  addressOf(memory: IoVector, from: number, lengthBytes: number, side: 0 | 1): number {
    const { buffers, start } = memory;
    const buffer = buffers[0];
    if (!buffer || start + from + lengthBytes > buffer.length) return 0;
    return this.#addresses[side].of(buffer, this.#koffi()) + start + from;
  }

  /** Answers how many pieces there are; what is beyond MOST_PIECES is left out, so the call does less than asked. */
  fill(memory: IoVector, from: number, lengthBytes: number): number {
    let at = memory.start + from;
    let left = lengthBytes;
    let count = 0;
    for (const buffer of memory.buffers) {
      if (left === 0 || count === MOST_PIECES) return count;
      const length = Math.min(left, buffer.length - at);
      if (length > 0) {
        this.set(count++, this.#addresses[0].of(buffer, this.#koffi()) + at, length);
        left -= length;
      }
      at = Math.max(0, at - buffer.length);
    }
    assert(left === 0, 'a request uses memory that it has');
    return count;
  }

  /** struct iovec of a little-endian machine: address, length. */
  set(index: number, address: number, lengthBytes: number): void {
    const pieces = this.#pieces;
    if (this.#address === 0) this.#address = Number(this.#koffi().address(pieces));
    const at = index * 4;
    const high = Math.floor(address / 2 ** 32);
    pieces[at] = address - high * 2 ** 32;
    pieces[at + 1] = high;
    pieces[at + 2] = lengthBytes;
    pieces[at + 3] = 0;
  }
}

/** Of memory that is mapped for as long as its buffers are used: nothing moves it. */
export const MAPPED_ADDRESSES = new WeakMap<Uint8Array, number>();

/** Where a buffer's memory is, kept for the next call with the same one. */
class KnownAddress {
  #buffer: Uint8Array | undefined;
  #address = 0;

  of(buffer: Uint8Array, koffi: Koffi): number {
    if (buffer === this.#buffer) return this.#address;
    const address = MAPPED_ADDRESSES.get(buffer) ?? Number(koffi.address(buffer));
    if (buffer.length > MOST_KEPT_BYTES) return address;
    this.#buffer = buffer;
    return (this.#address = address);
  }
}
