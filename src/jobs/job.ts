import { type Deferred, deferred } from '../base/async.js';
import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import type { Json } from '../block/driver.js';
import type { Stretch } from '../block/dirty-bitmap.js';
import type { Graph } from '../block/graph.js';
import type { Host } from '../host/host.js';
import { ErrorHandling, type ErrorPolicy } from './error-policy.js';
import type { JobGroup } from './job-group.js';
import type { CopyMode, JobDriver, JobType } from './job-driver.js';
import { asError, type FailureFate, JobCancelled, jobError, JobIoError } from './job-errors.js';
import { JobPace } from './job-pace.js';
import type { DetailedProgress, JobPhase, JobProgress, WorkPhase } from './job-progress.js';
import { ProgressLog, type Sight } from './progress-log.js';
import { RateLimit } from './rate-limit.js';
import { Throughput } from './throughput.js';
import { progressInfo } from './progress-info.js';
import { checkVerb, type JobStatus, mayFollow } from './state.js';

export type EmitEvent = (event: string, data: { [key: string]: Json }) => void;

export interface JobProperties {
  id: string;
  speed?: number | bigint;
  autoFinalize?: boolean;
  autoDismiss?: boolean;
  /** What follows an error of a request to the source, and of one to the target; default: report. */
  onReadError?: ErrorPolicy;
  onWriteError?: ErrorPolicy;
}

/** Those that work on a disk while it is in use. */
const BLOCK_JOBS: ReadonlySet<JobType> = new Set(['stream', 'commit', 'mirror', 'backup']);

/** What a job is at where its status says it all. */
const PHASES: Readonly<Partial<Record<JobStatus, JobPhase>>> = {
  undefined: 'starting',
  created: 'starting',
  waiting: 'ending',
  pending: 'ending',
  aborting: 'ending',
  concluded: 'over',
  null: 'over',
};

/** One job: its status, and the verbs of QMP. */
export class Job {
  readonly id: string;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  readonly limit: RateLimit;
  /** For the job's own loop: when to give way, and when to rest. */
  readonly pace: JobPace;
  readonly #errors: ErrorHandling;
  readonly #graph: Graph;
  readonly #emit: EmitEvent;
  readonly #forget: (job: Job) => void;
  /** Where it is kept, so that it can be gone on with. */
  journal: string | undefined;
  /** With whom it ends well or not at all. */
  group: JobGroup | undefined;
  #driver: JobDriver | undefined;
  #status: JobStatus = 'undefined';
  #ending: 'complete' | 'freeze' | undefined;
  #error: string | undefined;
  #wasReady = false;
  #failure: unknown;
  #ended: 'completed' | 'failed' | undefined;
  /** From its start on. */
  #throughput: Throughput | undefined;
  #log: ProgressLog | undefined;
  /** While its status does not say it all. */
  #phase: WorkPhase = 'copying';
  readonly #finalized: Deferred<void> = deferred();
  readonly #concluded: Deferred<void> = deferred();

