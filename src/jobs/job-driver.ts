import type { Json } from '../block/driver.js';
import type { Node } from '../block/node.js';
import type { JobPlace } from './job-graph.js';
import type { WorkProgress } from './job-progress.js';
import type { PassedWork } from './passed/passed-job.js';

/** Of jobs that are one step of work, with no disk of a guest as their own. */
export type StepType = 'create' | 'amend' | 'snapshot-save' | 'snapshot-load' | 'snapshot-delete';
export type JobType = 'stream' | 'commit' | 'mirror' | 'backup' | StepType;

/** It works on a disk while that is in use. */
export function isBlockJobType(type: JobType): boolean {
  return type === 'stream' || type === 'commit' || type === 'mirror' || type === 'backup';
}

/** When what a guest writes goes to the target: some time, or before it is answered. */
export type CopyMode = 'background' | 'write-blocking';

/** What one kind of job does. Each step is called once at most, in this order; clean always is. */
export interface JobDriver {
  readonly type: JobType;
  /** As QEMU's it has many requests in flight, each of which has its error event; the others have one for what ends them. */
  readonly tellsEachError?: boolean;
  /** What is not to be deleted until the job is dismissed, though it is no child of the job's. */
  readonly heldNode?: Node | undefined;
  /** Where it is in the graph. */
  readonly place?: JobPlace;
  progress(): WorkProgress;
  /** The long part. Calls job.pace.checkpoint() often; ends by itself, or after complete() or freeze(). */
  run(): Promise<void>;
  /** The user, an error or another process wants it to rest, or to go on; one that rests holds no guest back. */
  restChanged?(isToRest: boolean): void;
  /** Another copy mode. Errors: invalid. Absent: there is nothing to change. */
  changeCopyMode?(mode: CopyMode): void;
  /** What query-block-jobs says beside the common members. */
  details?(): { [key: string]: Json };
  /** What x-progress says beside the common members. */
  moreProgress?(): { [key: string]: Json };
  /** READY jobs: asked to take over. */
  complete?(): void;
  /** READY jobs: asked to end with the target as it is now; resolves once that point in time is held. */
  freeze?(): Promise<void>;
  /**
   * READY jobs whose guest has stopped: resolves when the target has all that the source has, durably, with what it copies
   * to; undefined when the job is not to be READY any more, or rests.
   */
  settle?(): Promise<Node | undefined>;
  /** The last part that may fail: the change of the graph. */
  prepare?(): Promise<void>;
  /** Cancelled by force: requests that it has in flight to a copy are given up if they do not end soon. */
  giveUp?(): void;
  /** Told that the job fails or is cancelled, before clean. */
  abort?(): void;
  /**
   * For another process that goes on from there, given to the new job as `job.from`: the job is at rest, and so are guests,
   * with nothing in flight. Absent: nobody can. Errors: busy.
   */
  passed?(): PassedWork;
  /**
   * Takes the job's filter and backends out of the graph, and ends all else that it has, whatever of that fails. Errors: what
   * then ends a job with an error that had done its work, such as the last flush of a target that is closed.
   */
  clean(): Promise<void>;
}
