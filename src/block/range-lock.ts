import { assert } from '../base/assert.js';
import type { CancelSignal } from '../base/cancel-signal.js';
import { errnoError } from '../base/error.js';

interface Held {
  readonly start: number;
  readonly end: number;
  readonly exclusive: boolean;
  /** Waiting holders do not conflict with earlier ones but later ones queue behind them (no starvation). */
  granted: boolean;
  wake: (() => void) | undefined;
}

/** Ends a lock; call exactly once. */
export type Release = () => void;

/**
 * Shared and exclusive locks on byte ranges, first come first served among those that overlap. The tracked
 * requests of one node: few at a time, so a list is enough.
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
    const entry = { start, end: start + length, exclusive: false, granted: false, wake: undefined };
    return this.#lock(entry, signal);
  }

  lockExclusive(start: number, length: number, signal?: CancelSignal): Release | Promise<Release> {
    const entry = { start, end: start + length, exclusive: true, granted: false, wake: undefined };
    return this.#lock(entry, signal);
  }

  #lock(entry: Held, signal: CancelSignal | undefined): Release | Promise<Release> {
    this.#held.push(entry);
    if (entry.exclusive) this.#exclusive++;
    const release = (): void => this.#release(entry);
    if (!this.#mustWait(entry)) {
      entry.granted = true;
      return release;
    }
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
    for (const other of this.#held) {
      if (other === entry) return false;
      const overlaps = other.start < entry.end && other.end > entry.start;
      if (overlaps && (other.exclusive || entry.exclusive)) return true;
    }
    return false;
  }

  #release(entry: Held): void {
    const index = this.#held.indexOf(entry);
    assert(index >= 0, 'range lock released twice');
    this.#held.splice(index, 1);
    if (entry.exclusive) this.#exclusive--;
    for (const other of this.#held) {
      if (other.granted || other.end <= entry.start || other.start >= entry.end) continue;
      if (this.#mustWait(other)) continue;
      other.granted = true;
      other.wake?.();
    }
  }
}
