import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import type { Json } from '../block/driver.js';
import type { Stretch } from '../block/dirty-bitmap.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import type { Host } from '../host/host.js';
import { ErrorHandling, type ErrorPolicy, type IoStatus } from './error-policy.js';
import type { JobGroup } from './job-group.js';
import { type CopyMode, isBlockJobType, type JobDriver, type JobType } from './job-driver.js';
import { asError, type FailureFate, JobCancelled, JobIoError } from './job-errors.js';
import { JobLife } from './job-life.js';
import { JobPace } from './job-pace.js';
import type { JobPlace } from './job-graph.js';
import type { JobJournal } from './persisted/job-journal.js';
import { JobCourse } from './job-course.js';
import type { DetailedProgress, JobProgress, WorkPhase } from './job-progress.js';
import type { EndedJob, PassedJob } from './passed/passed-job.js';
import { endedJob, passedJob, passRefusal } from './passed/pass-job.js';
import type { JobPlan } from './plans/plan.js';
import { checkSpeed, RateLimit } from './rate-limit.js';
import { blockJobInfo, jobInfo, progressInfo } from './job-info.js';
import { checkVerb, goesOn, type JobStatus } from './state.js';

export type EmitEvent = (event: string, data: { [key: string]: Json }) => void;

export interface JobProperties {
  id: string;
  speed?: number | bigint;
  autoFinalize?: boolean;
  autoDismiss?: boolean;
  /** What follows an error of a request to the source, and of one to the target; default: report. */
  onReadError?: ErrorPolicy;
  onWriteError?: ErrorPolicy;
  /** What it is to do, where that is told as a plan. */
  plan?: JobPlan;
  /** It goes on with what it did in another process. */
  from?: PassedJob;
}

/** One job: its status, and the verbs of QMP. */
export class Job {
  readonly id: string;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  readonly plan: JobPlan | undefined;
  readonly from: PassedJob | undefined;
  readonly limit: RateLimit;
  /** For the job's own loop: when to give way, and when to rest. */
  readonly pace: JobPace;
  readonly #errors: ErrorHandling;
  readonly #graph: Graph;
  readonly #emit: EmitEvent;
  /** What is kept of it, so that it can be gone on with. */
  kept: JobJournal | undefined;
  /** With whom it ends well or not at all. */
  group: JobGroup | undefined;
  #driver: JobDriver | undefined;
  #ending: 'complete' | 'freeze' | undefined;
  readonly #life: JobLife;
  readonly #course: JobCourse;

