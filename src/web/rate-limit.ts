import type { HostClock } from '../host/host.js';

/** So many requests at once, and so many a second from then on, for each who asks. */
export class RequestLimit {
  readonly #clock: HostClock;
  readonly #burst: number;
  readonly #perSecond: number;
  readonly #left = new Map<string, { tokens: number; ms: number }>();

  constructor(clock: HostClock, { burst, perSecond }: { burst: number; perSecond: number }) {
    this.#clock = clock;
    this.#burst = burst;
    this.#perSecond = perSecond;
  }

  /** Whether one more is taken. */
  take(who: string): boolean {
    const now = this.#clock.nowMs();
    const last = this.#left.get(who) ?? { tokens: this.#burst, ms: now };
    const tokens = Math.min(this.#burst, last.tokens + ((now - last.ms) / 1000) * this.#perSecond);
    this.#left.set(who, { tokens: tokens < 1 ? tokens : tokens - 1, ms: now });
    return tokens >= 1;
  }
}
