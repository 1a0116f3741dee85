import { type Deferred, deferred, Notifier } from '../base/async.js';
import { assert } from '../base/assert.js';
import { BlockError, errnoOf, errnoText, toBlockError } from '../base/error.js';
import type { ErrorPolicy } from './arguments.js';
import type { BackendUser, BlockBackend } from '../block/backend.js';
import type { Json } from '../block/driver.js';
import type { Graph } from '../block/graph.js';
import type { HostClock } from '../host/host.js';
import { RateLimit } from './rate-limit.js';
import { checkVerb, type JobStatus, mayFollow } from './state.js';

export type JobType = 'stream' | 'commit' | 'mirror' | 'backup' | 'create';
export type EmitEvent = (event: string, data: { [key: string]: Json }) => void;

/** A job works this long before it gives way to guests and monitors. */
const TURN_MS = 4;
/** Most that a drained section waits for requests elsewhere, so that a job that rests shows itself paused in it. */
const SHOWN_MS = 50;

/** What one kind of job does. Each step is called once at most, in this order; clean always is. */
export interface JobDriver {
  readonly type: JobType;
  /** Bytes done. */
  readonly offsetBytes: number;
  /** Bytes to do in all, as known now. */
  readonly totalBytes: number;
  /** The long part. Calls job.checkpoint() often; ends by itself, or after complete() or freeze(). */
  run(): Promise<void>;
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

export interface JobProperties {
  id: string;
  speed?: number;
  autoFinalize?: boolean;
  autoDismiss?: boolean;
  /** What follows an error of a request to the source, and of one to the target; default: report. */
  onReadError?: ErrorPolicy;
  onWriteError?: ErrorPolicy;
}

/**
 * report: the job fails. ignore: what failed is done again, or left out, and the job goes on. stop: the job is paused,
 * and what failed is done again once the user resumes it.
 */
export type ErrorAction = 'report' | 'ignore' | 'stop';

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

/** One job: its status, and the verbs of QMP. */
export class Job {
  readonly id: string;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  readonly limit: RateLimit;
  readonly #policies: { readonly read: ErrorPolicy; readonly write: ErrorPolicy };
  readonly #graph: Graph;
  readonly #clock: HostClock;
  readonly #emit: EmitEvent;
  readonly #forget: (job: Job) => void;
  #driver: JobDriver | undefined;
  #status: JobStatus = 'undefined';
  /** Drained sections, and the user, that want it to rest. */
  #drains = 0;
  #userPaused = false;
  /** No request of its own in flight, and none starts: a drained section need not wait for it. */
  #atRest = true;
  /** At a pause point. */
  #isPaused = false;
  #sleeping = false;
  /** A drained section has begun; before it goes on, the job shows itself paused, as QEMU's does, unless it is held up. */
  #goesToRest = false;
  #isLate = false;
  #cancelled = false;
  #ending: 'complete' | 'freeze' | undefined;
  #error: string | undefined;
  /** What stopped it last, until it is resumed. */
  #ioStatus: 'ok' | 'failed' | 'nospace' = 'ok';
  #failure: unknown;
  #turnStartedMs = 0;
  readonly #backends: BlockBackend[] = [];
  readonly #kicked = new Notifier();
  readonly #finalized: Deferred<void> = deferred();
  readonly #concluded: Deferred<void> = deferred();

  constructor(properties: JobProperties, graph: Graph, emit: EmitEvent, forget: (job: Job) => void) {
    this.id = properties.id;
    this.autoFinalize = properties.autoFinalize ?? true;
    this.autoDismiss = properties.autoDismiss ?? true;
    this.limit = new RateLimit(properties.speed ?? 0);
    const { onReadError = 'report', onWriteError = 'report' } = properties;
    this.#policies = { read: onReadError, write: onWriteError };
    this.#graph = graph;
    this.#clock = graph.host.clock;
    this.#emit = emit;
    this.#forget = forget;
  }

  /** Memory to read into. */
  buffer(lengthBytes: number): Buffer {
    return this.#graph.host.files.buffer(lengthBytes);
  }

  get status(): JobStatus {
    return this.#status;
  }

  get type(): JobType {
    return this.#work().type;
  }

  get isCancelled(): boolean {
    return this.#cancelled;
  }

  get error(): string | undefined {
    return this.#error;
  }

  get isOver(): boolean {
    return this.#status === 'concluded' || this.#status === 'null';
  }

  /** Resolves when it has concluded (whether or not it was dismissed). */
  get concluded(): Promise<void> {
    return this.#concluded.promise;
  }