  constructor(properties: JobProperties, graph: Graph, emit: EmitEvent, forget: (job: Job) => void) {
    this.id = properties.id;
    this.autoFinalize = properties.autoFinalize ?? true;
    this.autoDismiss = properties.autoDismiss ?? true;
    this.limit = new RateLimit(properties.speed ?? 0);
    const { onReadError = 'report', onWriteError = 'report' } = properties;
    this.#errors = new ErrorHandling({ read: onReadError, write: onWriteError });
    this.pace = new JobPace({ graph, limit: this.limit, paused: () => this.#life.pauses() });
    this.#life = new JobLife(this, emit, forget);
    this.#course = new JobCourse(graph.host.clock, () => ({
      work: this.#work().progress(),
      status: this.status,
      isHeld: this.pace.wantsRest,
      isBackup: this.type === 'backup',
    }));
    this.#graph = graph;
    this.#emit = emit;
    this.plan = properties.plan;
    this.from = properties.from;
    if (properties.from) this.#comesFrom(properties.from);
  }

  #comesFrom(passed: PassedJob): void {
    const { isUserPaused, ending, ioStatus, course } = passed;
    this.#life.comesFrom(passed);
    this.#ending = ending;
    this.#errors.restore(ioStatus);
    this.pace.isUserPaused = isUserPaused;
    if (course) this.#course.restore(course);
  }

  get host(): Host {
    return this.#graph.host;
  }

  get status(): JobStatus {
    return this.#life.status;
  }

  get type(): JobType {
    return this.#work().type;
  }

  /** Where it is in the graph. */
  get place(): JobPlace | undefined {
    return this.#driver?.place;
  }

  /** The path of what is kept of it. */
  get journal(): string | undefined {
    return this.kept?.path;
  }

  /** What is not to be deleted until the job is dismissed. */
  get heldNode(): Node | undefined {
    return this.#driver?.heldNode;
  }

  /** Of a disk that is in use: it has events of its own, and query-block-jobs lists it. */
  get isBlockJob(): boolean {
    return isBlockJobType(this.type);
  }

  get isCancelled(): boolean {
    return this.pace.isCancelled;
  }

  get error(): string | undefined {
    return this.#life.outcome.error;
  }

  /** How it has ended; undefined: it has not, or it never began. */
  get end(): 'completed' | 'failed' | undefined {
    return this.#life.outcome.end;
  }

  /** Why it fails, from the moment on when it does. */
  get failureText(): string | undefined {
    return this.#life.outcome.failureText;
  }

  get isOver(): boolean {
    return this.status === 'concluded' || this.status === 'null';
  }

  /** Resolves when it has concluded (whether or not it was dismissed). */
  get concluded(): Promise<void> {
    return this.#life.outcome.concluded;
  }

  /**
   * Resolves when it has ended well. Aborting `signal` cancels it by force. Errors, when it has ended: BlockError, kind
   * cancelled, or that of the request that failed (with its errno and cause).
   */
  result({ signal }: { signal?: AbortSignal } = {}): Promise<void> {
    return this.#life.outcome.result(() => void this.cancelNow(), signal);
  }

  /** Somebody has asked for its end, or it does what comes last. */
  get isEnding(): boolean {
    return (
      this.#ending !== undefined || this.isCancelled || this.#life.outcome.hasFailed || !goesOn(this.status)
    );
  }

  /** It is READY, or it was. */
  get wasReady(): boolean {
    return this.#life.wasReady;
  }

  get ioStatus(): IoStatus {
    return this.#errors.ioStatus;
  }

  get isReady(): boolean {
    return this.status === 'ready' || this.status === 'standby';
  }

  /** How far it is, now. */
  progress(): JobProgress {
    return this.#course.progress();
  }

  /** The same, with what it did in each stage and when it will be done. Nothing of what is done goes back. */
  detailedProgress(): DetailedProgress {
    return this.#course.detailed();
  }

  /** For drivers: what the job is at from now on. */
  enter(phase: WorkPhase): void {
    this.#course.enter(phase);
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
    this.#life.announce();
  }

  /** A job that could not be started: it never was. */
  abandon(): void {
    this.#life.abandon();
  }

  /** A job that was announced and in its place, and is not to be started. */
  withdrawn(): void {
    this.#life.withdrawn();
  }

  /** One that has ended in another process, and waits to be dismissed. */
  endedElsewhere(ended: EndedJob): void {
    this.#life.endedElsewhere(ended);
    this.#errors.restore(ended.ioStatus);
    if (ended.course) this.#course.restore(ended.course);
  }

  /** Goes on with what it did in another process. */
  goOn(): void {
    this.pace.start();
    this.#tellRest();
    void this.#life.live(this.#work());
  }

  /** Begins the work; its end shows in events and `concluded`. */
  start(): void {
    this.pace.start();
    this.#course.begin();
    this.#life.begin();
    void this.#life.live(this.#work());
  }

  /** For its life: what it has done in all is known. */
  workIsDone(): void {
    this.#course.look();
  }

  // ---- another process that goes on with it

  /** Why none can; undefined: one can, once it is still. */
  get passRefusal(): string | undefined {
    return passRefusal(this, this.#work(), this.#ending);
  }

  /** Nothing is in flight, and nothing begins. */
  get isStill(): boolean {
    return this.isOver || this.type === 'create' || this.pace.isPaused || this.pace.isWaiting;
  }

  /** It comes to rest, and holds no guest back any more; the answer ends that. */
  keepStill(): () => void {
    const goOn = this.pace.keepStill();
    this.#tellRest();
    return () => {
      goOn();
      this.#tellRest();
    };
  }

  /** It is still, and so are guests. `groups`: of all jobs, by their places there. */
  passed(groups: JobGroup[]): PassedJob {
    return passedJob(this, this.#work(), { ending: this.#ending, course: this.#course.passed(), groups });
  }

  /** One that is over. */
  ended(): EndedJob {
    return endedJob(this, this.#work(), this.#course.passed());
  }

  // ---- for drivers

  /** So much data is being copied: it costs of the rate limit. */
  spend(bytes: number): void {
    this.limit.spend(bytes);
    this.#course.copied(bytes);
  }

  /** The mirror has caught up. */
  becomeReady(): void {
    this.#life.becomesReady();
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
    if (this.#errors.isToTell(action, this.#work().tellsEachError === true))
      this.#emit('BLOCK_JOB_ERROR', { device: this.id, operation, action });
    if (action === 'stop') {
      this.#errors.stoppedFor(cause);
      this.#setPaused(true);
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
    checkVerb(this.id, this.status, 'pause');
    if (this.pace.isUserPaused) throw new BlockError('invalid', 'Job is already paused');
    this.#setPaused(true);
  }

  resume(): void {
    if (!this.pace.isUserPaused) throw new BlockError('invalid', "Can't resume a job that was not paused");
    checkVerb(this.id, this.status, 'resume');
    this.#errors.resumed();
    this.#setPaused(false);
  }

  #setPaused(isPaused: boolean): void {
    this.pace.isUserPaused = isPaused;
    this.#tellRest();
  }

  #tellRest(): void {
    this.#work().restChanged?.(this.pace.isAskedToRest);
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
    checkVerb(this.id, this.status, 'cancel');
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

  /**
   * For a guest that has stopped, and is to go on elsewhere: a READY mirror stays, with nothing left to copy, when the
   * source becomes another's. Answers what it copies to; undefined where the job cannot stay, or ends: what one holds that
   * was cancelled softly is of before the guest stopped. Errors: those of a flush.
   */
  async settle(): Promise<Node | undefined> {
    const mayStay = this.type === 'mirror' && this.isReady && !this.isEnding;
    return mayStay ? this.#work().settle?.() : undefined;
  }

  /** For the end of the program: whatever the status. Resolves when the job is over. */
  async cancelNow(): Promise<void> {
    if (this.status !== 'concluded' && this.status !== 'null') this.#forceCancel();
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
    checkVerb(this.id, this.status, 'complete');
    const driver = this.#work();
    if (!driver.complete || this.isCancelled || this.#ending === 'freeze') {
      throw new BlockError('invalid', `The active block job '${this.id}' cannot be completed`);
    }
    if (this.#ending === 'complete') return;
    driver.complete();
    this.#ending = 'complete';
    this.pace.kick();
  }

  /** block-job-change; of other jobs than mirrors it says the mode that none is. */
  change(mode: CopyMode): void {
    checkVerb(this.id, this.status, 'change');
    const driver = this.#work();
    if (!driver.changeCopyMode) throw new BlockError('invalid', 'Job type does not support change');
    driver.changeCopyMode(mode);
    this.pace.kick();
  }

  finalize(): void {
    checkVerb(this.id, this.status, 'finalize');
    if (this.group) this.group.finalize();
    else this.#life.finalize();
  }

  dismiss(): void {
    checkVerb(this.id, this.status, 'dismiss');
    this.#life.dismiss();
  }

  /** Bytes per second, 0 without limit; at once effective. Resolves when who goes on with the job later finds it, too. */
  setSpeed(bytesPerSecond: number | bigint): Promise<void> | undefined {
    checkVerb(this.id, this.status, 'set-speed');
    checkSpeed(bytesPerSecond);
    this.limit.bytesPerSecond = bytesPerSecond;
    this.pace.kick();
    return this.kept?.speedChanged(bytesPerSecond);
  }

  /** The member `x-progress` of queries. */
  progressInfo(): { [key: string]: Json } {
    return { ...progressInfo(this.detailedProgress()), ...this.#work().moreProgress?.() };
  }

  /** What query-block-jobs says of jobs of its type alone. */
  details(): { [key: string]: Json } {
    return this.#work().details?.() ?? {};
  }

  /** A member of query-block-jobs. */
  blockJobInfo(hasExtensions = false): { [key: string]: Json } {
    return blockJobInfo(this, hasExtensions);
  }

  /** A member of query-jobs. */
  jobInfo(hasExtensions = false): { [key: string]: Json } {
    return jobInfo(this, hasExtensions);
  }
}
