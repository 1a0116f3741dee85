import { defined } from '../../../base/assert.js';
import { divideRoundUp } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';
import { MAX_IMAGE_BYTES, MAX_REFTABLE_BYTES } from '../../../base/limits.js';
import type { CachedTable } from '../tables/cached-table.js';
import type { ImageContext } from '../image.js';
import { ENTRY_BYTES } from '../disk/layout.js';
import { FreeClusters } from './free-clusters.js';
import { PackedClusters } from './packed-clusters.js';
import type { Refcounts } from './refcounts.js';
import type { MetadataSpace, Need } from './space.js';

/** Host clusters [start, start + count), refcount one. */
export interface Run {
  start: number;
  count: number;
  /** Beyond all that the file ever held: reads as zeroes. */
  isFresh: boolean;
}

/** What clusters are for: metadata is written later, so its space must be there before. */
export type Use = 'data cluster' | 'L2 table' | 'table';

/**
 * Gives out free host clusters: known free ones inside the file first, else at its end; once the file is as long as all of
 * the disk needs, whatever is free first, so that it does not swell. A refcount in memory counts
 * every cluster that is reserved, linked, or unlinked but not yet durably so; only a refcount of 0 is free.
 */
export class Allocator {
  readonly #context: ImageContext;
  readonly #refcounts: Refcounts;
  readonly #space: MetadataSpace;
  #free: FreeClusters;
  /** First cluster that was never given out nor part of the file when it was opened. */
  #end: number;
  readonly #packed: PackedClusters;

  constructor(context: ImageContext, refcounts: Refcounts, space: MetadataSpace) {
    this.#context = context;
    this.#refcounts = refcounts;
    this.#space = space;
    this.#end = divideRoundUp(context.openedFileBytes, context.clusterBytes);
    this.#free = new FreeClusters(refcounts, this.#end);
    this.#packed = new PackedClusters(context, refcounts, space, () => this.tryAllocate(1, 'data cluster'));
  }

  /** The refcounts are others: nothing is known of free clusters in a file of so many bytes. */
  startAnew(fileBytes: number): void {
    this.#end = divideRoundUp(fileBytes, this.#context.clusterBytes);
    this.#free = new FreeClusters(this.#refcounts, this.#end);
  }

  /** Most of the refcount blocks in memory must stay there until they are written back. */
  get needsWriteBack(): boolean {
    return this.#refcounts.cache.needsWriteBack;
  }

  /** What to await before a first attempt: one more refcount block searched for free clusters. */
  needsScan(): Need | undefined {
    return this.#free.needsScan(this.#end);
  }

  /** A contiguous run of 1 to `count` clusters, or what must be awaited first. Errors: no-space, limit. */
  tryAllocate(count: number, use: Use): Run | Need {
    const inside =
      this.#tryInside(count, count, use) ??
      this.#needsWholeScan() ??
      (this.#fillsHoles() && this.#tryHoles(count, use));
    if (inside) return inside;
    const entries = this.#refcounts.blockEntries;
    // Within one refcount block (the next one, when this one is full).
    return this.#allocateAtEnd(Math.min(count, Math.max(1, entries - (this.#end % entries || 1))), use);
  }

  /** Of a storage that has its length for good all free clusters are to be found: there is nothing behind its end. */
  #isFixed(): boolean {
    return this.#context.meta.hasFixedLength === true;
  }

