import { deferred } from '../base/async.js';
import type { Job } from './job.js';

/** Jobs of one transaction that end well together: when one fails or is cancelled, the others are cancelled. */
export class JobGroup {
  readonly #members = new Set<Job>();
  readonly #waiting = new Set<Job>();
  readonly #complete = deferred();
  readonly #finalized = deferred();

  /** Before any of them is started. */
  add(job: Job): void {
    this.#members.add(job);
    job.group = this;
  }

  /** The job has done its work. The answer resolves when all have. */
  arrive(job: Job): Promise<void> {
    this.#waiting.add(job);
    if (this.#waiting.size === this.#members.size) this.#complete.resolve();
    return this.#complete.promise;
  }

  /** Whether their ends wait for job-finalize, of any one of them. */
  get needsFinalize(): boolean {
    return [...this.#members].some(({ autoFinalize }) => !autoFinalize);
  }

  /** One of them is gone on with by its journal. */
  get hasJournals(): boolean {
    return [...this.#members].some(({ kept }) => kept !== undefined);
  }

  get finalized(): Promise<void> {
    return this.#finalized.promise;
  }

  finalize(): void {
    this.#finalized.resolve();
  }

  /** One of them fails: the others do not end well. */
  fail(failed: Job): void {
    this.#members.delete(failed);
    for (const job of this.#members) if (!job.isOver && !job.isCancelled) job.cancelWithGroup();
  }
}