  constructor(properties: JobProperties, graph: Graph, emit: EmitEvent, forget: (job: Job) => void) {
    this.id = properties.id;
    this.autoFinalize = properties.autoFinalize ?? true;
    this.autoDismiss = properties.autoDismiss ?? true;
    this.limit = new RateLimit(properties.speed ?? 0);
    const { onReadError = 'report', onWriteError = 'report' } = properties;
    this.#errors = new ErrorHandling({ read: onReadError, write: onWriteError });
    this.pace = new JobPace({ graph, limit: this.limit, paused: () => this.#pauseShown() });
    this.#graph = graph;
    this.#emit = emit;
    this.#forget = forget;
  }

  /** Memory to read into. */
  buffer(lengthBytes: number): Buffer {
    return this.#graph.host.files.buffer(lengthBytes);
  }

  get host(): Host {
    return this.#graph.host;
  }

  get status(): JobStatus {
    return this.#status;
  }

  get type(): JobType {
    return this.#work().type;
  }

  /** Of a disk that is in use: it has events of its own, and query-block-jobs lists it. */
  get isBlockJob(): boolean {
    return BLOCK_JOBS.has(this.type);
  }

  get isCancelled(): boolean {
    return this.pace.isCancelled;
  }

  get error(): string | undefined {
    return this.#error;
  }

  /** How it has ended; undefined: it has not, or it never began. */
  get end(): 'completed' | 'failed' | undefined {
    return this.#ended;
  }

  /** Why it fails, from the moment on when it does. */
  get failureText(): string | undefined {
    if (this.#failure === undefined) return undefined;
    return this.#failure instanceof JobCancelled ? 'Operation canceled' : asError(this.#failure).message;
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

  /** How far it is, now. */
  progress(): JobProgress {
    const { phase, doneBytes, dataBytes, zeroBytes, skippedBytes, remainingBytes } = this.#sight();
    return {
      ...{ phase, doneBytes, dataBytes, zeroBytes, skippedBytes, remainingBytes },
      bytesPerSecond: this.#throughput?.bytesPerSecond(this.#graph.host.clock.nowMs()) ?? 0,
    };
  }

  /** The same, with what it did in each stage and when it will be done. Nothing of what is done goes back. */
  detailedProgress(): DetailedProgress {
    const nowMs = this.#graph.host.clock.nowMs();
    const sight = this.#sight();
    const log = this.#log ?? new ProgressLog(nowMs);
    log.look(sight, nowMs);
    const { phase, bytesPerSecond } = this.progress();
    return { phase, bytesPerSecond, ...log.tell(sight, nowMs) };
  }

  #sight(): Sight {
    const work = this.#work().progress();
    const { doneBytes, zeroBytes, skippedBytes } = work;
    const counted = this.type === 'backup' ? zeroBytes : zeroBytes + skippedBytes;
    return {
      ...work,
      phase: PHASES[this.#status] ?? this.#phase,
      dataBytes: doneBytes - counted,
      isHeld: this.pace.wantsRest,
    };
  }

  /** For drivers: what the job is at from now on. */
  enter(phase: WorkPhase): void {
    this.#look();
    this.#phase = phase;
  }

  #look(): void {
    this.#log?.look(this.#sight(), this.#graph.host.clock.nowMs());
  }

  #work(): JobDriver {
    assert(this.#driver, () => `job '${this.id}' has no driver`);
    return this.#driver;
  }

  // ---- life

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
    this.pace.start();
    const nowMs = this.#graph.host.clock.nowMs();
    this.#throughput = new Throughput(nowMs);
    this.#log = new ProgressLog(nowMs);
    this.#setStatus('running');
    void this.#live();
  }

  async #live(): Promise<void> {
    const driver = this.#work();
    let failure: unknown;
    try {
      // Begun in a drained section, it rests first.
      if (this.pace.wantsRest) await this.pace.pausePoint();
      await driver.run();
      // The user, or a drained section, wants it to rest before it ends.
      await this.pace.pausePoint();
      if (this.isCancelled) throw new JobCancelled();
      this.#look();
      this.#setStatus('waiting');
      const { group } = this;
      if (group) await this.pace.restUntil(group.arrive(this));
      this.#setStatus('pending');
      if (group?.needsFinalize ?? !this.autoFinalize) await this.#untilFinalized();
      await driver.prepare?.();
    } catch (error) {
      // However it fails once it is cancelled, that is why.
      failure = this.isCancelled ? new JobCancelled() : error;
      // A cancel or an error may meet the job while it rests; the tables know no way from there to aborting.
      if (this.#status === 'paused') this.#setStatus('running');
      if (this.#status === 'standby') this.#setStatus('ready');
      this.group?.fail(this);
      this.#setStatus('aborting');
      driver.abort?.();
    }
    this.#failure = failure;
    try {
      await driver.clean();
    } catch (error) {
      failure ??= error;
    }
    this.pace.rest();
    this.#end(failure);
  }

  async #untilFinalized(): Promise<void> {
    if (this.isBlockJob && !this.autoFinalize)
      this.#emit('BLOCK_JOB_PENDING', { type: this.type, id: this.id });
    await this.pace.restUntil(this.group?.finalized ?? this.#finalized.promise);
  }

  #end(failure: unknown): void {
    const cancelled = failure instanceof JobCancelled;
    this.#failure = failure;
    this.#error = this.failureText;
    this.#ended = failure === undefined ? 'completed' : 'failed';
    if (this.isBlockJob) {
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
    const { doneBytes, remainingBytes } = this.progress();
    return {
      device: this.id,
      len: doneBytes + remainingBytes,
      offset: doneBytes,
      speed: this.limit.bytesPerSecond,
      type: this.type,
    };
  }

  #pauseShown(): () => void {
    const back = this.#status;
    this.#setStatus(back === 'ready' ? 'standby' : 'paused');
    return () => this.#setStatus(back);
  }

  #setStatus(status: JobStatus): void {
    assert(mayFollow(this.#status, status), () => `job '${this.id}' from '${this.#status}' to '${status}'`);
    this.#status = status;
    this.#emit('JOB_STATUS_CHANGE', { status, id: this.id });
  }

  // ---- for drivers

  /** So much data is being copied: it costs of the rate limit. */
  spend(bytes: number): void {
    this.limit.spend(bytes);
    const nowMs = this.#graph.host.clock.nowMs();
    this.#throughput?.add(bytes, nowMs);
    if (this.#log?.isDue(nowMs) === true) this.#log.look(this.#sight(), nowMs);
  }

  /** The mirror has caught up. */
  becomeReady(): void {
    this.#wasReady = true;
    this.#setStatus('ready');
    this.#emit('BLOCK_JOB_READY', this.#eventData());
  }

  /**
   * A request failed: tells it, does what the policy says, and answers what to throw.
   */
  ioError(operation: 'read' | 'write', cause: unknown, fate: FailureFate = 'policy'): Error {
    if (fate === 'guest') return asError(cause);
    if (cause instanceof JobIoError || cause instanceof JobCancelled) return cause;
    // Requests in flight are given up with the job.
    if (this.isCancelled) return new JobCancelled();
    const action = fate === 'lost' ? 'report' : this.#errors.actionOn(operation, cause);
    this.#emit('BLOCK_JOB_ERROR', { device: this.id, operation, action });
    if (action === 'stop') {
      this.#errors.stoppedFor(cause);
      this.pace.isUserPaused = true;
    }
    return new JobIoError(operation, cause, action);
  }

  /** A chunk of the copy was not what was sent. */
  tellsChunk({ offset, lengthBytes }: Stretch, action: 'copied-again' | 'report'): void {
    this.#emit('X_BLOCK_JOB_CHUNK_DIFFERS', { device: this.id, offset, length: lengthBytes, action });
  }

  // ---- verbs

  /** block-job-pause, job-pause. It rests soon, at its next safe point. */
  pause(): void {
    checkVerb(this.id, this.#status, 'pause');
    if (this.pace.isUserPaused) throw new BlockError('invalid', 'Job is already paused');
    this.pace.isUserPaused = true;
  }

  resume(): void {
    if (!this.pace.isUserPaused) throw new BlockError('invalid', "Can't resume a job that was not paused");
    checkVerb(this.id, this.#status, 'resume');
    this.#errors.resumed();
    this.pace.isUserPaused = false;
  }

  /**
   * block-job-cancel (softOnReady) and job-cancel. A READY job that is cancelled softly ends well, its target
   * holding the point in time at which this was called; the answer comes when that is certain, or after a second while
   * the target hangs.
   */
  async cancel(options: { force: boolean; softOnReady: boolean }): Promise<void> {
    if (options.softOnReady && !options.force && this.pace.isUserPaused) {
      throw new BlockError('busy', `The block job for device '${this.id}' is currently paused`);
    }
    checkVerb(this.id, this.#status, 'cancel');
    const driver = this.#work();
    if (options.softOnReady && !options.force && this.isReady && driver.freeze) {
      if (this.#ending !== undefined) return;
      this.#ending = 'freeze';
      await driver.freeze();
      this.pace.kick();
      return;
    }
    this.#forceCancel();
  }

  /** For the end of the program: whatever the status. Resolves when the job is over. */
  async cancelNow(): Promise<void> {
    if (this.#status !== 'concluded' && this.#status !== 'null') this.#forceCancel();
    await this.concluded;
  }

  /** Another job of its group fails. */
  cancelWithGroup(): void {
    this.#forceCancel();
  }

  #forceCancel(): void {
    this.pace.cancel();
    this.#work().giveUp?.();
  }

  complete(): void {
    checkVerb(this.id, this.#status, 'complete');
    const driver = this.#work();
    if (!driver.complete || this.isCancelled || this.#ending === 'freeze') {
      throw new BlockError('invalid', `The active block job '${this.id}' cannot be completed`);
    }
    if (this.#ending === 'complete') return;
    this.#ending = 'complete';
    driver.complete();
    this.pace.kick();
  }

  /** block-job-change; of other jobs than mirrors it says the mode that none is. */
  change(mode: CopyMode): void {
    checkVerb(this.id, this.#status, 'change');
    const driver = this.#work();
    if (!driver.changeCopyMode) throw new BlockError('invalid', 'Job type does not support change');
    driver.changeCopyMode(mode);
    this.pace.kick();
  }

  finalize(): void {
    checkVerb(this.id, this.#status, 'finalize');
    if (this.group) this.group.finalize();
    else this.#finalized.resolve();
  }

  dismiss(): void {
    checkVerb(this.id, this.#status, 'dismiss');
    this.#setStatus('null');
    this.#forget(this);
  }

  /** Bytes per second, 0 without limit; at once effective. */
  setSpeed(bytesPerSecond: number | bigint): void {
    checkVerb(this.id, this.#status, 'set-speed');
    checkSpeed(bytesPerSecond);
    this.limit.bytesPerSecond = bytesPerSecond;
    this.pace.kick();
  }

  /** A member of query-block-jobs. */
  blockJobInfo(hasExtensions = false): { [key: string]: Json } {
    const { doneBytes, remainingBytes } = this.progress();
    const info: { [key: string]: Json } = {
      type: this.type,
      device: this.id,
      len: doneBytes + remainingBytes,
      offset: doneBytes,
      busy: this.pace.isBusy && this.#status !== 'concluded',
      // A mirror that is done holds its own disk still until it is finalized, which as QEMU tells it is a pause.
      paused: this.pace.wantsRest || (this.#status === 'pending' && this.#wasReady),
      speed: this.limit.bytesPerSecond,
      'io-status': this.#errors.ioStatus,
      ready: this.isReady,
      status: this.#status,
      'auto-finalize': this.autoFinalize,
      'auto-dismiss': this.autoDismiss,
      ...this.#work().details?.(),
    };
    if (this.#error !== undefined) info['error'] = this.#error;
    if (hasExtensions) info['x-progress'] = progressInfo(this.detailedProgress());
    return info;
  }

  /** A member of query-jobs. */
  jobInfo(hasExtensions = false): { [key: string]: Json } {
    const { doneBytes, remainingBytes } = this.progress();
    const info: { [key: string]: Json } = {
      id: this.id,
      type: this.type,
      status: this.#status,
      'current-progress': doneBytes,
      'total-progress': doneBytes + remainingBytes,
    };
    if (this.#error !== undefined) info['error'] = this.#error;
    if (hasExtensions && this.isBlockJob) info['x-progress'] = progressInfo(this.detailedProgress());
    return info;
  }
}

export function checkSpeed(bytesPerSecond: number | bigint): void {
  if (bytesPerSecond < 0) {
    throw new BlockError('invalid', "Parameter 'speed' expects a non-negative value");
  }
}
