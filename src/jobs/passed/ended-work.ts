import type { Json } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import type { JobDriver, JobType } from '../job-driver.js';
import type { WorkProgress } from '../job-progress.js';
import type { EndedJob } from './passed-job.js';

/** What is left to be seen of a job that has ended in another process. */
export class EndedWork implements JobDriver {
  readonly type: JobType;
  readonly heldNode: Node | undefined;
  readonly #ended: EndedJob;

  constructor(ended: EndedJob, heldNode: Node | undefined) {
    this.type = ended.type;
    this.#ended = ended;
    this.heldNode = heldNode;
  }

  progress(): WorkProgress {
    return this.#ended.progress;
  }

  details(): { [key: string]: Json } {
    return this.#ended.details;
  }

  moreProgress(): { [key: string]: Json } {
    return this.#ended.moreProgress;
  }

  run(): Promise<void> {
    return Promise.resolve();
  }

  clean(): Promise<void> {
    return Promise.resolve();
  }
}
