/** Bytes that may still be written synchronously in this turn of the event loop. */
export class TurnBudget {
  readonly #bytesPerTurn: number;
  #left: number;
  #armed = false;

  constructor(bytesPerTurn: number) {
    this.#bytesPerTurn = bytesPerTurn;
    this.#left = bytesPerTurn;
  }

  /** Takes `bytes` from the turn's budget, or answers false when it has not that many left. */
  take(bytes: number): boolean {
    if (bytes > this.#left) return false;
    this.#left -= bytes;
    if (!this.#armed) {
      this.#armed = true;
      setImmediate(() => {
        this.#armed = false;
        this.#left = this.#bytesPerTurn;
      });
    }
    return true;
  }
}
