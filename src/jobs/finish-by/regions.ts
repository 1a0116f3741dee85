import type { Stretch } from '../../block/dirty-bitmap.js';
import type { Node } from '../../block/node.js';
import { type PassedHeat, WriteHeat } from '../../block/write-heat.js';
import type { HostClock } from '../../host/host.js';

/** A disk is looked at in so many regions, or fewer. */
const MOST_REGIONS = 1024;
/** What was written so long ago counts half. */
const HALF_LIFE_MS = 2000;

/** A disk's regions, and how fast each of them is written of late. */
export class Regions {
  readonly #heat: WriteHeat;
  readonly #sizeBytes: number;
  #rates: Float64Array;

  /** Counts until stop(), from what `passed` says on. Regions are whole units of `unitBytes`, a power of two. */
  constructor(node: Node, clock: HostClock, unitBytes: number, passed?: PassedHeat) {
    this.#sizeBytes = node.lengthBytes;
    let regionBytes = unitBytes;
    while (this.#sizeBytes / regionBytes > MOST_REGIONS) regionBytes *= 2;
    this.#heat = WriteHeat.start(node, clock, { regionBytes, halfLifeMs: HALF_LIFE_MS });
    if (passed) this.#heat.goOnFrom(passed);
    this.#rates = this.#heat.read();
  }

  /** For another process. */
  passed(): PassedHeat {
    return this.#heat.passed();
  }

  look(): void {
    this.#rates = this.#heat.read();
  }

  stop(): void {
    this.#heat.stop();
  }

  /** Bytes a second of each region, as of the last look. */
  get rates(): Float64Array {
    return this.#rates;
  }

  get bytesPerSecond(): number {
    return this.#rates.reduce((sum, rate) => sum + rate, 0);
  }

  /** The coldest first, and in the order of the disk where they are alike. */
  coldestFirst(): number[] {
    const order = Array.from(this.#rates.keys());
    return order.sort((a, b) => (this.#rates[a] ?? 0) - (this.#rates[b] ?? 0) || a - b);
  }

  stretchOf(region: number): Stretch {
    const { regionBytes } = this.#heat;
    const offset = region * regionBytes;
    return { offset, lengthBytes: Math.min(regionBytes, this.#sizeBytes - offset) };
  }
}