  /**
   * Resolves when it has ended well. Aborting `signal` cancels it by force. Errors, when it has ended: BlockError, kind
   * cancelled, or that of the request that failed (with its errno and cause).
   */
  async result({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    const stop = (): void => void this.cancelNow();
    signal?.addEventListener('abort', stop);
    if (signal?.aborted) stop();
    try {
      await this.concluded;
    } finally {
      signal?.removeEventListener('abort', stop);
    }
    if (this.#failure !== undefined) throw jobError(this.#failure, this.#error, signal);
  }

  get isReady(): boolean {
    return this.#status === 'ready' || this.#status === 'standby';
  }

  #work(): JobDriver {
    assert(this.#driver, () => `job '${this.id}' has no driver`);
    return this.#driver;
  }

  /**
   * For the backends of this job: drained sections make it rest, but they wait only for its requests to the nodes that
   * they hold. What it has in flight elsewhere may take long.
   */
  readonly backendUser: BackendUser = {
    drainBegin: () => this.drainBegin(),
    isBusy: () => this.#goesToRest && !this.#isHeldUp(),
    drainEnd: () => this.drainEnd(),
  };

  drainBegin(): void {
    this.#drains++;
    if (!this.#atRest && !this.#goesToRest) this.#goToRest();
    this.#kicked.notify();
  }

  #goToRest(): void {
    this.#goesToRest = true;
    this.#isLate = false;
    this.#clock.setTimer(SHOWN_MS, () => {
      this.#isLate = true;
      this.#graph.notifyIdle();
    });
  }

  /** It waits for the end of a section itself, or for requests where none holds it, which may be to a target that hangs. */
  #isHeldUp(): boolean {
    if (this.#backends.some(({ isWaitingToOpen }) => isWaitingToOpen)) return true;
    return this.#isLate && this.#backends.some(isElsewhere);
  }

