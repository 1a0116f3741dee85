/** Latencies of one kind of request, over about the last interval. */
interface TimeWindow {
  endMs: number;
  count: number;
  sumMs: number;
  leastMs: number;
  mostMs: number;
}

/** For another process. A type alias: it is JSON. */
type PassedWindow = { endsInMs: number; count: number; sumMs: number; leastMs: number; mostMs: number };
export type PassedInterval = { [operation in TimedOperation]: PassedWindow[] };

export interface IntervalLatencies {
  count: number;
  sumMs: number;
  leastMs: number;
  mostMs: number;
  /** How long these were looked at. */
  elapsedMs: number;
}

/**
 * Two windows of the interval's length, which begin half an interval apart; what is told is the older one's, so it covers half an
 * interval at least, and no more than the whole.
 */
class SlidingWindows {
  readonly #lengthMs: number;
  #older: TimeWindow;
  #newer: TimeWindow;

  constructor(lengthMs: number, nowMs: number) {
    this.#lengthMs = lengthMs;
    this.#older = emptyWindow(nowMs + lengthMs / 2);
    this.#newer = emptyWindow(nowMs + lengthMs);
  }

  add(tookMs: number, nowMs: number): void {
    this.#advance(nowMs);
    for (const window of [this.#older, this.#newer]) {
      window.count++;
      window.sumMs += tookMs;
      window.leastMs = Math.min(window.leastMs, tookMs);
      window.mostMs = Math.max(window.mostMs, tookMs);
    }
  }

  /** Ends are from `nowMs` on: another process has another clock. */
  passed(nowMs: number): PassedWindow[] {
    return [this.#older, this.#newer].map(({ endMs, leastMs, ...window }) => ({
      ...{ ...window, leastMs: window.count === 0 ? 0 : leastMs, endsInMs: endMs - nowMs },
    }));
  }

  goOnFrom([older, newer]: readonly PassedWindow[], nowMs: number): void {
    if (older) this.#older = windowFrom(older, nowMs);
    if (newer) this.#newer = windowFrom(newer, nowMs);
  }

  look(nowMs: number): IntervalLatencies {
    this.#advance(nowMs);
    const { count, sumMs, leastMs, mostMs, endMs } = this.#older;
    const elapsedMs = nowMs - (endMs - this.#lengthMs);
    return { count, sumMs, leastMs: count === 0 ? 0 : leastMs, mostMs, elapsedMs };
  }

  #advance(nowMs: number): void {
    if (nowMs >= this.#newer.endMs) {
      // Both are over: as many halves of an interval later as have gone by.
      const halfMs = this.#lengthMs / 2;
      const halves = Math.floor((nowMs - this.#newer.endMs) / halfMs) + 1;
      this.#older = emptyWindow(this.#newer.endMs + halves * halfMs);
      this.#newer = emptyWindow(this.#older.endMs + halfMs);
      return;
    }
    if (nowMs < this.#older.endMs) return;
    this.#older = this.#newer;
    this.#newer = emptyWindow(this.#older.endMs + this.#lengthMs / 2);
  }
}

function windowFrom({ endsInMs, leastMs, ...window }: PassedWindow, nowMs: number): TimeWindow {
  return { ...window, leastMs: window.count === 0 ? Infinity : leastMs, endMs: nowMs + endsInMs };
}

function emptyWindow(endMs: number): TimeWindow {
  return { endMs, count: 0, sumMs: 0, leastMs: Infinity, mostMs: 0 };
}

/** The operations that intervals tell. */
export type TimedOperation = 'read' | 'write' | 'flush';

/** What query-blockstats tells of one interval (`timed_stats`). */
export class IntervalStatistics {
  readonly seconds: number;
  readonly #windows: Readonly<Record<TimedOperation, SlidingWindows>>;

  constructor(seconds: number, nowMs: number) {
    this.seconds = seconds;
    const windows = (): SlidingWindows => new SlidingWindows(seconds * 1000, nowMs);
    this.#windows = { read: windows(), write: windows(), flush: windows() };
  }

  add(operation: TimedOperation, tookMs: number, nowMs: number): void {
    this.#windows[operation].add(tookMs, nowMs);
  }

  /** For one of another process, of as many seconds. */
  passed(nowMs: number): PassedInterval {
    const { read, write, flush } = this.#windows;
    return { read: read.passed(nowMs), write: write.passed(nowMs), flush: flush.passed(nowMs) };
  }

  /** This one goes on from there. */
  goOnFrom({ read, write, flush }: PassedInterval, nowMs: number): void {
    this.#windows.read.goOnFrom(read, nowMs);
    this.#windows.write.goOnFrom(write, nowMs);
    this.#windows.flush.goOnFrom(flush, nowMs);
  }

  look(operation: TimedOperation, nowMs: number): IntervalLatencies {
    return this.#windows[operation].look(nowMs);
  }
}
