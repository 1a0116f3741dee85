/** What is told is the mean of this long. */
const SLOTS = 16;
const SLOT_MS = 250;

/** Bytes per second over the last four seconds, by the clock of who asks. */
export class Throughput {
  readonly #slots = new Float64Array(SLOTS);
  readonly #startedMs: number;
  #latest: number;

  constructor(nowMs: number) {
    this.#startedMs = nowMs;
    this.#latest = slotOf(nowMs);
  }

  add(bytes: number, nowMs: number): void {
    this.#forget(nowMs);
    const slot = this.#latest % SLOTS;
    this.#slots[slot] = (this.#slots[slot] ?? 0) + bytes;
  }

  bytesPerSecond(nowMs: number): number {
    this.#forget(nowMs);
    const windowStartMs = (this.#latest - SLOTS + 1) * SLOT_MS;
    const spanMs = nowMs - Math.max(windowStartMs, this.#startedMs);
    if (spanMs <= 0) return 0;
    let bytes = 0;
    for (const slot of this.#slots) bytes += slot;
    return (bytes * 1000) / spanMs;
  }

  /** Slots that have fallen out of the window are those that the next ones take. */
  #forget(nowMs: number): void {
    const now = slotOf(nowMs);
    for (let slot = Math.max(this.#latest + 1, now - SLOTS + 1); slot <= now; slot++)
      this.#slots[slot % SLOTS] = 0;
    this.#latest = Math.max(this.#latest, now);
  }
}

function slotOf(nowMs: number): number {
  return Math.floor(nowMs / SLOT_MS);
}
