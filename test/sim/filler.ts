import { BlockError } from '../../src/base/error.js';
import type { DiskSpace, SeededRandom } from '../../src/host/simulated.js';
import type { Engine } from './world.js';

/** Most that the disk takes after it was filled, in bytes. */
const MOST_LEFT_BYTES = 128 * 1024;

/** Other programs fill the machine's disk, and free space again, while the guest runs. */
export class Filler {
  readonly #engine: Engine;
  readonly #random: SeededRandom;
  readonly #tells: DiskSpace['tells'];
  #stopped = false;
  #running: Promise<void> | undefined;

  constructor(engine: Engine, random: SeededRandom) {
    this.#engine = engine;
    this.#random = random;
    this.#tells = random.chance(0.5) ? 'early' : 'late';
  }

  start(): void {
    this.#engine.world.tight = { tells: this.#tells, isFull: false };
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    const random = this.#random;
    const { host } = this.#engine;
    while (!this.#stopped && this.#engine.isAlive) {
      await host.clock.sleep(random.below(200));
      if (!this.#stopped && this.#engine.isAlive) this.#fill();
      await host.clock.sleep(random.below(400));
      this.#free();
    }
  }

  #fill(): void {
    const { world } = this.#engine;
    const { simulation } = world;
    const left = this.#random.chance(0.3) ? 0 : this.#random.below(MOST_LEFT_BYTES);
    world.trace(`the disk fills up, ${left} bytes are left, it tells ${this.#tells}`);
    world.tight = { tells: this.#tells, isFull: true };
    simulation.limitSpace({ capacityBytes: simulation.usedBytes + left, tells: this.#tells });
  }

  #free(): void {
    const { world } = this.#engine;
    if (!this.#engine.isAlive) return;
    world.trace('space is freed');
    world.simulation.limitSpace(undefined);
    world.tight = { tells: this.#tells, isFull: false };
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }
}

/** Whether this error, or one that it came from, says that there is no space. */
export function isNoSpace(error: unknown): boolean {
  for (let at = error; at instanceof Error; at = at.cause)
    if (
      at instanceof BlockError &&
      (at.kind === 'no-space' || at.message.includes('No space left on device'))
    )
      return true;
  return false;
}
