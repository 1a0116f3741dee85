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

  stoppedFor(cause: unknown): void {
    if (this.#ioStatus === 'ok') this.#ioStatus = isNoSpace(cause) ? 'nospace' : 'failed';
  }

  /** As it was in another process. */
  restore(status: IoStatus): void {
    this.#ioStatus = status;
  }

  resumed(): void {
    this.#ioStatus = 'ok';
  }
}

function isNoSpace(cause: unknown): boolean {
  return errnoOf(cause) === 'ENOSPC';
}
