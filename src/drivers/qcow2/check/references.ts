import { assert } from '../../../base/assert.js';
import { BlockError } from '../../../base/error.js';
import { GiB } from '../../../base/limits.js';

/** Two bytes a host cluster are kept; larger files are refused. */
const MAX_CLUSTERS = GiB;
const MAX_COUNT = 0xffff;
/** References behind the end of the file are kept this far: only there could something new be put in their way. */
const OUTSIDE_CLUSTERS = 2 ** 20;

/** How often each host cluster is referred to. Memory: two bytes a cluster of the file. */
export class References {
  readonly #counts: Uint16Array;
  #length: number;
  /** Of clusters behind the end of the file. */
  readonly #outside = new Map<number, number>();
  readonly maxCount: number;

  /** Errors: kind limit. */
  constructor(clusters: number, refcountOrder: number) {
    if (clusters > MAX_CLUSTERS) throw new BlockError('limit', 'Image is too large to be checked');
    this.#counts = new Uint16Array(clusters + 1);
    this.#length = clusters;
    this.maxCount = Math.min(MAX_COUNT, 2 ** (2 ** refcountOrder) - 1);
  }

  /** Clusters of the file, and the one behind it when that is in use. */
  get length(): number {
    return this.#length;
  }

  /** What begins behind the end of the file may lie in one more cluster. */
  extend(clusters: number): void {
    assert(clusters <= this.#counts.length, 'references to one cluster behind the file at most');
    this.#length = Math.max(this.#length, clusters);
  }

  set(cluster: number, count: number): void {
    if (cluster < this.length) this.#counts[cluster] = count;
    else this.#outside.set(cluster, count);
  }

  /** First cluster behind all that are known to be referred to. */
  get end(): number {
    let end = this.length;
    for (const cluster of this.#outside.keys()) end = Math.max(end, cluster + 1);
    return end;
  }

  get(cluster: number): number {
    if (cluster < this.#length) return this.#counts[cluster] ?? 0;
    return this.#outside.get(cluster) ?? 0;
  }

  /** One more; false: as many as can be counted there are already. */
  add(cluster: number): boolean {
    const count = this.get(cluster);
    if (count >= this.maxCount) return false;
    if (cluster < this.length) this.#counts[cluster] = count + 1;
    else if (cluster < this.length + OUTSIDE_CLUSTERS) this.#outside.set(cluster, count + 1);
    return true;
  }
}
