import { assert } from '../base/assert.js';
import type { HostRandom } from './host.js';

/** Everything random in a simulation comes from one of these (sfc32). */
export class SeededRandom implements HostRandom {
  #a: number;
  #b = 0x9e3779b9;
  #c = 0x243f6a88;
  #counter = 1;

  constructor(seed: number) {
    this.#a = seed >>> 0;
    this.#b ^= Math.floor(seed / 2 ** 32) >>> 0;
    for (let i = 0; i < 12; i++) this.#next();
  }

  below(bound: number): number {
    assert(Number.isSafeInteger(bound) && bound > 0, () => `random bound ${bound}`);
    if (bound <= 2 ** 32) return Math.floor((this.#next() / 2 ** 32) * bound);
    return Math.floor(((this.#next() * 2 ** 21 + (this.#next() >>> 11)) / 2 ** 53) * bound);
  }

  bytes(length: number): Buffer {
    const bytes = Buffer.allocUnsafe(length);
    for (let i = 0; i < length; i++) bytes[i] = this.#next() & 255;
    return bytes;
  }

  /** True with this probability. */
  chance(probability: number): boolean {
    return this.#next() < probability * 2 ** 32;
  }

  /** A generator of its own, so that one part's draws do not shift another's. */
  fork(): SeededRandom {
    return new SeededRandom(this.#next());
  }

  #next(): number {
    const sum = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum;
    this.#c |= 0;
    return sum >>> 0;
  }
}
