import { BlockError } from '../base/error.js';

/** Rate limits are counted in slices of this length (QEMU: 100 ms). */
const SLICE_MS = 100;

/** Bytes per second, in slices: what one slice overdraws, the next ones pay for. */
export class RateLimit {
  #bytesPerSecond: number;
  #given: number | bigint;
  #sliceStartMs = 0;
  #spentBytes = 0;

  /** `bytesPerSecond`: 0 is no limit; a bigint from 2^53 on. */
  constructor(bytesPerSecond: number | bigint) {
    this.#given = bytesPerSecond;
    this.#bytesPerSecond = Number(bytesPerSecond);
  }

  /** As it was given, exact. */
  get bytesPerSecond(): number | bigint {
    return this.#given;
  }

  get isLimited(): boolean {
    return this.#bytesPerSecond > 0;
  }

  /** Takes effect at once: earlier overdraft is forgotten. */
  set bytesPerSecond(value: number | bigint) {
    this.#given = value;
    this.#bytesPerSecond = Number(value);
    this.#spentBytes = 0;
  }

  /** Most bytes that one request should have so that the limit is kept finely; Infinity without limit. */
  get sliceBytes(): number {
    return this.#bytesPerSecond === 0 ? Infinity : Math.max(1, (this.#bytesPerSecond * SLICE_MS) / 1000);
  }

  spend(bytes: number): void {
    this.#spentBytes += bytes;
  }

  /** How long to wait before the next request; 0: now. */
  delayMs(nowMs: number): number {
    if (this.#bytesPerSecond === 0) return 0;
    const slices = Math.floor((nowMs - this.#sliceStartMs) / SLICE_MS);
    if (slices > 0) {
      this.#spentBytes = Math.max(0, this.#spentBytes - slices * this.sliceBytes);
      this.#sliceStartMs = this.#spentBytes === 0 ? nowMs : this.#sliceStartMs + slices * SLICE_MS;
    }
    if (this.#spentBytes < this.sliceBytes) return 0;
    const wait = Math.floor(this.#spentBytes / this.sliceBytes) * SLICE_MS;
    return Math.max(1, this.#sliceStartMs + wait - nowMs);
  }
}

/** Errors: invalid, in QEMU's words. */
export function checkSpeed(bytesPerSecond: number | bigint): void {
  if (bytesPerSecond < 0) throw new BlockError('invalid', "Parameter 'speed' expects a non-negative value");
}
