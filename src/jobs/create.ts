import type { Job } from './job.js';
import type { JobDriver } from './job-driver.js';

/** blockdev-create: one step of work that cannot be paused. */
export class CreateJob implements JobDriver {
  readonly type = 'create';
  readonly totalBytes = 1;
  readonly #work: () => Promise<void>;
  #done = 0;

  constructor(job: Job, work: () => Promise<void>) {
    job.setDriver(this);
    this.#work = work;
  }

  get offsetBytes(): number {
    return this.#done;
  }

  async run(): Promise<void> {
    try {
      await this.#work();
    } finally {
      this.#done = 1;
    }
  }

  async clean(): Promise<void> {}
}
