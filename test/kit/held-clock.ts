import type { Host, HostClock, HostTimer } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';

/** Timers from here on are a job's rest, and the patience of others with one: on a busy machine that ends too early. */
export const PATIENT_MS = 50;

interface Ring {
  readonly atMs: number;
  readonly ring: () => void;
}

/**
 * A clock that stands until a test lets time pass, so that nothing is over too early on a busy machine. Timers of less than
 * `fromMs` ring by the real one: what is no test's affair goes on.
 */
export class HeldClock implements HostClock {
  readonly #real: HostClock;
  readonly #fromMs: number;
  #nowMs = 1000;
  #rings: readonly Ring[] = [];

  constructor(real: HostClock, fromMs = 0) {
    this.#real = real;
    this.#fromMs = fromMs;
  }

  /** Timers that are due by then ring, the earliest first. */
  pass(ms: number): void {
    this.#nowMs += ms;
    const due = this.#rings.filter(({ atMs }) => atMs <= this.#nowMs).sort((a, b) => a.atMs - b.atMs);
    for (const entry of due) if (this.#remove(entry)) entry.ring();
  }

  /** Whether it was there. */
  #remove(entry: Ring): boolean {
    const before = this.#rings.length;
    this.#rings = this.#rings.filter((other) => other !== entry);
    return this.#rings.length < before;
  }

  nowMs(): number {
    return this.#nowMs;
  }

  wallClock(): { seconds: number; microseconds: number } {
    return this.#real.wallClock();
  }

  setTimer(delayMs: number, ring: () => void): HostTimer {
    if (delayMs < this.#fromMs) return this.#real.setTimer(delayMs, ring);
    const entry = { atMs: this.#nowMs + delayMs, ring };
    this.#rings = [...this.#rings, entry];
    return { cancel: () => void this.#remove(entry) };
  }

  sleep(delayMs: number): Promise<void> {
    return this.#real.sleep(delayMs);
  }

  macrotask(): Promise<void> {
    return this.#real.macrotask();
  }

  defer(callback: () => void): void {
    this.#real.defer(callback);
  }
}

/** The real host, but for timers of `fromMs` and more, which never ring. */
export function withHeldClock(fromMs: number): Host {
  const host = createRealHost();
  return { ...host, clock: new HeldClock(host.clock, fromMs) };
}
