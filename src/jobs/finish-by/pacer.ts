import { AsyncMutex, Notifier } from '../../base/async.js';
import type { HostClock } from '../../host/host.js';

/** How far somebody may be ahead of the pace. */
const AHEAD_MS = 20;
/** Nobody waits longer than this, and no more is owed: what a pace cannot have by then is not kept. */
export const MOST_WAIT_MS = 1000;

/** Lets bytes pass at a rate, in the order in which they came; a wait is for what passed before. */
export class Pacer {
  readonly #clock: HostClock;
  #bytesPerSecond = 0;
  /** When all that passed will have been due. */
  #freeMs = 0;
  readonly #line = new AsyncMutex();
  /** Somebody's time has come, or the rate is another. */
  readonly #changed = new Notifier();

  constructor(clock: HostClock) {
    this.#clock = clock;
  }

  get isPacing(): boolean {
    return this.#bytesPerSecond > 0;
  }

  /** 0: all pass at once, also those that wait. */
  set bytesPerSecond(rate: number) {
    const nowMs = this.#clock.nowMs();
    const owedMs = this.#freeMs - nowMs;
    if (rate === 0) this.#freeMs = 0;
    else if (owedMs > 0)
      this.#freeMs = Math.min(nowMs + (owedMs * this.#bytesPerSecond) / rate, nowMs + MOST_WAIT_MS);
    this.#bytesPerSecond = rate;
    this.#changed.notify();
  }

  /** How long what comes next is to wait. */
  delayMs(): number {
    return this.isPacing ? Math.max(0, this.#freeMs - this.#clock.nowMs()) : 0;
  }

  /** So much passes, now. */
  spend(lengthBytes: number): void {
    if (!this.isPacing || lengthBytes === 0) return;
    const nowMs = this.#clock.nowMs();
    const beganMs = Math.max(this.#freeMs, nowMs - AHEAD_MS);
    this.#freeMs = Math.min(beganMs + (lengthBytes * 1000) / this.#bytesPerSecond, nowMs + MOST_WAIT_MS);
  }

  /** Waits until it is its turn, MOST_WAIT_MS at most, and passes. */
  async take(lengthBytes: number): Promise<void> {
    if (!this.isPacing) return;
    const latestMs = this.#clock.nowMs() + MOST_WAIT_MS;
    await this.#line.run(async () => {
      await this.#untilFree(latestMs);
      this.spend(lengthBytes);
    });
  }

  async #untilFree(latestMs: number): Promise<void> {
    for (;;) {
      const waitMs = Math.min(this.delayMs(), latestMs - this.#clock.nowMs());
      if (waitMs <= 0) return;
      const changed = this.#changed.wait();
      const timer = this.#clock.setTimer(waitMs, () => this.#changed.notify());
      await changed;
      timer.cancel();
    }
  }
}
