import { FreeExtents } from '../../tables/free-extents.js';
import type { Refcounts } from './refcounts.js';
import type { Need } from './space.js';

/** Free clusters inside the file, as far as refcount blocks were searched for them: a hint, refcounts decide. */
export class FreeClusters {
  readonly #refcounts: Refcounts;
  readonly #extents: FreeExtents;
  /** Where the search ends. */
  #scanEnd: number;
  /** Refcount blocks below this were searched. */
  #scannedBlocks = 0;

  /** `end`: first cluster behind the file. */
  constructor(refcounts: Refcounts, end: number) {
    this.#refcounts = refcounts;
    this.#extents = new FreeExtents(refcounts.blockEntries);
    this.#scanEnd = end;
  }

  add(start: number, count: number): void {
    this.#extents.add(start, count);
  }

  /** See FreeExtents. */
  find(count: number, suits?: (start: number) => boolean): { start: number; count: number } | undefined {
    return this.#extents.find(count, suits);
  }

  take(start: number, count: number): void {
    this.#extents.take(start, count);
  }

  get isScanned(): boolean {
    return this.#scannedBlocks * this.#refcounts.blockEntries >= this.#scanEnd;
  }

  /** What to await before a first attempt: one more refcount block searched for free clusters; `end`: of all that there are. */
  needsScan(end: number): Need | undefined {
    if (!this.#extents.isEmpty) return undefined;
    if (this.isScanned) {
      if (!this.#extents.overflowed) return undefined;
      this.#extents.overflowed = false;
      this.#scannedBlocks = 0;
      this.#scanEnd = end;
    }
    return () => this.scanBlock();
  }

  /** Searches one more refcount block. */
  async scanBlock(): Promise<void> {
    const index = this.#scannedBlocks;
    const entries = this.#refcounts.blockEntries;
    const first = index * entries;
    const end = Math.min(first + entries, this.#scanEnd);
    if (first >= end) return;
    if (this.#refcounts.isAbsent(index)) {
      this.#scannedBlocks = index + 1;
      this.#extents.add(first, end - first);
      return;
    }
    await this.#refcounts.load(index);
    const block = this.#refcounts.peek(index);
    if (!block || this.#scannedBlocks !== index) return;
    this.#scannedBlocks = index + 1;
    for (let at = first; at < end;) {
      if (this.#refcounts.count(block, at) !== 0) {
        at++;
        continue;
      }
      const start = at;
      while (at < end && this.#refcounts.count(block, at) === 0) at++;
      this.#extents.add(start, at - start);
    }
  }
}