  /** Smaller ones than are wanted are taken where the storage cannot grow, or is as long as all of the disk needs. */
  #fillsHoles(): boolean {
    const { header, clusterBytes } = this.#context;
    return this.#isFixed() || this.#end * clusterBytes >= header.sizeBytes;
  }

  /** The larger ones first: so less is scattered. */
  #tryHoles(count: number, use: Use): Run | Need | undefined {
    for (let least = count; least >= 1; least = Math.floor(least / 2)) {
      const run = this.#tryInside(least, count, use);
      if (run) return run;
    }
    return undefined;
  }

  #needsWholeScan(): Need | undefined {
    return this.#isFixed() && !this.#free.isScanned ? () => this.#free.scanBlock() : undefined;
  }

  /** Up to `most` of a known free stretch of at least `least` clusters. */
  #tryInside(least: number, most: number, use: Use): Run | Need | undefined {
    for (let found = this.#free.find(least); found; found = this.#free.find(least)) {
      const run = this.#allocateFree(found, Math.min(most, found.count), use);
      if (run) return run;
    }
    return undefined;
  }

  /**
   * Where exactly `count` clusters are free, and can be taken without another cluster for a refcount block; undefined:
   * nowhere, or the storage grows.
   */
  #findExactly(count: number): { start: number; count: number } | Need | undefined {
    const need = this.#needsWholeScan();
    if (need || !this.#isFixed()) return need;
    const refcounts = this.#refcounts;
    const isCounted = (start: number): boolean => {
      const index = refcounts.blockIndex(start);
      return refcounts.inTable(index) && !refcounts.isAbsent(index);
    };
    for (;;) {
      const found = this.#free.find(count, isCounted);
      if (!found) return undefined;
      const { start } = found;
      const index = refcounts.blockIndex(start);
      const block = refcounts.peek(index);
      if (!block) return () => refcounts.load(index);
      let free = 0;
      while (free < count && refcounts.count(block, start + free) === 0) free++;
      if (free === count) return { start, count };
      // The hint was wrong.
      this.#free.take(start, free + 1);
    }
  }

  /** See PackedClusters. */
  tryAllocateBytes(lengthBytes: number): number | Need {
    return this.#packed.tryAllocate(lengthBytes);
  }

  /** Undefined: a part of the extent was used otherwise; look again. */
  #allocateFree(extent: { start: number; count: number }, wanted: number, use: Use): Run | Need | undefined {
    if (this.#context.holdsFree) return () => this.#context.requestFlush();
    const refcounts = this.#refcounts;
    const { start } = extent;
    const index = refcounts.blockIndex(start);
    if (!refcounts.inTable(index)) return () => this.#growTable(index + 1);
    const block = refcounts.peek(index);
    if (!block && refcounts.isAbsent(index)) return this.#addBlock(index, start);
    if (!block) return () => refcounts.load(index);
    let count = 0;
    while (count < wanted && refcounts.count(block, start + count) === 0) count++;
    if (count > 0) {
      const need = this.#space.needsTable(block) ?? this.#needsSpace(start, count, use);
      if (need) return need;
    }
    // The hint was wrong (given out otherwise): forget it.
    this.#free.take(start, Math.max(1, count));
    if (count === 0) return undefined;
    this.#checkFree(start, count, use);
    refcounts.setAll(block, start, count, 1);
    this.#space.taken(start, count);
    return { start, count, isFresh: false };
  }

  /** The free cluster `start` becomes the refcount block that describes it. */
  #addBlock(index: number, start: number): Need | undefined {
    const refcounts = this.#refcounts;
    const need = this.#space.needsEntry(refcounts.table, index) ?? this.#needsSpace(start, 1, 'table');
    if (need) return need;
    this.#checkFree(start, 1, 'refcount block');
    this.#free.take(start, 1);
    refcounts.set(refcounts.add(index, start), start, 1);
    this.#space.taken(start, 1);
    return undefined;
  }

  /** Before free clusters are given out: somebody may be about to take them, and metadata needs space. */
  #needsSpace(start: number, count: number, use: Use): Need | undefined {
    const conflict = this.#space.conflict(start, count);
    if (conflict || use === 'data cluster') return conflict;
    return this.#space.needsClusters(start, count);
  }

  /** Errors: kind corrupt when clusters whose refcount is 0 hold metadata. */
  #checkFree(start: number, count: number, what: string): void {
    if (start === 0) throw this.#context.corrupt(`Preventing invalid allocation of ${what} at offset 0`);
    const { clusterBytes } = this.#context;
    this.#context.checkNoMetadata(start * clusterBytes, count * clusterBytes);
  }

  /** Exactly `count` contiguous clusters at the end, behind the refcount blocks that they need. */
  #allocateAtEnd(count: number, use: Use): Run | Need {
    if (this.#context.holdsFree) return () => this.#context.requestFlush();
    const refcounts = this.#refcounts;
    for (;;) {
      const first = this.#end;
      const newBlocks = this.#missingBlocks(first, count);
      const end = first + newBlocks.length + count;
      if (end * this.#context.clusterBytes > MAX_IMAGE_BYTES)
        throw new BlockError('limit', 'Image is too big');
      const lastIndex = refcounts.blockIndex(end - 1);
      if (!refcounts.inTable(lastIndex)) return () => this.#growTable(lastIndex + 1);
      const blocks: CachedTable[] = [];
      // All of them at once, or loading one would make another leave; and one more that others need.
      refcounts.cache.makeRoomFor(lastIndex - refcounts.blockIndex(first) + 2);
      for (let index = refcounts.blockIndex(first); index <= lastIndex; index++) {
        if (refcounts.isAbsent(index)) continue;
        const block = refcounts.peek(index);
        if (!block) return () => refcounts.load(index);
        blocks.push(block);
      }
      const used = this.#lastUsed(first, end);
      if (used < 0) {
        const need = this.#needsEnd(end, newBlocks, blocks, use);
        if (need) return need;
        this.#checkFree(first, end - first, 'cluster');
        this.#takeEnd(end, newBlocks, blocks);
        return { start: first + newBlocks.length, count, isFresh: true };
      }
      // Counted although the file ends before it (leaked by a crash): begin behind it.
      this.#end = used + 1;
    }
  }

  /** Space of all metadata that taking the clusters up to `end` changes or makes. */
  #needsEnd(
    end: number,
    newBlocks: readonly number[],
    blocks: readonly CachedTable[],
    use: Use,
  ): Need | undefined {
    const space = this.#space;
    for (const block of blocks) {
      const need = space.needsTable(block);
      if (need) return need;
    }
    for (const index of newBlocks) {
      const need = space.needsEntry(this.#refcounts.table, index);
      if (need) return need;
    }
    const first = this.#end;
    const metadata = use === 'data cluster' ? newBlocks.length : end - first;
    return space.conflict(first, end - first) ?? space.needsClusters(first, metadata);
  }

  /** Everything from the end of the file to `end`: new refcount blocks first; `blocks` are those that there are. */
  #takeEnd(end: number, newBlocks: readonly number[], blocks: readonly CachedTable[]): void {
    const refcounts = this.#refcounts;
    const first = this.#end;
    // The new ones take room in a small cache: these must not leave it for that.
    for (const block of blocks) block.pins++;
    newBlocks.forEach((index, i) => void refcounts.add(index, first + i));
    for (let at = first; at < end;) {
      const count = Math.min(end - at, refcounts.leftInBlock(at));
      refcounts.setAll(this.#block(at), at, count, 1);
      at += count;
    }
    for (const block of blocks) block.pins--;
    this.#end = end;
    this.#space.taken(first, end - first);
  }

  /** The last cluster of [first, end) in the first block that has one whose refcount is not 0; or -1. */
  #lastUsed(first: number, end: number): number {
    const refcounts = this.#refcounts;
    for (let at = first; at < end;) {
      const count = Math.min(end - at, refcounts.leftInBlock(at));
      const isAbsent = refcounts.isAbsent(refcounts.blockIndex(at));
      const used = isAbsent ? -1 : refcounts.lastCounted(this.#block(at), at, count);
      if (used >= 0) return used;
      at += count;
    }
    return -1;
  }

  /** The refcount block of a cluster, which must be in memory. */
  #block(cluster: number): CachedTable {
    return defined(this.#refcounts.peek(this.#refcounts.blockIndex(cluster)), 'refcount block');
  }

  /** Refcount blocks that do not exist yet for `count` clusters at `first` and for those blocks themselves. */
  #missingBlocks(first: number, count: number): number[] {
    for (let known = 0; ;) {
      const missing: number[] = [];
      const last = this.#refcounts.blockIndex(first + known + count - 1);
      for (let index = this.#refcounts.blockIndex(first); index <= last; index++) {
        if (this.#refcounts.isAbsent(index)) missing.push(index);
      }
      if (missing.length === known) return missing;
      known = missing.length;
    }
  }

  /** One contiguous run of exactly `count` clusters, for a table that must be contiguous. */
  async allocateContiguous(count: number): Promise<Run> {
    for (;;) {
      const run = this.#tryContiguous(count);
      if (typeof run !== 'function') return run;
      await run();
    }
  }

  /** The same inside the file where some are free: for what comes and goes, and would make it longer each time. */
  async allocateInside(count: number): Promise<Run> {
    for (let need = this.needsScan(); need; need = this.needsScan()) await need();
    for (;;) {
      const run = this.#tryInside(count, count, 'table') ?? this.#tryContiguous(count);
      if (typeof run === 'function') await run();
      else if (run.count === count) return run;
      // Some of the stretch was used otherwise.
      else
        for (let done = 0; done < run.count;)
          done += await this.releaseSome(run.start + done, run.count - done);
    }
  }

  #tryContiguous(count: number): Run | Need {
    const place = this.#findExactly(count);
    if (typeof place === 'function') return place;
    const run = place && this.#allocateFree(place, count, 'table');
    return run ?? this.#needsBlockFor(count) ?? this.#allocateAtEnd(count, 'table');
  }

  /** A refcount block, where many free clusters have none yet: then they can be taken. */
  #needsBlockFor(count: number): Need | undefined {
    if (!this.#isFixed()) return undefined;
    const refcounts = this.#refcounts;
    const found = this.#free.find(count + 1, (start) => refcounts.isAbsent(refcounts.blockIndex(start)));
    if (!found) return undefined;
    const index = refcounts.blockIndex(found.start);
    if (!refcounts.inTable(index)) return () => this.#growTable(index + 1);
    return this.#addBlock(index, found.start) ?? (() => Promise.resolve());
  }

  /** Makes room in the refcount table for `minEntries` blocks: it goes on, larger, at the end of the file. */
  async #growTable(minEntries: number): Promise<void> {
    const { table } = this.#refcounts;
    const { clusterBytes } = this.#context;
    const perCluster = clusterBytes / ENTRY_BYTES;
    const clusters = divideRoundUp(Math.max(minEntries + 1, table.entries * 2), perCluster);
    if (clusters * clusterBytes > MAX_REFTABLE_BYTES)
      throw new BlockError('limit', 'Refcount table would be too large', { errno: 'EFBIG' });
    await this.#context.announce('reftable_grow');
    while (table.entries < minEntries) {
      // Grown already since the last write-back: that one must end first.
      if (table.moved) return this.#context.requestFlush();
      const need = this.#moveTable(clusters * perCluster);
      await need?.();
    }
  }

  /** Without a wait in between, since a write-back must never see a table that has grown but not moved. */
  #moveTable(entries: number): Need | undefined {
    const { table } = this.#refcounts;
    const { clusterBytes } = this.#context;
    const clusters = (entries * ENTRY_BYTES) / clusterBytes;
    const place = this.#findExactly(clusters);
    if (typeof place === 'function') return place;
    const old = { bytes: table.bytes, hostOffset: table.hostOffset };
    table.grow(entries, table.hostOffset);
    let run: Run | Need | undefined;
    try {
      run = place && this.#allocateFree(place, clusters, 'table');
      run ??= this.#allocateAtEnd(clusters, 'table');
    } finally {
      if (run === undefined || typeof run === 'function') table.shrinkBack(old.bytes);
      else {
        table.hostOffset = run.start * clusterBytes;
        this.#context.metadata.add('refcount table', run.start, run.count);
      }
    }
    return typeof run === 'function' ? run : undefined;
  }

  /**
   * The stretches of [start, start + count) whose refcount is one: nothing else, no internal snapshot, has them. Errors: kind
   * corrupt where that is metadata.
   */
  async ownedRuns(start: number, count: number): Promise<Array<{ start: number; count: number }>> {
    for (let cluster = start; cluster < start + count; cluster++) {
      if (this.#refcounts.isAbsent(this.#refcounts.blockIndex(cluster))) throw this.#underflow(cluster);
    }
    return this.#runsWhere(start, count, (references, cluster) => {
      if (references !== 1) return false;
      this.#checkUnused(cluster);
      // It is about to be free: compressed data that comes meanwhile goes elsewhere.
      this.#packed.freed(cluster);
      return true;
    });
  }

  /** The stretches of [start, start + count) that are in use as far as the image says. */
  async countedRuns(start: number, count: number): Promise<Array<{ start: number; count: number }>> {
    return this.#runsWhere(start, count, (references) => references > 0);
  }

  async #runsWhere(
    start: number,
    count: number,
    isWanted: (references: number, cluster: number) => boolean,
  ): Promise<Array<{ start: number; count: number }>> {
    const runs: Array<{ start: number; count: number }> = [];
    for (let cluster = start; cluster < start + count; cluster++) {
      const index = this.#refcounts.blockIndex(cluster);
      const isAbsent = this.#refcounts.isAbsent(index);
      while (!isAbsent && !this.#refcounts.peek(index)) await this.#refcounts.load(index);
      const references = isAbsent ? 0 : this.#refcounts.count(this.#block(cluster), cluster);
      if (!isWanted(references, cluster)) continue;
      const last = runs.at(-1);
      if (last && last.start + last.count === cluster) last.count++;
      else runs.push({ start: cluster, count: 1 });
    }
    return runs;
  }

  /**
   * Gives back the first of `count` clusters that nothing durable points at, as many as one refcount block describes;
   * answers how many. A failure gives none back.
   */
  async releaseSome(start: number, count: number): Promise<number> {
    const entries = this.#refcounts.blockEntries;
    const index = this.#refcounts.blockIndex(start);
    if (this.#refcounts.isAbsent(index)) throw this.#underflow(start);
    // Others may have used it, and made it leave memory again, meanwhile.
    while (!this.#refcounts.peek(index)) await this.#refcounts.load(index);
    const some = Math.min(count, (index + 1) * entries - start);
    for (let i = 0; i < some; i++) this.#releaseOne(this.#block(start + i), start + i);
    return some;
  }

  /** The same at once; false when a block is not in memory (nothing was done). */
  tryRelease(start: number, count: number): boolean {
    const last = this.#refcounts.blockIndex(start + count - 1);
    for (let index = this.#refcounts.blockIndex(start); index <= last; index++) {
      if (!this.#refcounts.peek(index)) return false;
    }
    for (let i = 0; i < count; i++) {
      this.#releaseOne(this.#block(start + i), start + i);
    }
    return true;
  }

  #releaseOne(block: CachedTable, cluster: number): void {
    const count = this.#refcounts.count(block, cluster);
    if (count === 0) throw this.#underflow(cluster);
    if (count === 1) this.#checkUnused(cluster);
    this.#refcounts.set(block, cluster, count - 1);
    if (count !== 1) return;
    this.#context.metadata.forget(cluster);
    this.#packed.freed(cluster);
    this.#free.add(cluster, 1);
  }

  /** An entry of a broken image may have named a table, or what was counted as free and became one. Errors: kind corrupt. */
  #checkUnused(cluster: number): void {
    const what = this.#context.metadata.usedAs(cluster);
    if (what !== undefined) throw this.#context.overlap(what, cluster * this.#context.clusterBytes);
  }

  #underflow(cluster: number): BlockError {
    const offset = cluster * this.#context.clusterBytes;
    return this.#context.corrupt('Refcount of a cluster in use is 0', offset);
  }
}
