import type { Json } from '../block/driver.js';
import type { WorkProgress } from './job-progress.js';

/** Of jobs that are one step of work, with no disk of a guest as their own. */
export type StepType = 'create' | 'amend' | 'snapshot-save' | 'snapshot-load' | 'snapshot-delete';
export type JobType = 'stream' | 'commit' | 'mirror' | 'backup' | StepType;

/** When what a guest writes goes to the target: some time, or before it is answered. */
export type CopyMode = 'background' | 'write-blocking';

/** What one kind of job does. Each step is called once at most, in this order; clean always is. */
export interface JobDriver {
  readonly type: JobType;
  progress(): WorkProgress;
  /** The long part. Calls job.pace.checkpoint() often; ends by itself, or after complete() or freeze(). */
  run(): Promise<void>;
  /** Another copy mode. Errors: invalid. Absent: there is nothing to change. */
  changeCopyMode?(mode: CopyMode): void;
  /** What query-block-jobs says beside the common members. */
  details?(): { [key: string]: Json };
  /** READY jobs: asked to take over. */
  complete?(): void;
  /** READY jobs: asked to end with the target as it is now; resolves once that point in time is held. */
  freeze?(): Promise<void>;
  /** The last part that may fail: the change of the graph. */
  prepare?(): Promise<void>;
  /** Cancelled by force: requests that it has in flight to a copy are given up if they do not end soon. */
  giveUp?(): void;
  /** Told that the job fails or is cancelled, before clean. */
  abort?(): void;
  /** Takes the job's filter and backends out of the graph. Must not fail. */
  clean(): Promise<void>;
}
