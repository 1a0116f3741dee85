import { deferred } from '../base/async.js';
import { asError, JobCancelled, jobError } from './job-errors.js';

/** How a job ends, and for those who wait, when. */
export class JobOutcome {
  #failure: unknown;
  #error: string | undefined;
  #end: 'completed' | 'failed' | undefined;
  readonly #concluded = deferred();

  /** It fails with that; undefined: it goes well so far. */
  fails(failure: unknown): void {
    this.#failure = failure;
  }

  /** The same, once and for all. */
  ends(failure: unknown): void {
    this.fails(failure);
    this.#error = this.failureText;
    this.#end = failure === undefined ? 'completed' : 'failed';
  }

  /** It has ended so in another process. */
  endedElsewhere(end: 'completed' | 'failed', error: string | undefined): void {
    this.#end = end;
    this.#error = error;
    this.#failure = end === 'failed' ? new Error(error) : undefined;
    this.conclude();
  }

  conclude(): void {
    this.#concluded.resolve();
  }

  get concluded(): Promise<void> {
    return this.#concluded.promise;
  }

  get hasFailed(): boolean {
    return this.#failure !== undefined;
  }

  /** Why it fails, from the moment on when it does. */
  get failureText(): string | undefined {
    if (this.#failure === undefined) return undefined;
    return this.#failure instanceof JobCancelled ? 'Operation canceled' : asError(this.#failure).message;
  }

  /** Why it has failed. */
  get error(): string | undefined {
    return this.#error;
  }

  /** Undefined: it has not ended, or it never began. */
  get end(): 'completed' | 'failed' | undefined {
    return this.#end;
  }

  /** Resolves when it has ended well; `stop` is called when `signal` is aborted. Errors: see Job.result. */
  async result(stop: () => void, signal: AbortSignal | undefined): Promise<void> {
    signal?.addEventListener('abort', stop);
    if (signal?.aborted) stop();
    try {
      await this.concluded;
    } finally {
      signal?.removeEventListener('abort', stop);
    }
    if (this.#failure !== undefined) throw jobError(this.#failure, this.#error, signal);
  }
}
