import type { HostClock, HostRandom, HostTimer } from './host.js';

/** Longest delay that Node's timers take; longer ones are made of several. */
const MAX_TIMER_MS = 2 ** 31 - 1;

export class RealClock implements HostClock {
  nowMs(): number {
    return performance.now();
  }

  wallClock(): { seconds: number; microseconds: number } {
    // The monotonic clock gives the microseconds, unless the wall clock was set since the start.
    const steadyMs = performance.timeOrigin + performance.now();
    const dateMs = Date.now();
    const nowMs = Math.abs(steadyMs - dateMs) < 2 ? steadyMs : dateMs;
    const seconds = Math.floor(nowMs / 1000);
    return { seconds, microseconds: Math.floor((nowMs - seconds * 1000) * 1000) };
  }

  setTimer(delayMs: number, callback: () => void): HostTimer {
    const endMs = this.nowMs() + delayMs;
    let timer: NodeJS.Timeout;
    const arm = (): void => {
      const leftMs = endMs - this.nowMs();
      timer = setTimeout(leftMs > MAX_TIMER_MS ? arm : callback, Math.min(Math.max(leftMs, 0), MAX_TIMER_MS));
    };
    arm();
    return { cancel: () => clearTimeout(timer) };
  }

  sleep(delayMs: number): Promise<void> {
    return new Promise((resolve) => this.setTimer(delayMs, resolve));
  }

  macrotask(): Promise<void> {
    return new Promise((resolve) => setImmediate(resolve));
  }

  defer(callback: () => void): void {
    setImmediate(callback);
  }
}

export class RealRandom implements HostRandom {
  below(bound: number): number {
    return Math.floor(Math.random() * bound);
  }

  /** node:crypto is loaded when it is first needed: that takes longer than many a command. */
  bytes(length: number): Buffer {
    return process.getBuiltinModule('node:crypto').randomBytes(length);
  }
}
