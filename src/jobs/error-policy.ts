import { errnoOf } from '../base/error.js';
import type { ErrorAction } from './job-errors.js';

/** enospc and auto: stop when space has run out, else report. */
export type ErrorPolicy = 'report' | 'ignore' | 'enospc' | 'stop' | 'auto';

/** What follows an error of a request to the source, and of one to the target. */
export interface ErrorPolicies {
  readonly read: ErrorPolicy;
  readonly write: ErrorPolicy;
}

/** What a job does about errors, and what stopped it last. */
export class ErrorHandling {
  readonly #policies: ErrorPolicies;
  #ioStatus: 'ok' | 'failed' | 'nospace' = 'ok';

  constructor(policies: ErrorPolicies) {
    this.#policies = policies;
  }

  /** BlockDeviceIoStatus of QMP: what stopped the job, until it is resumed. */
  get ioStatus(): 'ok' | 'failed' | 'nospace' {
    return this.#ioStatus;
  }

  actionOn(operation: 'read' | 'write', cause: unknown): ErrorAction {
    const policy = this.#policies[operation];
    if (policy === 'enospc' || policy === 'auto') return isNoSpace(cause) ? 'stop' : 'report';
    return policy;
  }

  stoppedFor(cause: unknown): void {
    if (this.#ioStatus === 'ok') this.#ioStatus = isNoSpace(cause) ? 'nospace' : 'failed';
  }

  resumed(): void {
    this.#ioStatus = 'ok';
  }
}

function isNoSpace(cause: unknown): boolean {
  return errnoOf(cause) === 'ENOSPC';
}
