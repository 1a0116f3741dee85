import { alignDown } from '../../base/align.js';
import type { JobJournal } from './job-journal.js';

/** Tells the journal of a job that goes through a disk once of whole granules, before which all is done. */
export class ReachedGranules {
  readonly #journal: JobJournal;
  /** Where pieces begin that are under way. */
  readonly #underWay = new Set<number>();
  #toldBytes = 0;
  /** What lies behind has to be copied again: nothing of it is told any more. */
  #lostFrom = Infinity;
  #reachedBytes = 0;

  constructor(journal: JobJournal) {
    this.#journal = journal;
  }

  /** All before `offset` is done or under way. */
  reach(offset: number): void {
    this.#reachedBytes = offset;
    this.#tell();
  }

  /** What was told from `offset` on is not so. */
  lost(offset: number): void {
    this.#lostFrom = Math.min(this.#lostFrom, offset);
  }

  isLost(offset: number): boolean {
    return offset + this.#journal.left.granularityBytes > this.#lostFrom;
  }

  async during(offset: number, work: () => Promise<void>): Promise<void> {
    this.#underWay.add(offset);
    await work();
    // One that failed stays: it is done again, or the job ends.
    this.#underWay.delete(offset);
    this.#tell();
  }

  #tell(): void {
    const { granularityBytes, sizeBytes } = this.#journal.left;
    const done = Math.min(this.#reachedBytes, ...this.#underWay);
    const whole = done >= sizeBytes ? sizeBytes : alignDown(done, granularityBytes);
    if (whole <= this.#toldBytes) return;
    const from = this.#toldBytes;
    this.#toldBytes = whole;
    this.#journal.copied(from, whole - from);
  }
}
