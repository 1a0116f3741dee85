import { Notifier } from '../base/async.js';
import { assert } from '../base/assert.js';
import type { BlockBackend } from '../block/backend.js';
import type { BackendUser } from '../block/backend-user.js';
import type { Graph } from '../block/graph.js';
import type { HostClock } from '../host/host.js';
import { JobCancelled } from './job-errors.js';
import type { RateLimit } from './rate-limit.js';

/** A job works this long before it gives way to guests and monitors. */
const TURN_MS = 4;
/** Most that a drained section waits for requests elsewhere, so that a job that rests shows itself paused in it. */
const SHOWN_MS = 50;

export interface JobPaceOptions {
  readonly graph: Graph;
  readonly limit: RateLimit;
  /** It has come to a pause point; answers what is to be called when it goes on. */
  readonly paused: () => () => void;
}

/** When a job works, when it gives way to others, and when it rests: for the user, and in drained sections. */
export class JobPace {
  readonly #options: JobPaceOptions;
  readonly #clock: HostClock;
  /** Drained sections, and the user, that want it to rest. */
  #drains = 0;
  #userPaused = false;
  /** Another process is to go on with it. */
  #isToStayStill = false;
  /** No request of its own in flight, and none starts: a drained section need not wait for it. */
  #atRest = true;
  /** At a pause point. */
  #isPaused = false;
  /** In restUntil(). */
  #isWaiting = false;
  #sleeping = false;
  /** A drained section has begun; before it goes on, the job shows itself paused, as QEMU's does, unless it is held up. */
  #goesToRest = false;
  #isLate = false;
  #cancelled = false;
  #turnStartedMs = 0;
  readonly #backends: BlockBackend[] = [];
  readonly #kicked = new Notifier();

  constructor(options: JobPaceOptions) {
    this.#options = options;
    this.#clock = options.graph.host.clock;
  }

  // ---- drained sections

  /**
   * For the backends of this job: drained sections make it rest, but they wait only for its requests to the nodes that
   * they hold. What it has in flight elsewhere may take long.
   */
  readonly backendUser: BackendUser = {
    drainBegin: () => this.drainBegin(),
    isBusy: () => this.#goesToRest && !this.#isHeldUp(),
    drainEnd: () => this.drainEnd(),
  };

  /** What it makes its requests through. */
  uses(backend: BlockBackend): void {
    this.#backends.push(backend);
  }

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
      this.#options.graph.notifyIdle();
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

  /** In a drained section that the job entered at rest: it works again once nobody else drains it. */
  async wakeInSection(): Promise<void> {
    while (this.#drains > 0) await this.#kicked.wait();
    this.#atRest = false;
  }

  // ---- what the user and the job's end ask

  get isCancelled(): boolean {
    return this.#cancelled;
  }

  get isUserPaused(): boolean {
    return this.#userPaused;
  }

  set isUserPaused(isPaused: boolean) {
    this.#userPaused = isPaused;
    this.#kicked.notify();
  }

  cancel(): void {
    this.#cancelled = true;
    this.isUserPaused = false;
  }

  /** It has something to do, or waits for requests. */
  get isBusy(): boolean {
    return !this.#atRest && !this.#sleeping;
  }

  /** It is to rest for longer than a drained section. */
  get isAskedToRest(): boolean {
    return this.#userPaused || this.#isToStayStill;
  }

  /** Anyone wants it to rest. */
  get wantsRest(): boolean {
    return this.#drains > 0 || this.isAskedToRest;
  }

  // ---- another process

  /** It comes to rest, with nothing in flight; while it changes the graph it does that first. The answer ends that. */
  keepStill(): () => void {
    this.#isToStayStill = true;
    this.#kicked.notify();
    return () => {
      this.#isToStayStill = false;
      this.#kicked.notify();
    };
  }

  /** It is at a pause point. */
  get isPaused(): boolean {
    return this.#isPaused;
  }

  /** It has nothing to do but wait for an event: its group, or the user. */
  get isWaiting(): boolean {
    return this.#isWaiting;
  }

  // ---- what the job does itself

  start(): void {
    this.#atRest = false;
    this.#turnStartedMs = this.#clock.nowMs();
  }

  /** Nothing in flight from here on: over, or entering a drained section of its own. */
  rest(): void {
    this.#atRest = true;
    this.#goesToRest = false;
    this.#options.graph.notifyIdle();
  }

  /** Nothing in flight until `event`, or until it is cancelled (throws JobCancelled). */
  async restUntil(event: Promise<unknown>): Promise<void> {
    this.rest();
    this.#isWaiting = true;
    await Promise.race([event, this.#kicked.until(() => this.#cancelled)]);
    this.#isWaiting = false;
    if (this.#cancelled) throw new JobCancelled();
    this.#atRest = false;
  }

  /** Whether checkpoint() has anything to do; cheap. */
  get needsCheckpoint(): boolean {
    if (this.#cancelled || this.wantsRest) return true;
    const now = this.#clock.nowMs();
    return now - this.#turnStartedMs > TURN_MS || this.#options.limit.delayMs(now) > 0;
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
      if (this.wantsRest) {
        await quiet();
        await this.pausePoint();
        continue;
      }
      const delay = this.#options.limit.delayMs(this.#clock.nowMs());
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
    this.#options.graph.notifyIdle();
  }

  /** Rests while anyone wants it to; the caller has no request in flight. */
  async pausePoint(): Promise<void> {
    if (this.wantsRest && !this.#cancelled) await this.restAgain(this.#options.paused());
  }

  /** The same of one that is seen at a pause point already, which `goOn` ends. */
  async restAgain(goOn: () => void): Promise<void> {
    this.#isPaused = true;
    this.rest();
    // Not at rest from the same moment on: another section may begin in the next.
    while (this.wantsRest && !this.#cancelled) await this.#kicked.wait();
    this.#atRest = false;
    goOn();
    this.#isPaused = false;
    this.#kicked.notify();
  }

  /** Resolves when it does not rest at a pause point, or has a reason to. */
  async untilAwake(): Promise<void> {
    await this.#kicked.until(() => !this.#isPaused || this.wantsRest);
  }

  /** Waits for `ms`, or until something happens to the job (kick, pause, cancel). */
  async sleep(ms: number): Promise<void> {
    if (!this.wantsRest && !this.#cancelled) await this.#nap(ms);
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
}

/** Has requests where no section holds it. */
function isElsewhere(backend: BlockBackend): boolean {
  return backend.hasRequests && !backend.isQuiesced;
}
