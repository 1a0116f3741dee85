import { divideRoundUp } from '../../../base/align.js';
import { BlockError, errnoError } from '../../../base/error.js';
import { MAX_REFTABLE_BYTES } from '../../../base/limits.js';
import type { References } from '../check/references.js';
import type { Rebuild } from '../check/report.js';
import { ENTRY_BYTES } from '../disk/layout.js';
import type { OpenImage } from '../open-image.js';

/** Clusters behind all that is in use in which new structures are looked for. */
const SEARCH_CLUSTERS = 2 ** 20;

/**
 * Puts new refcount blocks and a new table, which say what was counted, where nothing is, and gives up the former ones.
 * In memory: the next write-back brings it to disk (docs/CRASH-SAFETY.md, the refcount table that moves).
 * Errors: limit, no-space.
 */
export function rebuildRefcounts({ context, refcounts, unlinked }: OpenImage, rebuild: Rebuild): void {
  const { clusterBytes } = context;
  const places = new Places(rebuild.references, rebuild.avoid, refcounts.blockEntries, clusterBytes);
  const { blocks, table } = places.choose();
  const { bytes } = refcounts.table;
  const entries = (table.count * clusterBytes) / ENTRY_BYTES;
  const formerBytes = rebuild.formerTableIsCounted ? bytes.length : 0;
  refcounts.table.replace(entries, table.start * clusterBytes, formerBytes);
  context.metadata.add('refcount table', table.start, table.count);
  refcounts.cache.makeRoomFor(blocks.size + 2);
  for (const [index, place] of blocks) {
    const block = refcounts.add(index, place);
    const first = index * refcounts.blockEntries;
    const end = Math.min(first + refcounts.blockEntries, rebuild.references.end);
    for (let cluster = first; cluster < end; cluster++) {
      const count = rebuild.references.get(cluster);
      if (count > 0) refcounts.set(block, cluster, count);
    }
  }
  for (const cluster of rebuild.formerBlocks)
    unlinked.add(cluster * clusterBytes, clusterBytes, context.passesDiscard('other'));
}

/** Where new refcount blocks, by their index, and a new table of them go. */
export interface RefcountPlaces {
  blocks: ReadonlyMap<number, number>;
  table: { start: number; count: number };
  /** All of these clusters. */
  clusters: ReadonlySet<number>;
}

/** Chooses the places of new structures, which count themselves among what they describe. */
export class Places {
  readonly #references: References;
  readonly #avoid: ReadonlySet<number>;
  readonly #blockEntries: number;
  readonly #perTableCluster: number;
  readonly #end: number;
  readonly #blocks = new Map<number, number>();
  /** Below this no cluster is free. */
  #firstFree = 1;

  constructor(
    references: References,
    avoid: ReadonlySet<number>,
    blockEntries: number,
    clusterBytes: number,
  ) {
    this.#references = references;
    this.#avoid = avoid;
    this.#blockEntries = blockEntries;
    this.#perTableCluster = clusterBytes / ENTRY_BYTES;
    this.#end = references.end + SEARCH_CLUSTERS;
  }

  choose(): RefcountPlaces {
    this.#addBlocks();
    for (;;) {
      const count = this.#tableClusters();
      if (count * this.#perTableCluster * ENTRY_BYTES > MAX_REFTABLE_BYTES)
        throw new BlockError('limit', 'Refcount table would be too large', { errno: 'EFBIG' });
      const start = this.#take(count);
      this.#addBlocks();
      if (this.#tableClusters() <= count) return this.#chosen(start, count);
      // Its own place needs one more block than it has room for: again, larger.
      for (let i = 0; i < count; i++) this.#references.set(start + i, 0);
      this.#firstFree = Math.min(this.#firstFree, start);
    }
  }

  #chosen(start: number, count: number): RefcountPlaces {
    const clusters = new Set(this.#blocks.values());
    for (let i = 0; i < count; i++) clusters.add(start + i);
    return { blocks: this.#blocks, table: { start, count }, clusters };
  }

  #tableClusters(): number {
    let last = 0;
    for (const index of this.#blocks.keys()) last = Math.max(last, index);
    return divideRoundUp(last + 1, this.#perTableCluster);
  }

  /** A block for each stretch that has a count in it, those of new blocks included. */
  #addBlocks(): void {
    for (let known = -1; known !== this.#blocks.size;) {
      known = this.#blocks.size;
      const blocks = divideRoundUp(this.#references.end, this.#blockEntries);
      for (let index = 0; index < blocks; index++)
        if (!this.#blocks.has(index) && this.#isUsed(index)) this.#blocks.set(index, this.#take(1));
    }
  }

  #isUsed(index: number): boolean {
    const first = index * this.#blockEntries;
    const end = Math.min(first + this.#blockEntries, this.#references.end);
    for (let cluster = first; cluster < end; cluster++) if (this.#references.get(cluster) > 0) return true;
    return false;
  }

  /** The first contiguous free clusters. */
  #take(count: number): number {
    let start = this.#firstFree;
    for (let at = start; at < this.#end; at++) {
      if (this.#references.get(at) > 0 || this.#avoid.has(at)) start = at + 1;
      else if (at + 1 - start === count) {
        for (let i = start; i <= at; i++) this.#references.add(i);
        if (count === 1 || start === this.#firstFree) this.#firstFree = at + 1;
        return start;
      }
    }
    throw errnoError('ENOSPC');
  }
}
