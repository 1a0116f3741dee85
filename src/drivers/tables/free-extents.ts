/** Most stretches remembered; what does not fit is found again by a later scan. */
const MAX_EXTENTS = 8192;

/** Free host clusters inside the file that are known: a hint, refcounts decide. Sorted, never overlapping. */
export class FreeExtents {
  readonly #starts: number[] = [];
  readonly #counts: number[] = [];
  /** Stretches never cross a multiple of this, so that one refcount block describes each. */
  readonly #unit: number;
  #cursor = 0;
  /** Something was left out. */
  overflowed = false;

  constructor(unit: number) {
    this.#unit = unit;
  }

  get isEmpty(): boolean {
    return this.#starts.length === 0;
  }

  add(start: number, count: number): void {
    for (let at = start; at < start + count;) {
      const end = Math.min(start + count, at - (at % this.#unit) + this.#unit);
      this.#addWithin(at, end - at);
      at = end;
    }
  }

  /** What is known already (a scan and a release may find the same) stays once. */
  #addWithin(start: number, count: number): void {
    const end = start + count;
    for (let at = start; at < end;) {
      const index = this.#firstAtOrAfter(at + 1);
      const known = index > 0 ? (this.#starts[index - 1] ?? 0) + (this.#counts[index - 1] ?? 0) : 0;
      if (known > at) {
        at = known;
        continue;
      }
      const until = Math.min(end, this.#starts[index] ?? Infinity);
      this.#insert(at, until - at);
      at = until;
    }
  }

  #insert(start: number, count: number): void {
    const index = this.#firstAtOrAfter(start);
    const before = index - 1;
    const touchesBefore =
      before >= 0 &&
      (this.#starts[before] ?? 0) + (this.#counts[before] ?? 0) === start &&
      start % this.#unit !== 0;
    const end = start + count;
    const touchesAfter = this.#starts[index] === end && end % this.#unit !== 0;
    if (touchesBefore) {
      this.#counts[before] =
        (this.#counts[before] ?? 0) + count + (touchesAfter ? (this.#counts[index] ?? 0) : 0);
      if (touchesAfter) this.#remove(index);
    } else if (touchesAfter) {
      this.#starts[index] = start;
      this.#counts[index] = (this.#counts[index] ?? 0) + count;
    } else if (this.#starts.length >= MAX_EXTENTS) {
      this.overflowed = true;
    } else {
      this.#starts.splice(index, 0, start);
      this.#counts.splice(index, 0, count);
    }
  }

  /**
   * The next stretch of at least `count` clusters after the one found last, wrapping around, of those that `suits` the
   * caller by their first cluster; undefined: none.
   */
  find(
    count: number,
    suits: (start: number) => boolean = () => true,
  ): { start: number; count: number } | undefined {
    const length = this.#starts.length;
    const from = this.#firstAtOrAfter(this.#cursor);
    for (let i = 0; i < length; i++) {
      const index = (from + i) % length;
      const [start = 0, found = 0] = [this.#starts[index], this.#counts[index]];
      if (found >= count && suits(start)) return { start, count: found };
    }
    return undefined;
  }

  /** Takes `count` clusters from the front of the stretch that begins at `start`. */
  take(start: number, count: number): void {
    const index = this.#firstAtOrAfter(start);
    const left = (this.#counts[index] ?? 0) - count;
    this.#cursor = start + count;
    if (left <= 0) {
      this.#remove(index);
    } else {
      this.#starts[index] = start + count;
      this.#counts[index] = left;
    }
  }

  #remove(index: number): void {
    this.#starts.splice(index, 1);
    this.#counts.splice(index, 1);
  }

  #firstAtOrAfter(start: number): number {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#starts[middle] ?? 0) < start) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
