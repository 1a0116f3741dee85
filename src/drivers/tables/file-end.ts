import { AsyncMutex } from '../../base/async.js';
import type { ChildIo } from '../../block/driver.js';
import { outsideFile } from './entry-cache.js';

/** Space for new blocks at the end of a file. What it gives out is in the file, and reads as zeroes. */
export class FileEnd {
  readonly #file: ChildIo;
  readonly #growing = new AsyncMutex();
  #end: number;
  /** From the end up to here the file has zeroes. */
  #zeroUntil: number;
  /** From there up to here it may hold anything. */
  #usedUntil: number;
  #returns = 0;

  readonly #isOutside: boolean;

  /** `end`: behind all that is in use. `gapBytes`: so much of it the file may lack. */
  constructor(file: ChildIo, end: number, gapBytes: number) {
    this.#isOutside = end > file.lengthBytes + gapBytes;
    this.#file = file;
    this.#end = end;
    this.#zeroUntil = end;
    this.#usedUntil = file.lengthBytes;
  }

  /** The next block's place. */
  get end(): number {
    return this.#end;
  }

  /** Undefined: grow() has to make room first. Errors: corrupt where what is in use lies far outside the file. */
  tryTake(lengthBytes: number): number | undefined {
    if (this.#isOutside) throw outsideFile('A block', this.#end);
    const start = this.#end;
    const target = start + lengthBytes;
    if (target > this.#zeroUntil) {
      if (this.#usedUntil > this.#zeroUntil || !this.#file.tryExtend(target)) return undefined;
      this.#zeroUntil = target;
    }
    this.#end = target;
    return start;
  }

  /** Makes room for so many bytes, for whoever takes them first. Errors: no-space. */
  grow(lengthBytes: number): Promise<void> {
    return this.#growing.run(async () => {
      const returns = this.#returns;
      const target = this.#end + lengthBytes;
      if (target <= this.#zeroUntil) return;
      if (target > this.#file.lengthBytes) await this.#file.extend(target);
      const from = Math.max(this.#end, this.#zeroUntil);
      const until = Math.min(target, this.#usedUntil);
      if (until > from) await this.#file.writeZeroes(from, until - from, 0);
      if (this.#returns === returns) this.#zeroUntil = target;
    });
  }

  /** What was taken last comes back; anything else stays unused until the image is opened again. */
  giveBack(start: number, lengthBytes: number): void {
    if (start + lengthBytes !== this.#end) return;
    this.#end = start;
    this.hasWritten(this.#file.lengthBytes);
  }

  /** Behind the end something else may be. */
  hasWritten(until: number): void {
    this.#returns++;
    this.#zeroUntil = this.#end;
    this.#usedUntil = Math.max(this.#usedUntil, until);
  }
}
