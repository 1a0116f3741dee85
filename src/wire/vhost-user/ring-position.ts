/**
 * A position in a packed ring: an index, and a wrap counter that changes with each round. `value` counts through both
 * rounds, so that positions can be compared.
 */
export class RingPosition {
  readonly #size: number;
  /** Below twice the size; the wrap counter is 1 in the first half. */
  value = 0;

  constructor(size: number) {
    this.#size = size;
  }

  get index(): number {
    return this.value < this.#size ? this.value : this.value - this.#size;
  }

  get wrap(): 0 | 1 {
    return this.value < this.#size ? 1 : 0;
  }

  advance(count: number): void {
    this.value = (this.value + count) % (2 * this.#size);
  }

  /** 15 bits of index, one of wrap counter. */
  get encoded(): number {
    return this.index + this.wrap * 0x8000;
  }

  /** False when there is no such place. */
  decode(encoded: number): boolean {
    const index = encoded & 0x7fff;
    if (index >= this.#size) return false;
    this.value = this.valueOf(index, encoded >>> 15);
    return true;
  }

  valueOf(index: number, wrap: number): number {
    return index + (wrap === 1 ? 0 : this.#size);
  }

  /** From one position on to another. */
  distance(from: number, to: number): number {
    return (to - from + 2 * this.#size) % (2 * this.#size);
  }
}
