import type { ImageContext } from '../image.js';
import type { CachedTable } from '../tables/cached-table.js';
import type { Run } from './allocator.js';
import type { Refcounts } from './refcounts.js';
import type { MetadataSpace, Need } from './space.js';

interface Packed {
  readonly cluster: number;
  usedBytes: number;
}

/** Places for compressed data, which share clusters. */
export class PackedClusters {
  readonly #context: ImageContext;
  readonly #refcounts: Refcounts;
  readonly #space: MetadataSpace;
  readonly #allocateOne: () => Run | Need;
  /** The cluster in which compressed data goes on. */
  #packed: Packed | undefined;

  /** `allocateOne`: gives a cluster for data, or answers what must be awaited first. */
  constructor(
    context: ImageContext,
    refcounts: Refcounts,
    space: MetadataSpace,
    allocateOne: () => Run | Need,
  ) {
    this.#context = context;
    this.#refcounts = refcounts;
    this.#space = space;
    this.#allocateOne = allocateOne;
  }

  /**
   * Room for that many bytes of compressed data, less than a cluster, behind those given out before: each stretch counts
   * a reference to every cluster that it touches. Answers the host offset, or what must be awaited first.
   */
  tryAllocate(lengthBytes: number): number | Need {
    const { clusterBytes } = this.#context;
    const packed = this.#packed;
    const block = packed && this.#shareable(packed.cluster);
    if (typeof block === 'function') return block;
    const room = packed && block ? clusterBytes - packed.usedBytes : 0;
    if (packed && block && room >= lengthBytes) return this.#pack(packed, block, lengthBytes);
    if (block) block.pins++;
    const run = this.#allocateOne();
    if (block) block.pins--;
    if (typeof run === 'function') return run;
    const next: Packed = { cluster: run.start, usedBytes: 0 };
    this.#packed = next;
    if (!packed || !block || room === 0 || run.start !== packed.cluster + 1) {
      next.usedBytes = lengthBytes;
      return run.start * clusterBytes;
    }
    next.usedBytes = lengthBytes - room;
    return this.#pack(packed, block, room);
  }

  /** The refcount block of a cluster that may get one more reference; undefined where it may not. */
  #shareable(cluster: number): CachedTable | Need | undefined {
    const refcounts = this.#refcounts;
    const index = refcounts.blockIndex(cluster);
    const block = refcounts.peek(index);
    if (!block) return () => refcounts.load(index);
    const isFull = refcounts.count(block, cluster) >= refcounts.mostReferences;
    return isFull ? undefined : (this.#space.needsTable(block) ?? block);
  }

  #pack(packed: Packed, block: CachedTable, lengthBytes: number): number {
    const { cluster } = packed;
    this.#refcounts.set(block, cluster, this.#refcounts.count(block, cluster) + 1);
    const hostOffset = cluster * this.#context.clusterBytes + packed.usedBytes;
    packed.usedBytes += lengthBytes;
    return hostOffset;
  }

  /** A cluster is free: nothing goes on in it. */
  freed(cluster: number): void {
    if (this.#packed?.cluster === cluster) this.#packed = undefined;
  }
}
