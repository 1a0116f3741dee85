import { alignDown } from '../../base/align.js';
import type { JobJournal } from './job-journal.js';

/** Tells the journal of a job that goes through a disk once of whole granules, before which all is done. */
export class ReachedGranules {
  readonly #journal: JobJournal;
  /** Where pieces begin that are under way. */
  readonly #underWay = new Set<number>();
  #toldBytes = 0;
  #reachedBytes = 0;

  constructor(journal: JobJournal) {
    this.#journal = journal;
  }

  /** All before `offset` is done or under way. */
  reach(offset: number): void {
    this.#reachedBytes = offset;
    this.#tell();
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
