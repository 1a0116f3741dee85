import { alignDown } from '../base/align.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import { roundOut } from '../block/dirty-bitmap.js';
import { RangeLock } from '../block/range-lock.js';
import type { Change, ChangeGate } from '../block/change-gate.js';

export interface CopyBeforeWriteOptions {
  /** What is still to be copied; granules are cleared once they are in the target. */
  due: DirtyBitmap;
  readonly copy: (offset: number, lengthBytes: number) => Promise<void>;
  /** A copy that a guest's write waited for failed: the write goes on, the copy is lost. */
  readonly failed: (error: unknown) => void;
  readonly copied?: (bytes: number) => void;
}

/**
 * Holds a point in time: whatever is due goes to the target before the guest changes it. A guest's change waits for
 * the copy of its own granules only.
 */
export class CopyBeforeWrite implements ChangeGate {
  readonly #options: CopyBeforeWriteOptions;
  readonly #locks = new RangeLock();
  #given = false;

  constructor(options: CopyBeforeWriteOptions) {
    this.#options = options;
  }

  isOpen(offset: number, lengthBytes: number): boolean {
    if (this.#given) return true;
    const { due } = this.#options;
    return due.nextDirty(offset, Math.min(offset + lengthBytes, due.sizeBytes)) === undefined;
  }

  async run(change: Change, forward: () => Promise<void>): Promise<void> {
    while (!this.isOpen(change.offset, change.lengthBytes)) {
      try {
        await this.copy(change.offset, change.lengthBytes);
      } catch (error) {
        this.giveUp();
        this.#options.failed(error);
      }
    }
    await forward();
  }

  /**
   * Copies granules, all of them due, by `attempt`, which does not wait and answers how long a first part it copied.
   * False: it was not all, and copy() must be used.
   */
  tryCopy(offset: number, lengthBytes: number, attempt: () => number): boolean {
    const { due, copied } = this.#options;
    if (this.#given || this.#locks.conflictsExclusive(offset, lengthBytes)) return false;
    if (due.nextClean(offset, offset + lengthBytes) < offset + lengthBytes) return false;
    const done = attempt();
    const whole = done === lengthBytes ? done : alignDown(done, due.granularityBytes);
    if (whole > 0) {
      due.reset(offset, whole);
      copied?.(whole);
    }
    return whole === lengthBytes;
  }

  /** Copies what is still due of a stretch, whole granules. */
  async copy(offset: number, lengthBytes: number): Promise<void> {
    const { due, copy, copied } = this.#options;
    const whole = roundOut(offset, lengthBytes, due.granularityBytes);
    const end = Math.min(whole.offset + whole.lengthBytes, due.sizeBytes);
    const release = await this.#locks.lockExclusive(whole.offset, end - whole.offset);
    try {
      for (
        let at = due.nextDirty(whole.offset, end);
        at && !this.#given;
        at = due.nextDirty(at.offset, end)
      ) {
        await copy(at.offset, at.lengthBytes);
        due.reset(at.offset, at.lengthBytes);
        copied?.(at.lengthBytes);
      }
    } finally {
      release();
    }
  }

  /** The rest of a stretch is not to be copied. Waits for copies under way: their writers may not be overtaken. */
  async skip(offset: number, lengthBytes: number): Promise<void> {
    const { due } = this.#options;
    const release = await this.#locks.lockExclusive(offset, lengthBytes);
    due.reset(offset, lengthBytes);
    release();
  }

  /** Nothing is held any more: guests' changes pass. */
  giveUp(): void {
    this.#given = true;
  }
}
