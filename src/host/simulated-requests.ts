import { assert } from '../base/assert.js';
import type { IoRequest, RequestWatch } from '../base/io-request.js';
import type { SeededRandom } from './simulated-random.js';

/** Held back at most. */
const MOST_HELD = 32;
/** What memory of ours is filled with when it is nobody's any more. */
const POISON = 0xd5;

/**
 * Requests that were answered, in the simulation. Some serve again at once, so that whoever still works on one meets the
 * next one's; others are held, and looked at after a while: nobody may have touched them. Copies of unstable memory are
 * poisoned.
 */
export class SimulatedRequests implements RequestWatch {
  readonly #random: SeededRandom;
  readonly #held: Array<{ request: IoRequest; generation: number }> = [];

  constructor(random: SeededRandom) {
    this.#random = random;
  }

  mayServeAgain(request: IoRequest, bounce: Uint8Array | undefined): boolean {
    bounce?.fill(POISON);
    if (this.#random.chance(0.5)) return true;
    this.#held.push({ request, generation: request.generation });
    if (this.#held.length > MOST_HELD) {
      const { request: oldest, generation } = this.#held.shift()!;
      assert(oldest.isUnused && oldest.generation === generation, 'a request was used after its answer');
    }
    return false;
  }
}
