import { assert } from '../base/assert.js';
import type { HostClock } from '../host/host.js';
import type { Node } from './node.js';

export interface HeatOptions {
  /** Of the disk, counted as one: a power of two. Default: what gives 4096 regions at most, 64 KiB at least. */
  readonly regionBytes?: number;
  /** What was written so long ago counts half. Default a minute. */
  readonly halfLifeMs?: number;
  /** Called by stop(), and when the node is closed. */
  readonly onStop?: () => void;
}

export const DEFAULT_HALF_LIFE_MS = 60_000;
const USUAL_REGIONS = 4096;
const LEAST_REGION_BYTES = 64 * 1024;
/** Counters take 16 bytes a region. A disk that grows beyond that is counted in larger ones. */
export const MOST_REGIONS = 1024 * 1024;

/** What another process is told: bytes a second of each region, and how long they were counted. A type alias: it is JSON. */
export type PassedHeat = { rates: number[]; regionBytes: number; countedMs: number };

/**
 * Where a node is written to, and how much: bytes of data, counted by region and forgotten by halves. Zeroes and discards,
 * however long, are none. A write adds to one number, and takes no look at the clock; nothing is counted before start() and
 * after stop(). Several may count one node, each for itself.
 */
export class WriteHeat {
  /** What regions had at first: they are larger once the disk has grown too long for that. */
  readonly askedRegionBytes: number;
  #regionBytes: number;
  readonly halfLifeMs: number;
  /** On the engine's clock. */
  #sinceMs: number;
  readonly #node: Node;
  readonly #clock: HostClock;
  /** Bytes since the last read, by region. */
  #fresh: Float64Array;
  /** Bytes a second until then, as a mean in which what is older counts less. */
  #rates: Float64Array;
  #readMs: number;
  readonly #onStop: () => void;

  private constructor(node: Node, clock: HostClock, options: HeatOptions) {
    this.#node = node;
    this.#clock = clock;
    this.#onStop = options.onStop ?? ((): void => undefined);
    this.askedRegionBytes = options.regionBytes ?? usualRegionBytes(node.lengthBytes);
    this.#regionBytes = this.askedRegionBytes;
    this.halfLifeMs = options.halfLifeMs ?? DEFAULT_HALF_LIFE_MS;
    assert(Number.isInteger(Math.log2(this.askedRegionBytes)), 'a region is a power of two');
    assert(this.halfLifeMs > 0, 'a half-life has a length');
    this.#sinceMs = clock.nowMs();
    this.#readMs = this.#sinceMs;
    [this.#fresh, this.#rates] = [new Float64Array(0), new Float64Array(0)];
    this.resized();
  }

  /** Counts from now on, until stop(). */
  static start(node: Node, clock: HostClock, options: HeatOptions = {}): WriteHeat {
    const heat = new WriteHeat(node, clock, options);
    node.heats.push(heat);
    return heat;
  }

  /** Of the disk, counted as one: a power of two. */
  get regionBytes(): number {
    return this.#regionBytes;
  }

  /** When counting began, on the engine's clock. */
  get sinceMs(): number {
    return this.#sinceMs;
  }

  /** Counts no more; what was counted can still be read. */
  stop(): void {
    const at = this.#node.heats.indexOf(this);
    if (at < 0) return;
    this.#node.heats.splice(at, 1);
    this.#onStop();
  }

  /**
   * Bytes a second of each region, in order: a mean over the time since start(), in which what is a half-life old counts
   * half. Valid until the next call.
   */
  read(): Float64Array {
    const nowMs = this.#clock.nowMs();
    const seconds = (nowMs - this.#readMs) / 1000;
    if (seconds <= 0) return this.#rates;
    // Means of two times, the one before and the one since, each with the weight that it has by now.
    const before =
      this.#weight(this.#readMs - this.#sinceMs) * 2 ** (-(nowMs - this.#readMs) / this.halfLifeMs);
    const since = this.#weight(nowMs - this.#readMs);
    const all = before + since;
    for (let i = 0; i < this.#rates.length; i++) {
      const rate = (this.#fresh[i] ?? 0) / seconds;
      this.#rates[i] = ((this.#rates[i] ?? 0) * before + rate * since) / all;
    }
    this.#fresh.fill(0);
    this.#readMs = nowMs;
    return this.#rates;
  }

  /** Of a stretch of time that ends now. */
  #weight(lengthMs: number): number {
    return 1 - 2 ** (-lengthMs / this.halfLifeMs);
  }

  /**
   * What another one knows becomes this one's, which has just begun: of the layer that was active until then. Both have the
   * larger regions of the two from now on.
   */
  takeOver(other: WriteHeat): void {
    other.stop();
    while (this.#regionBytes < other.#regionBytes) this.#fold();
    while (other.#regionBytes < this.#regionBytes) other.#fold();
    this.#rates.set(other.read().subarray(0, this.#rates.length));
    this.#sinceMs = other.sinceMs;
  }

  /** For a counter of another process, of the same node in the same way. */
  passed(): PassedHeat {
    const rates = [...this.read()];
    return { rates, regionBytes: this.#regionBytes, countedMs: this.#readMs - this.#sinceMs };
  }

  /** This one, which has just begun, goes on from there. */
  goOnFrom({ rates, regionBytes, countedMs }: PassedHeat): void {
    while (this.#regionBytes < regionBytes) this.#fold();
    this.#rates.set(rates.slice(0, this.#rates.length));
    this.#sinceMs = this.#readMs - countedMs;
  }

  /** For the node, of each write. */
  written(offset: number, lengthBytes: number): void {
    const { regionBytes } = this;
    const end = Math.min(offset + lengthBytes, this.#fresh.length * regionBytes);
    let index = Math.floor(offset / regionBytes);
    for (let at = offset; at < end; index++) {
      const next = Math.min(end, (index + 1) * regionBytes);
      this.#fresh[index] = (this.#fresh[index] ?? 0) + next - at;
      at = next;
    }
  }

  /** For the node, when its length has changed. */
  resized(): void {
    while (this.#count() > MOST_REGIONS) this.#fold();
    const count = this.#count();
    if (count === this.#fresh.length) return;
    const grown = (old: Float64Array): Float64Array => {
      const array = new Float64Array(count);
      array.set(old.subarray(0, count));
      return array;
    };
    [this.#fresh, this.#rates] = [grown(this.#fresh), grown(this.#rates)];
  }

  #count(): number {
    return Math.ceil(this.#node.lengthBytes / this.#regionBytes);
  }

  /** Two regions become one each. */
  #fold(): void {
    const folded = (old: Float64Array): Float64Array =>
      Float64Array.from(
        { length: Math.ceil(old.length / 2) },
        (_, i) => (old[2 * i] ?? 0) + (old[2 * i + 1] ?? 0),
      );
    this.#regionBytes *= 2;
    [this.#fresh, this.#rates] = [folded(this.#fresh), folded(this.#rates)];
  }
}

/** The smallest that gives no more regions than a picture has dots. */
export function usualRegionBytes(lengthBytes: number): number {
  let regionBytes = LEAST_REGION_BYTES;
  while (lengthBytes / regionBytes > USUAL_REGIONS) regionBytes *= 2;
  return regionBytes;
}
