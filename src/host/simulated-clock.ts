import { BlockError } from '../base/error.js';
import type { HostClock, HostTimer } from './host.js';

interface Event {
  timeMs: number;
  sequence: number;
  callback: (() => void) | undefined;
}

/** Reading the clock takes this long, so that a loop that waits for a time ends. */
const READING_MS = 0.001;
/** Steps that one turn of the real event loop makes, each with its microtasks. */
const STEPS_PER_TURN = 32;
/** 2026-01-01 in seconds: where every simulation's wall clock begins. */
export const EPOCH_SECONDS = 1_767_225_600;

/** Virtual time: a queue of events that run() works off in order of time. Nothing waits for real time. */
export class EventQueue {
  #nowMs: number;
  #sequence = 0;
  readonly #heap: Event[] = [];

  constructor(startMs = 0) {
    this.#nowMs = startMs;
  }

  get nowMs(): number {
    return this.#nowMs;
  }

  read(): number {
    this.#nowMs += READING_MS;
    return this.#nowMs;
  }

  schedule(delayMs: number, callback: () => void): HostTimer {
    const event: Event = {
      timeMs: this.#nowMs + Math.max(delayMs, 0),
      sequence: this.#sequence++,
      callback,
    };
    this.#push(event);
    return { cancel: () => (event.callback = undefined) };
  }

  /**
   * Runs `body` and the events it waits for, until it settles; what it leaves behind stays queued for the next run.
   * Between two events all microtasks run. Fails when it waits and nothing is left to happen for `stuckAfterMs`
   * of real time (work in Node's own pool, such as zlib's, may still come).
   */
  async run<T>(body: () => Promise<T>, stuckAfterMs: number): Promise<T> {
    let settled = false;
    const result = body().finally(() => (settled = true));
    result.catch(() => undefined);
    let idleSince: number | undefined;
    while (!settled) {
      const ran = await this.#turn(() => settled);
      if (settled) break;
      if (ran > 0) {
        idleSince = undefined;
        continue;
      }
      idleSince ??= performance.now();
      if (performance.now() - idleSince > stuckAfterMs)
        throw new BlockError('timeout', 'the simulation waits for something that will not happen');
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    return result;
  }

  /** Up to STEPS_PER_TURN events, one in each setImmediate callback: microtasks run between those. */
  #turn(isSettled: () => boolean): Promise<number> {
    return new Promise((resolve, reject) => {
      let ran = 0;
      for (let step = 1; step <= STEPS_PER_TURN; step++) {
        setImmediate(() => {
          try {
            if (!isSettled() && this.#step()) ran++;
          } catch (error) {
            reject(error instanceof Error ? error : new Error(String(error)));
          }
          if (step === STEPS_PER_TURN) resolve(ran);
        });
      }
    });
  }

  #step(): boolean {
    for (let event = this.#pop(); event; event = this.#pop()) {
      if (!event.callback) continue;
      this.#nowMs = Math.max(this.#nowMs, event.timeMs);
      event.callback();
      return true;
    }
    return false;
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let at = heap.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = event;
  }

  #pop(): Event | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (!first || !last || heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.timeMs < b.timeMs || (a.timeMs === b.timeMs && a.sequence < b.sequence);
}

/** The clock of one boot of the simulated machine: after the power is gone its timers stay silent. */
export class SimulatedClock implements HostClock {
  readonly #queue: EventQueue;
  readonly #isAlive: () => boolean;

  constructor(queue: EventQueue, isAlive: () => boolean) {
    this.#queue = queue;
    this.#isAlive = isAlive;
  }

  nowMs(): number {
    return this.#queue.read();
  }

  wallClock(): { seconds: number; microseconds: number } {
    const micros = Math.floor(this.#queue.read() * 1000);
    const seconds = Math.floor(micros / 1e6);
    return { seconds: EPOCH_SECONDS + seconds, microseconds: micros - seconds * 1e6 };
  }

  setTimer(delayMs: number, callback: () => void): HostTimer {
    return this.#queue.schedule(delayMs, () => {
      if (this.#isAlive()) callback();
    });
  }

  sleep(delayMs: number): Promise<void> {
    return new Promise((resolve) => this.setTimer(delayMs, resolve));
  }

  macrotask(): Promise<void> {
    return this.sleep(0);
  }

  defer(callback: () => void): void {
    this.setTimer(0, callback);
  }
}
