import { assert } from '../base/assert.js';
import type { CancelSignal } from '../base/cancel-signal.js';
import { errnoError } from '../base/error.js';

interface Held {
  readonly start: number;
  readonly end: number;
  readonly exclusive: boolean;
  /** It passes those that only wait. */
  readonly goesAhead: boolean;
  /** Waiting holders do not conflict with earlier ones but later ones queue behind them (no starvation). */
  granted: boolean;
  /** How many have passed it while it waited. */
  timesPassed: number;
  wake: (() => void) | undefined;
  /** Told once, when somebody waits for this holder. */
  wanted: (() => void) | undefined;
}

/** Nobody who waits is passed more often. */
const MOST_PASSES = 8;

/** Ends a lock; call exactly once. */
export type Release = () => void;

/**
 * Shared and exclusive locks on byte ranges, first come first served among those that overlap, but for those that go
 * ahead. The tracked requests of one node: few at a time, so a list is enough.
 */
export class RangeLock {
  readonly #held: Held[] = [];
  #exclusive = 0;

  /** No exclusive lock is held or waited for: a synchronous shared request need not look further. */
  get isFree(): boolean {
    return this.#exclusive === 0;
  }

  get isIdle(): boolean {
    return this.#held.length === 0;
  }

  /** Whether a shared lock on the range would have to wait. */
  conflictsShared(start: number, length: number): boolean {
    if (this.#exclusive === 0) return false;
    const end = start + length;
    return this.#held.some((other) => other.exclusive && other.start < end && other.end > start);
  }

  /** Whether an exclusive lock on the range would have to wait. */
  conflictsExclusive(start: number, length: number): boolean {
    const end = start + length;
    return this.#held.some((other) => other.start < end && other.end > start);
  }

  /** Errors of both: ECANCELED when `signal` is cancelled before the range is free. */
  lockShared(start: number, length: number, signal?: CancelSignal): Release | Promise<Release> {
    return this.#lock(entryOf(start, length, { exclusive: false }), signal);
  }

  /** A shared lock that is told when somebody waits for its end. */
  lockUntilWanted(start: number, length: number, wanted: () => void): Release | Promise<Release> {
    const entry = entryOf(start, length, { exclusive: false });
    entry.wanted = wanted;
    return this.#lock(entry, undefined);
  }

  lockExclusive(start: number, length: number, signal?: CancelSignal): Release | Promise<Release> {
    return this.#lock(entryOf(start, length, { exclusive: true }), signal);
  }

  /** An exclusive lock that waits for those who hold a part of the range, and passes those who wait, if not too often. */
  lockAhead(start: number, length: number): Release | Promise<Release> {
    return this.#lock(entryOf(start, length, { exclusive: true, goesAhead: true }), undefined);
  }

  #lock(entry: Held, signal: CancelSignal | undefined): Release | Promise<Release> {
    this.#held.push(entry);
    if (entry.exclusive) this.#exclusive++;
    const release = (): void => this.#release(entry);
    if (!this.#mustWait(entry)) {
      this.#grant(entry);
      return release;
    }
    for (const other of [...this.#held]) if (other.granted && conflict(other, entry)) tellWanted(other);
    if (signal) return this.#untilFree(entry, release, signal);
    return new Promise((resolve) => {
      entry.wake = () => resolve(release);
    });
  }

  #untilFree(entry: Held, release: Release, signal: CancelSignal): Promise<Release> {
    return new Promise((resolve, reject) => {
      const cancelled = (): void => {
        release();
        reject(errnoError('ECANCELED'));
      };
      if (signal.isCancelled) return cancelled();
      const forget = signal.onCancel(cancelled);
      entry.wake = () => {
        forget();
        resolve(release);
      };
    });
  }

  #mustWait(entry: Held): boolean {
    let isBefore = true;
    for (const other of this.#held) {
      if (other === entry) isBefore = false;
      else if (conflict(other, entry) && (other.granted || (isBefore && !mayPass(entry, other)))) return true;
    }
    return false;
  }

  #grant(entry: Held): void {
    entry.granted = true;
    if (entry.wanted && this.#held.some((other) => !other.granted && conflict(other, entry)))
      tellWanted(entry);
    for (const other of this.#held) {
      if (other === entry) return;
      if (!other.granted && conflict(other, entry)) other.timesPassed++;
    }
  }

  #release(entry: Held): void {
    const index = this.#held.indexOf(entry);
    assert(index >= 0, 'range lock released twice');
    this.#held.splice(index, 1);
    if (entry.exclusive) this.#exclusive--;
    for (const other of this.#held) {
      if (other.granted || !overlap(other, entry)) continue;
      if (this.#mustWait(other)) continue;
      this.#grant(other);
      other.wake?.();
    }
  }
}

function entryOf(
  start: number,
  length: number,
  { exclusive, goesAhead = false }: { exclusive: boolean; goesAhead?: boolean },
): Held {
  const end = start + length;
  return {
    start,
    end,
    exclusive,
    goesAhead,
    granted: false,
    timesPassed: 0,
    wake: undefined,
    wanted: undefined,
  };
}

function tellWanted(entry: Held): void {
  const { wanted } = entry;
  entry.wanted = undefined;
  wanted?.();
}

function overlap(a: Held, b: Held): boolean {
  return a.start < b.end && a.end > b.start;
}

function conflict(a: Held, b: Held): boolean {
  return overlap(a, b) && (a.exclusive || b.exclusive);
}

function mayPass(entry: Held, waiting: Held): boolean {
  return entry.goesAhead && waiting.timesPassed < MOST_PASSES;
}
