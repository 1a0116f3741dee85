/** A write to the page cache that takes longer met writeback, or the kernel's limit of dirty pages. */
const SLOW_MS = 4;
const LEAST_AWAY_MS = 20;
const MOST_AWAY_MS = 320;
/** So many quick writes in a row make up for slow ones. */
const QUICK_AGAIN = 64;

/** How long synchronous writes, of all files together, may keep the event loop in one turn. */
export class TurnBudget {
  readonly #msPerTurn: number;
  #spentMs = 0;
  #armed = false;

  constructor(msPerTurn: number) {
    this.#msPerTurn = msPerTurn;
  }

  get isSpent(): boolean {
    return this.#spentMs >= this.#msPerTurn;
  }

  spend(ms: number): void {
    this.#spentMs += ms;
    if (this.#armed) return;
    this.#armed = true;
    setImmediate(() => {
      this.#armed = false;
      this.#spentMs = 0;
    });
  }
}

/**
 * Whether a file's writes are quick enough to be made on the event loop. A single slow one may be chance (another
 * process had the processor); each that follows soon sends the file's writes to the pool for longer.
 */
export class SyncWrites {
  readonly #budget: TurnBudget;
  #awayUntilMs = 0;
  #awayMs = 0;
  #quickOnes = 0;

  constructor(budget: TurnBudget) {
    this.#budget = budget;
  }

  mayWrite(nowMs: number): boolean {
    return !this.#budget.isSpent && nowMs >= this.#awayUntilMs;
  }

  /** Tells how long a write took. */
  wrote(startMs: number, endMs: number): void {
    const ms = endMs - startMs;
    this.#budget.spend(ms);
    if (ms <= SLOW_MS) {
      if (this.#awayMs > 0 && ++this.#quickOnes === QUICK_AGAIN) this.#awayMs = 0;
      return;
    }
    this.#quickOnes = 0;
    this.#awayMs = Math.min(MOST_AWAY_MS, Math.max(LEAST_AWAY_MS, 4 * this.#awayMs));
    this.#awayUntilMs = endMs + this.#awayMs;
  }
}
