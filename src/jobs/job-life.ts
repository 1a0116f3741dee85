import { assert } from '../base/assert.js';
import { deferred } from '../base/async.js';
import type { JobDriver } from './job-driver.js';
import { JobCancelled } from './job-errors.js';
import { eventData } from './job-info.js';
import { JobOutcome } from './job-outcome.js';
import type { EmitEvent, Job } from './job.js';
import type { EndedJob, PassedJob } from './passed/passed-job.js';
import { goesOn, type JobStatus, mayFollow } from './state.js';

/** A job from its beginning to its end: which status follows which, and what is told of it. */
export class JobLife {
  readonly #job: Job;
  readonly #emit: EmitEvent;
  readonly #forget: (job: Job) => void;
  readonly #outcome = new JobOutcome();
  readonly #finalized = deferred();
  #status: JobStatus = 'undefined';
  #wasReady = false;

  constructor(job: Job, emit: EmitEvent, forget: (job: Job) => void) {
    this.#job = job;
    this.#emit = emit;
    this.#forget = forget;
  }

  get status(): JobStatus {
    return this.#status;
  }

  /** It is READY, or it was. */
  get wasReady(): boolean {
    return this.#wasReady;
  }

  get outcome(): JobOutcome {
    return this.#outcome;
  }

  /** It was that far in another process, where it did nothing any more. */
  comesFrom({ plan, stage, wasReady }: Pick<PassedJob, 'plan' | 'stage' | 'wasReady'>): void {
    const atWork = plan.kind === 'create' ? 'running' : wasReady ? 'standby' : 'paused';
    this.#status = stage === 'works' ? atWork : stage;
    this.#wasReady = wasReady;
  }

  /** It has ended in another process, and waits to be dismissed. */
  endedElsewhere({ wasReady, end, error }: Pick<EndedJob, 'wasReady' | 'end' | 'error'>): void {
    this.#status = 'concluded';
    this.#wasReady = wasReady;
    this.#outcome.endedElsewhere(end, error);
  }

  /** From here on it exists for users. */
  announce(): void {
    if (this.#status === 'undefined') this.#setStatus('created');
  }

  /** A job that could not be started: it never was. */
  abandon(): void {
    if (this.#status !== 'undefined') this.#setStatus('null');
    this.#forget(this.#job);
    this.#outcome.conclude();
  }

  /** A job that was announced and in its place, and is not to be started. */
  withdrawn(): void {
    this.#setStatus('aborting');
    this.#setStatus('concluded');
    this.abandon();
  }

  /** Its work may begin. */
  begin(): void {
    this.#setStatus('running');
  }

  /** All its work, or what is left of it, and its end. */
  async live(driver: JobDriver): Promise<void> {
    const { pace, group } = this.#job;
    let failure: unknown;
    try {
      if (goesOn(this.#status)) await this.#doWork(driver);
      if (group) await pace.restUntil(group.arrive(this.#job));
      if (this.#status === 'waiting') this.#setStatus('pending');
      if (group?.needsFinalize ?? !this.#job.autoFinalize) await this.#untilFinalized();
      await driver.prepare?.();
    } catch (error) {
      // However it fails once it is cancelled, that is why.
      failure = pace.isCancelled ? new JobCancelled() : error;
      this.#aborts(driver);
    }
    this.#outcome.fails(failure);
    try {
      await driver.clean();
    } catch (error) {
      failure ??= error;
    }
    pace.rest();
    this.#end(failure);
  }

  async #doWork(driver: JobDriver): Promise<void> {
    const { from, pace } = this.#job;
    const back = this.#status === 'standby' ? 'ready' : 'running';
    if (from && this.#status !== 'running') await pace.restAgain(() => this.#setStatus(back));
    // Begun in a drained section, it rests first.
    else if (pace.wantsRest) await pace.pausePoint();
    await driver.run();
    // The user, or a drained section, wants it to rest before it ends.
    await pace.pausePoint();
    if (pace.isCancelled) throw new JobCancelled();
    this.#job.workIsDone();
    this.#setStatus('waiting');
  }

  async #untilFinalized(): Promise<void> {
    const { isBlockJob, autoFinalize, from, type, id, pace, group } = this.#job;
    if (isBlockJob && !autoFinalize && from?.stage !== 'pending')
      this.#emit('BLOCK_JOB_PENDING', { type, id });
    await pace.restUntil(group?.finalized ?? this.#finalized.promise);
  }

  #aborts(driver: JobDriver): void {
    // A cancel or an error may meet the job while it rests; the tables know no way from there to aborting.
    if (this.#status === 'paused') this.#setStatus('running');
    if (this.#status === 'standby') this.#setStatus('ready');
    this.#job.group?.fail(this.#job);
    this.#setStatus('aborting');
    driver.abort?.();
  }

  #end(failure: unknown): void {
    const cancelled = failure instanceof JobCancelled;
    this.#outcome.ends(failure);
    if (this.#job.isBlockJob) {
      const error = failure === undefined || cancelled ? {} : { error: this.#outcome.error ?? '' };
      const event = cancelled ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED';
      this.#emit(event, { ...eventData(this.#job), ...error });
    }
    this.#setStatus('concluded');
    if (this.#job.autoDismiss) this.dismiss();
    this.#outcome.conclude();
  }

  /** It shows that it rests; the answer ends that. */
  pauses(): () => void {
    const back = this.#status;
    this.#setStatus(back === 'ready' ? 'standby' : 'paused');
    return () => this.#setStatus(back);
  }

  /** The mirror has caught up. */
  becomesReady(): void {
    this.#wasReady = true;
    this.#setStatus('ready');
    this.#emit('BLOCK_JOB_READY', eventData(this.#job));
  }

  /** The user lets it end. */
  finalize(): void {
    this.#finalized.resolve();
  }

  /** The user has seen its end. */
  dismiss(): void {
    this.#setStatus('null');
    this.#forget(this.#job);
  }

  #setStatus(status: JobStatus): void {
    const { id, host } = this.#job;
    assert(mayFollow(this.#status, status), () => `job '${id}' from '${this.#status}' to '${status}'`);
    const { jobState } = host.trace;
    if (jobState.isOn) jobState.say(`${this.#job.type} '${id}' from ${this.#status} to ${status}`);
    this.#status = status;
    this.#emit('JOB_STATUS_CHANGE', { status, id });
  }
}
