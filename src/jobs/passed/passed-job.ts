import type { Json } from '../../block/driver.js';
import type { Edge } from '../../block/edge.js';
import type { IoStatus } from '../error-policy.js';
import type { PassedCourse } from '../job-course.js';
import type { JobType } from '../job-driver.js';
import type { WorkProgress } from '../job-progress.js';
import type { JobPlan } from '../plans/plan.js';

/** What a driver knows beside its plan: JSON, long things by what they are (bits of bitmaps), and open files. */
export interface PassedWork {
  readonly data: { [key: string]: Json };
  readonly parts: PassedParts;
  /** Descriptors: they stay the giver's, and those that arrive are the taker's. */
  readonly files?: readonly number[];
}

export type PassedParts = { readonly [what: string]: readonly Uint8Array[] };

/** works: at a pause point of its loop. waiting: for its group. pending: for job-finalize. */
export type PassedStage = 'works' | 'waiting' | 'pending';

/** A job that has no journal, and at rest: all that another process needs to go on with it. */
export interface PassedJob {
  readonly plan: JobPlan;
  readonly stage: PassedStage;
  readonly speed: number | bigint;
  readonly wasReady: boolean;
  readonly isUserPaused: boolean;
  readonly ending?: 'complete' | 'freeze';
  readonly ioStatus: IoStatus;
  readonly course?: PassedCourse;
  readonly work: PassedWork;
  /** Of its filter. */
  readonly filterName?: string;
  /** Users that came to its source past the filter. */
  readonly isPast?: (edge: Edge) => boolean;
  /** Jobs of one group have one number. */
  readonly group?: number;
}

/** One that waits to be dismissed. A type alias: it is JSON. */
export type EndedJob = {
  id: string;
  type: JobType;
  autoFinalize: boolean;
  autoDismiss: boolean;
  speed: string;
  wasReady: boolean;
  ioStatus: IoStatus;
  end: 'completed' | 'failed';
  error?: string;
  progress: WorkProgress;
  details: { [key: string]: Json };
  moreProgress: { [key: string]: Json };
  course?: PassedCourse;
  /** Not to be deleted before. */
  heldNode?: string;
};

const LARGE = '$bigint';

/** A plan as text; its numbers may be beyond what JSON has. */
export function planText(plan: JobPlan): string {
  return JSON.stringify(plan, (_, value: unknown) =>
    typeof value === 'bigint' ? { [LARGE]: String(value) } : value,
  );
}

export function planOfText(text: string): JobPlan {
  return JSON.parse(text, (_, value: unknown) => {
    if (typeof value !== 'object' || value === null || !(LARGE in value)) return value;
    return BigInt(String(value[LARGE]));
  }) as JobPlan;
}

/** As a speed is given: a bigint from 2^53 on. */
export function speedOfText(text: string): number | bigint {
  const speed = BigInt(text);
  return speed > BigInt(Number.MAX_SAFE_INTEGER) ? speed : Number(speed);
}
