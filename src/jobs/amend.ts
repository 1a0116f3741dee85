import type { Job } from './job.js';
import type { JobDriver } from './job-driver.js';
import type { WorkProgress } from './job-progress.js';

/** x-blockdev-amend of an image that has no options which could be changed while it is open: one step, of nothing. */
export class AmendJob implements JobDriver {
  readonly type = 'amend';
  #done = 0;

  constructor(job: Job) {
    job.setDriver(this);
  }

  progress(): WorkProgress {
    const done = this.#done;
    return { phase: 'copying', doneBytes: done, zeroBytes: 0, skippedBytes: 0, remainingBytes: 1 - done };
  }

  async run(): Promise<void> {
    this.#done = 1;
  }

  async clean(): Promise<void> {}
}
