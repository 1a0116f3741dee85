import { ByteRanges } from '../base/byte-ranges.js';

/**
 * Of a peer's disk: a stretch that it said reads as zeroes, without what was changed since. It begins behind all changes
 * that had begun by the answer: no answer tells of what is on its way. A peer that was lost may be another afterwards.
 */
export class KnownZeroes {
  #changedEnd = 0;
  #offset = 0;
  #end = 0;
  #connection = 0;
  /** From #offset on. */
  #changed = new ByteRanges();

  /** A change of those bytes begins. */
  changes(offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    this.#changedEnd = Math.max(this.#changedEnd, end);
    if (end > this.#offset && offset < this.#end) this.#changed.add(offset, lengthBytes);
  }

  /** Over that connection it was asked, and answered that a stretch reads as zeroes. */
  learn(offset: number, lengthBytes: number, connection: number): void {
    const end = offset + lengthBytes;
    const from = Math.max(offset, this.#changedEnd);
    if (from >= end) return;
    this.#offset = from;
    this.#end = end;
    this.#connection = connection;
    this.#changed = new ByteRanges();
  }

  /** All of a stretch is zeroes, if the connection is still that one. */
  covers(offset: number, lengthBytes: number, connection: number): boolean {
    const isInside = offset >= this.#offset && offset + lengthBytes <= this.#end;
    return connection === this.#connection && isInside && !this.#changed.overlaps(offset, lengthBytes);
  }
}
