/**
 * Of the time, that looks at a server take: one with 500 images spends up to half as much of processors' time again, on other
 * threads, and is to have less than 3% of one taken away.
 */
const MOST_PART = 1 / 50;
/** However long a look takes, so long after it another may come. */
const MOST_REST_MS = 5000;
/** From look to look where they cost little. */
export const LOOK_MS = 1000;

/** When to look again: events may ask for looks at any rate, and a look costs the server what it costs. */
export class LookPace {
  #restedMs = 0;

  ended(beginMs: number, endMs: number): void {
    this.#restedMs = endMs + Math.min(MOST_REST_MS, (endMs - beginMs) * (1 / MOST_PART - 1));
  }

  /** The time of a look that somebody wants `delayMs` from now. */
  dueMs(nowMs: number, delayMs: number): number {
    return Math.max(nowMs + delayMs, this.#restedMs);
  }
}
