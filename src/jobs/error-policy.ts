import { errnoOf } from '../base/error.js';
import type { ErrorAction } from './job-errors.js';

/** enospc and auto: stop when space has run out, else report. */
export type ErrorPolicy = 'report' | 'ignore' | 'enospc' | 'stop' | 'auto';

/** What follows an error of a request to the source, and of one to the target. */
export interface ErrorPolicies {
  readonly read: ErrorPolicy;
  readonly write: ErrorPolicy;
}

/** BlockDeviceIoStatus of QMP. */
export type IoStatus = 'ok' | 'failed' | 'nospace';

/** What a job does about errors, and what stopped it last. */
export class ErrorHandling {
  readonly #policies: ErrorPolicies;
  #ioStatus: IoStatus = 'ok';
  /** What ends the job, or has stopped it, was told. */
  #told: 'report' | 'stop' | undefined;

  constructor(policies: ErrorPolicies) {
    this.#policies = policies;
  }

  /** BlockDeviceIoStatus of QMP: what stopped the job, until it is resumed. */
  get ioStatus(): IoStatus {
    return this.#ioStatus;
  }

  actionOn(operation: 'read' | 'write', cause: unknown): ErrorAction {
    const policy = this.#policies[operation];
    if (policy === 'enospc' || policy === 'auto') return isNoSpace(cause) ? 'stop' : 'report';
    return policy;
  }

  /** Of what was in flight beside a request that ended the job, or stopped it, nothing is told unless `each` has its event. */
  isToTell(action: ErrorAction, each: boolean): boolean {
    if (action === 'ignore' || each) return true;
    if (this.#told === 'report' || this.#told === action) return false;
    this.#told = action;
    return true;
  }

  stoppedFor(cause: unknown): void {
    if (this.#ioStatus === 'ok') this.#ioStatus = isNoSpace(cause) ? 'nospace' : 'failed';
  }

  /** As it was in another process. */
  restore(status: IoStatus): void {
    this.#ioStatus = status;
  }

  resumed(): void {
    this.#ioStatus = 'ok';
    if (this.#told === 'stop') this.#told = undefined;
  }
}

function isNoSpace(cause: unknown): boolean {
  return errnoOf(cause) === 'ENOSPC';
}
