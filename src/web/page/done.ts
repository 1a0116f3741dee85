import type { ServerState } from '../messages.js';

/** What may be taken back. */
export interface Undoable {
  readonly undo?: unknown;
  /** The job that is taken back, while it is there; and how many looks have not told of it. */
  readonly job?: { readonly id: string; readonly looks: number };
}

/** A look that is told may have begun before something was done. */
const EARLY_LOOKS = 1;

/** What was done, as a later look finds it: a job that is over is not taken back, nor is another that has its name. */
export function afterLook<T extends Undoable>(
  done: T,
  { view, error }: Pick<ServerState, 'view' | 'error'>,
): T {
  const { job } = done;
  if (!job || !view || error !== undefined) return done;
  if (view.jobs.some(({ id }) => id === job.id)) return { ...done, job: { ...job, looks: EARLY_LOOKS } };
  if (job.looks < EARLY_LOOKS) return { ...done, job: { ...job, looks: job.looks + 1 } };
  const { undo: _undo, job: _job, ...over } = done;
  return over as T;
}
