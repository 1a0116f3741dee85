import { BlockError, errnoOf, errnoText, toBlockError } from '../base/error.js';

/**
 * report: the job fails. ignore: what failed is done again, or left out, and the job goes on. stop: the job is paused,
 * and what failed is done again once the user resumes it.
 */
export type ErrorAction = 'report' | 'ignore' | 'stop';

/**
 * What becomes of a request that failed. policy: what the job's error policies say. lost: it is not done again, and the
 * job fails. guest: a guest's change fails with it, and the job knows nothing of it.
 */
export type FailureFate = 'policy' | 'lost' | 'guest';

/** Thrown inside a job by a checkpoint when it was cancelled. */
export class JobCancelled extends Error {
  override name = 'JobCancelled';
}

/** A request of the job failed: the error that BLOCK_JOB_COMPLETED shows is the errno's text. */
export class JobIoError extends Error {
  override name = 'JobIoError';
  readonly operation: 'read' | 'write';
  readonly action: ErrorAction;

  constructor(operation: 'read' | 'write', cause: unknown, action: ErrorAction) {
    super(errnoText(errnoOf(cause)), { cause });
    this.operation = operation;
    this.action = action;
  }
}

/** What a program is told of how a job ended. */
export function jobError(
  failure: unknown,
  message: string | undefined,
  signal: AbortSignal | undefined,
): BlockError {
  if (failure instanceof JobCancelled) {
    const cause: unknown = signal?.aborted ? signal.reason : failure;
    return new BlockError('cancelled', message ?? 'Operation canceled', { errno: 'ECANCELED', cause });
  }
  const cause = failure instanceof JobIoError ? failure.cause : failure;
  if (!(cause instanceof BlockError)) return toBlockError(failure);
  return new BlockError(cause.kind, message ?? cause.message, { errno: errnoOf(cause), cause });
}

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
