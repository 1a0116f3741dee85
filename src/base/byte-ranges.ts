import { assert } from './assert.js';

/** Beyond that many they become one, with the gaps between them. */
const MOST_RANGES = 4096;

/** A set of bytes, as ranges in order that do not touch. It may come to hold more than was added, never less. */
export class ByteRanges {
  #starts: number[] = [];
  #ends: number[] = [];

  get isEmpty(): boolean {
    return this.#starts.length === 0;
  }

  /** How many bytes it holds. */
  get lengthBytes(): number {
    return this.#starts.reduce((sum, start, i) => sum + (this.#ends[i] ?? start) - start, 0);
  }

  *[Symbol.iterator](): Generator<{ offset: number; lengthBytes: number }> {
    for (const [i, offset] of this.#starts.entries())
      yield { offset, lengthBytes: (this.#ends[i] ?? offset) - offset };
  }

  add(offset: number, lengthBytes: number): void {
    if (lengthBytes === 0) return;
    const first = this.#firstEndingAt(offset);
    let [start, end, behind] = [offset, offset + lengthBytes, first];
    while (behind < this.#starts.length && (this.#starts[behind] ?? 0) <= end) {
      start = Math.min(start, this.#starts[behind] ?? start);
      end = Math.max(end, this.#ends[behind] ?? end);
      behind++;
    }
    this.#replace(first, behind, [start], [end]);
    if (this.#starts.length > MOST_RANGES)
      this.#replace(0, this.#starts.length, [this.#starts[0] ?? 0], [this.#ends.at(-1) ?? 0]);
  }

  addAll(other: ByteRanges): void {
    for (const { offset, lengthBytes } of other) this.add(offset, lengthBytes);
  }

  remove(offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    const first = this.#firstEndingAt(offset + 1);
    let behind = first;
    const [starts, ends]: [number[], number[]] = [[], []];
    for (; behind < this.#starts.length && (this.#starts[behind] ?? 0) < end; behind++) {
      const [from, to] = [this.#starts[behind] ?? 0, this.#ends[behind] ?? 0];
      if (from < offset) this.#push(starts, ends, from, offset);
      if (to > end) this.#push(starts, ends, end, to);
    }
    if (behind > first) this.#replace(first, behind, starts, ends);
  }

  overlaps(offset: number, lengthBytes: number): boolean {
    const start = this.#starts[this.#firstEndingAt(offset + 1)];
    return start !== undefined && start < offset + lengthBytes;
  }

  #push(starts: number[], ends: number[], start: number, end: number): void {
    starts.push(start);
    ends.push(end);
  }

  #replace(first: number, behind: number, starts: number[], ends: number[]): void {
    assert(starts.length === ends.length, 'each range has an end');
    this.#starts.splice(first, behind - first, ...starts);
    this.#ends.splice(first, behind - first, ...ends);
  }

  /** The first range that ends at `offset` or behind it. */
  #firstEndingAt(offset: number): number {
    let [low, high] = [0, this.#ends.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ends[middle] ?? 0) < offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