  drainEnd(): void {
    assert(this.#drains > 0, 'unbalanced drain of a job');
    this.#drains--;
    if (this.#drains === 0) this.#goesToRest = false;
    this.#kicked.notify();
  }

  // ---- life

  /** What it makes its requests through. */
  uses(backend: BlockBackend): void {
    this.#backends.push(backend);
  }

  setDriver(driver: JobDriver): void {
    this.#driver = driver;
  }

  /** From here on it exists for users. */
  announce(): void {
    if (this.#status === 'undefined') this.#setStatus('created');
  }

  /** A job that could not be started: it never was. */
  abandon(): void {
    if (this.#status !== 'undefined') this.#setStatus('null');
    this.#forget(this);
    this.#concluded.resolve();
  }

  /** A job that was announced and in its place, and is not to be started. */
  withdrawn(): void {
    this.#setStatus('aborting');
    this.#setStatus('concluded');
    this.abandon();
  }

  /** Begins the work; its end shows in events and `concluded`. */
  start(): void {
    this.#atRest = false;
    this.#turnStartedMs = this.#clock.nowMs();
    this.#setStatus('running');
    void this.#live();
  }

  async #live(): Promise<void> {
    const driver = this.#work();
    let failure: unknown;
    try {
      // Begun in a drained section, it rests first.
      if (this.#wantsRest()) await this.pausePoint();
      await driver.run();
      if (this.#cancelled) throw new JobCancelled();
      this.#setStatus('waiting');
      this.#setStatus('pending');
      if (!this.autoFinalize) await this.#untilFinalized();
      await driver.prepare?.();
    } catch (error) {
      // However it fails once it is cancelled, that is why.
      failure = this.#cancelled ? new JobCancelled() : error;
      // A cancel or an error may meet the job while it rests; the tables know no way from there to aborting.
      if (this.#status === 'paused') this.#setStatus('running');
      if (this.#status === 'standby') this.#setStatus('ready');
      this.#setStatus('aborting');
      driver.abort?.();
    }
    try {
      await driver.clean();
    } catch (error) {
      failure ??= error;
    }
    this.#rest();
    this.#end(failure);
  }

  async #untilFinalized(): Promise<void> {
    if (this.type !== 'create') this.#emit('BLOCK_JOB_PENDING', { type: this.type, id: this.id });
    this.#rest();
    await Promise.race([this.#finalized.promise, this.#kicked.until(() => this.#cancelled)]);
    if (this.#cancelled) throw new JobCancelled();
    this.#atRest = false;
  }

  #end(failure: unknown): void {
    const cancelled = failure instanceof JobCancelled;
    this.#failure = failure;
    if (failure !== undefined) this.#error = cancelled ? 'Operation canceled' : asError(failure).message;
    if (this.type !== 'create') {
      const data: { [key: string]: Json } = this.#eventData();
      if (failure !== undefined && !cancelled) data['error'] = this.#error ?? '';
      this.#emit(cancelled ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED', data);
    }
    this.#setStatus('concluded');
    if (this.autoDismiss) {
      this.#setStatus('null');
      this.#forget(this);
    }
    this.#concluded.resolve();
  }

  #eventData(): { [key: string]: Json } {
    const { totalBytes, offsetBytes } = this.#work();
    return {
      device: this.id,
      len: totalBytes,
      offset: offsetBytes,
      speed: this.limit.bytesPerSecond,
      type: this.type,
    };
  }

  #setStatus(status: JobStatus): void {
    assert(mayFollow(this.#status, status), () => `job '${this.id}' from '${this.#status}' to '${status}'`);
    this.#status = status;
    this.#emit('JOB_STATUS_CHANGE', { status, id: this.id });
  }

  // ---- for drivers

  /** The mirror has caught up. */
  becomeReady(): void {
    this.#setStatus('ready');
    this.#emit('BLOCK_JOB_READY', this.#eventData());
  }

  /**
   * A request failed: tells it, does what the policy says, and answers what to throw. `isLost`: what failed cannot be
   * done again, whatever the policy.
   */
  ioError(operation: 'read' | 'write', cause: unknown, isLost = false): Error {
    if (cause instanceof JobIoError || cause instanceof JobCancelled) return cause;
    // Requests in flight are given up with the job.
    if (this.#cancelled) return new JobCancelled();
    const action = isLost ? 'report' : this.#actionOn(operation, cause);
    this.#emit('BLOCK_JOB_ERROR', { device: this.id, operation, action });
    if (action === 'stop') this.#stopFor(cause);
    return new JobIoError(operation, cause, action);
  }

  #actionOn(operation: 'read' | 'write', cause: unknown): ErrorAction {
    const policy = this.#policies[operation];
    if (policy === 'enospc' || policy === 'auto') return errnoOf(cause) === 'ENOSPC' ? 'stop' : 'report';
    return policy;
  }

  #stopFor(cause: unknown): void {
    if (this.#ioStatus === 'ok') this.#ioStatus = errnoOf(cause) === 'ENOSPC' ? 'nospace' : 'failed';
    this.#userPaused = true;
    this.#kicked.notify();
  }

  /** Whether checkpoint() has anything to do; cheap. */
  get needsCheckpoint(): boolean {
    if (this.#cancelled || this.#wantsRest()) return true;
    const now = this.#clock.nowMs();
    return now - this.#turnStartedMs > TURN_MS || this.limit.delayMs(now) > 0;
  }

  #wantsRest(): boolean {
    return this.#drains > 0 || this.#userPaused;
  }

  /**
   * Where a job gives way: rests while it is paused (after `quiet`, which waits for its requests in flight), keeps
   * the rate limit, lets others run. Throws JobCancelled. Answers early, rate limit or not, when `wake` says so.
   */
  async checkpoint(quiet: () => Promise<void> | void, wake: () => boolean = () => false): Promise<void> {
    for (;;) {
      if (this.#cancelled) {
        this.#notGoingToRest();
        throw new JobCancelled();
      }
      if (this.#wantsRest()) {
        await quiet();
        await this.pausePoint();
        continue;
      }
      const delay = this.limit.delayMs(this.#clock.nowMs());
      if (delay === 0 || wake()) break;
      await this.#nap(delay);
    }
    if (this.#clock.nowMs() - this.#turnStartedMs > TURN_MS) {
      await this.#clock.macrotask();
      this.#turnStartedMs = this.#clock.nowMs();
    }
  }

  #notGoingToRest(): void {
    if (!this.#goesToRest) return;
    this.#goesToRest = false;
    this.#graph.notifyIdle();
  }

  /** Rests while anyone wants it to; the caller has no request in flight. */
  async pausePoint(): Promise<void> {
    if (!this.#wantsRest() || this.#cancelled) return;
    const back = this.#status;
    this.#setStatus(back === 'ready' ? 'standby' : 'paused');
    this.#isPaused = true;
    this.#rest();
    // Not at rest from the same moment on: another section may begin in the next.
    while (this.#wantsRest() && !this.#cancelled) await this.#kicked.wait();
    this.#atRest = false;
    this.#setStatus(back);
    this.#isPaused = false;
    this.#kicked.notify();
  }

  /** Resolves when it does not rest at a pause point, or has a reason to. */
  async untilAwake(): Promise<void> {
    await this.#kicked.until(() => !this.#isPaused || this.#wantsRest());
  }

  /** Waits for `ms`, or until something happens to the job (kick, pause, cancel). */
  async sleep(ms: number): Promise<void> {
    if (!this.#wantsRest() && !this.#cancelled) await this.#nap(ms);
  }

  /** Ends a sleep(). */
  kick(): void {
    this.#kicked.notify();
  }

  async #nap(ms: number): Promise<void> {
    this.#sleeping = true;
    const woken = this.#kicked.wait();
    const timer = this.#clock.setTimer(ms, () => this.#kicked.notify());
    await woken;
    timer.cancel();
    this.#sleeping = false;
    this.#turnStartedMs = this.#clock.nowMs();
  }

  /** In a drained section that the job entered at rest: it works again once nobody else drains it. */
  async wakeInSection(): Promise<void> {
    while (this.#drains > 0) await this.#kicked.wait();
    this.#atRest = false;
  }

  /** Nothing in flight from here on: entering a drained section of its own. */
  rest(): void {
    this.#rest();
  }

  #rest(): void {
    this.#atRest = true;
    this.#goesToRest = false;
    this.#graph.notifyIdle();
  }

  // ---- verbs

  /** block-job-pause, job-pause. It rests soon, at its next safe point. */
  pause(): void {
    checkVerb(this.id, this.#status, 'pause');
    if (this.#userPaused) throw new BlockError('invalid', 'Job is already paused');
    this.#userPaused = true;
    this.#kicked.notify();
  }

  resume(): void {
    if (!this.#userPaused) throw new BlockError('invalid', "Can't resume a job that was not paused");
    checkVerb(this.id, this.#status, 'resume');
    this.#ioStatus = 'ok';
    this.#userPaused = false;
    this.#kicked.notify();
  }

  /**
   * block-job-cancel (softOnReady) and job-cancel. A READY job that is cancelled softly ends well, its target
   * holding the point in time at which this was called; the answer comes when that is certain.
   */
  async cancel(options: { force: boolean; softOnReady: boolean }): Promise<void> {
    if (options.softOnReady && !options.force && this.#userPaused) {
      throw new BlockError('busy', `The block job for device '${this.id}' is currently paused`);
    }
    checkVerb(this.id, this.#status, 'cancel');
    const driver = this.#work();
    if (options.softOnReady && !options.force && this.isReady && driver.freeze) {
      if (this.#ending !== undefined) return;
      this.#ending = 'freeze';
      await driver.freeze();
      this.#kicked.notify();
      return;
    }
    this.#forceCancel();
  }

  /** For the end of the program: whatever the status. Resolves when the job is over. */
  async cancelNow(): Promise<void> {
    if (this.#status !== 'concluded' && this.#status !== 'null') this.#forceCancel();
    await this.concluded;
  }

  #forceCancel(): void {
    this.#cancelled = true;
    this.#userPaused = false;
    this.#kicked.notify();
    this.#work().giveUp?.();
  }

  complete(): void {
    checkVerb(this.id, this.#status, 'complete');
    const driver = this.#work();
    if (!driver.complete || this.#cancelled || this.#ending === 'freeze') {
      throw new BlockError('invalid', `The active block job '${this.id}' cannot be completed`);
    }
    if (this.#ending === 'complete') return;
    this.#ending = 'complete';
    driver.complete();
    this.#kicked.notify();
  }

  finalize(): void {
    checkVerb(this.id, this.#status, 'finalize');
    this.#finalized.resolve();
  }

  dismiss(): void {
    checkVerb(this.id, this.#status, 'dismiss');
    this.#setStatus('null');
    this.#forget(this);
  }

  /** Bytes per second, 0 without limit; at once effective. */
  setSpeed(bytesPerSecond: number): void {
    checkVerb(this.id, this.#status, 'set-speed');
    checkSpeed(bytesPerSecond);
    this.limit.bytesPerSecond = bytesPerSecond;
    this.#kicked.notify();
  }

  /** A member of query-block-jobs. */
  blockJobInfo(): { [key: string]: Json } {
    const info: { [key: string]: Json } = {
      type: this.type,
      device: this.id,
      len: this.#work().totalBytes,
      offset: this.#work().offsetBytes,
      busy: !this.#atRest && !this.#sleeping && this.#status !== 'concluded',
      paused: this.#wantsRest(),
      speed: this.limit.bytesPerSecond,
      'io-status': this.#ioStatus,
      ready: this.isReady,
      status: this.#status,
      'auto-finalize': this.autoFinalize,
      'auto-dismiss': this.autoDismiss,
    };
    if (this.#error !== undefined) info['error'] = this.#error;
    return info;
  }

  /** A member of query-jobs. */
  jobInfo(): { [key: string]: Json } {
    const info: { [key: string]: Json } = {
      id: this.id,
      type: this.type,
      status: this.#status,
      'current-progress': this.#work().offsetBytes,
      'total-progress': this.#work().totalBytes,
    };
    if (this.#error !== undefined) info['error'] = this.#error;
    return info;
  }
}

/** Has requests where no section holds it. */
function isElsewhere(backend: BlockBackend): boolean {
  return backend.hasRequests && !backend.isQuiesced;
}

function jobError(
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

export function checkSpeed(bytesPerSecond: number): void {
  if (bytesPerSecond < 0) {
    throw new BlockError('invalid', "Parameter 'speed' expects a non-negative value");
  }
}

export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
