import type { Node } from '../block/node.js';
import type { Job } from './job.js';
import type { JobDriver, StepType } from './job-driver.js';
import type { WorkProgress } from './job-progress.js';

/** One step of work that cannot be paused. */
export class StepJob implements JobDriver {
  readonly type: StepType;
  readonly heldNode: Node | undefined;
  readonly #work: () => Promise<void>;
  #done = 0;

  constructor(job: Job, type: StepType, work: () => Promise<void>, heldNode?: Node) {
    job.setDriver(this);
    this.type = type;
    this.heldNode = heldNode;
    this.#work = work;
  }

  progress(): WorkProgress {
    const done = this.#done;
    return { doneBytes: done, zeroBytes: 0, skippedBytes: 0, remainingBytes: 1 - done };
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
