/**
 * An offset whose crossing is told once: for storage that is grown while a guest fills it (thin logical volumes). Told
 * before the write, which may fail for want of that space.
 */
export class WriteThreshold {
  readonly offset: number;
  readonly #onExceeded: (byBytes: number) => void;

  constructor(offset: number, onExceeded: (byBytes: number) => void) {
    this.offset = offset;
    this.#onExceeded = onExceeded;
  }

  /** Whether a write up to `end` has crossed it, which is told then. */
  isCrossed(end: number): boolean {
    if (end <= this.offset) return false;
    this.#onExceeded(end - this.offset);
    return true;
  }
}
