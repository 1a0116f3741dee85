import { alignDown, alignUp } from '../../../base/align.js';
import { assert } from '../../../base/assert.js';
import type { ChildIo, Reservation } from '../../../block/driver.js';
import type { Allocator } from './allocator.js';
import type { CachedTable } from '../tables/cached-table.js';
import type { UnlinkedClusters } from '../order/flush.js';
import type { ImageContext } from '../image.js';
import type { L2Tables } from '../tables/l2-cache.js';
import type { L2Layout } from '../disk/l2-layout.js';
import { ClusterKind, entryOffset, hostClustersOf } from '../disk/layout.js';
import type { MetadataSpace, Need } from './space.js';

/** Parts of an open image that change its mapping. */
export interface ImageParts {
  readonly context: ImageContext;
  readonly space: MetadataSpace;
  readonly tables: L2Tables;
  readonly allocator: Allocator;
  readonly unlinked: UnlinkedClusters;
}

/** What the entry of a table, or of a part of one, points at is free once nothing durable points at it. */
export function unlinkEntry(parts: ImageParts, table: Buffer, index: number, discard: boolean): void {
  const { l2, clusterBytes, header } = parts.context;
  if (l2.hasDataFile) return;
  if (l2.kind(table, index) === ClusterKind.compressed) {
    const range = hostClustersOf(l2.compressedRange(table, index, header.clusterBits), clusterBytes);
    parts.unlinked.add(range.hostOffset, range.lengthBytes, discard);
    return;
  }
  const offset = l2.hostOffset(table, index);
  if (offset !== 0) parts.unlinked.add(offset, clusterBytes, discard);
}

/** The L2 table to change for an L1 entry, made or copied when missing or shared; or what must be awaited first. */
export function tableToChange(parts: ImageParts, l1Index: number): CachedTable | Need {
  const { context, tables, allocator } = parts;
  context.assertMayWrite();
  if (context.beforeChanges) return () => context.beginChanges();
  if (tables.cache.needsWriteBack || allocator.needsWriteBack || parts.unlinked.needsWriteBack)
    return () => context.requestFlush();
  const table = tables.peek(l1Index);
  const absent = tables.isAbsent(l1Index);
  if (!table && !absent) return () => tables.load(l1Index);
  if (table && tables.isCopied(l1Index)) return parts.space.needsTable(table) ?? table;
  const need = parts.space.needsEntry(tables.l1, l1Index);
  if (need) return need;
  const run = allocator.tryAllocate(1, 'L2 table');
  if (typeof run === 'function') return run;
  if (!absent)
    parts.unlinked.add(
      entryOffset(tables.l1.bytes, l1Index),
      context.clusterBytes,
      context.passesDiscard('other'),
    );
  return tables.replace(l1Index, run.start * context.clusterBytes);
}

/** Gives out reservations: see MapDriver.reserve. */
export class Reserver {
  readonly #parts: ImageParts;

  constructor(parts: ImageParts) {
    this.#parts = parts;
  }

  tryReserve(offset: number, lengthBytes: number): Reservation | undefined {
    if (this.#parts.allocator.needsScan()) return undefined;
    const attempt = this.#attempt(offset, lengthBytes);
    return typeof attempt === 'function' ? undefined : attempt;
  }

  async reserve(offset: number, lengthBytes: number): Promise<Reservation> {
    const { context, allocator } = this.#parts;
    await context.announce('cluster_alloc');
    await allocator.needsScan()?.();
    for (;;) {
      const attempt = this.#attempt(offset, lengthBytes);
      if (typeof attempt !== 'function') return attempt;
      await attempt();
    }
  }

  #attempt(offset: number, lengthBytes: number): Reservation | Need {
    const { context, allocator, tables } = this.#parts;
    const { l2, clusterBytes: cluster } = context;
    const coverage = context.l2Entries * cluster;
    const l1Index = Math.floor(offset / coverage);
    const table = tableToChange(this.#parts, l1Index);
    if (typeof table === 'function') return table;
    const base = l1Index * coverage;
    const wanted = { from: offset - base, end: Math.min(offset - base + lengthBytes, coverage) };
    const first = Math.floor(wanted.from / cluster);
    const kept = isKept(l2, table.bytes, first);
    const units = kept ? this.#keptUnits(table, wanted) : this.#newUnits(table, wanted);
    const within = units.from - first * cluster;
    const place = { base, units, kept };
    if (kept || l2.hasDataFile) {
      const host = kept ? l2.hostOffset(table.bytes, first) : base + first * cluster;
      return new ClusterReservation(this.#parts, table, { ...place, host: host + within, fresh: false });
    }
    const run = allocator.tryAllocate(Math.ceil(units.end / cluster) - first, 'data cluster');
    if (typeof run === 'function') return run;
    assert(table === tables.peek(l1Index), 'an L2 table stays while it is used');
    const end = Math.min(units.end, (first + run.count) * cluster);
    return new ClusterReservation(this.#parts, table, {
      ...place,
      units: { from: units.from, end },
      host: run.start * cluster + within,
      fresh: run.isFresh,
    });
  }

  /**
   * Units of clusters that have a host cluster of their own, one behind the other, and no data in them yet; or all with
   * data, which could not be overwritten when they were mapped, as the image was not ready for changes.
   */
  #keptUnits(table: CachedTable, wanted: Units): Units {
    const { context, tables } = this.#parts;
    const { l2, clusterBytes: cluster, unitBytes: unit } = context;
    const from = alignDown(wanted.from, unit);
    const first = Math.floor(from / cluster);
    const host = l2.hostOffset(table.bytes, first) - first * cluster;
    const hasData = isData(l2, table.bytes, first, (from % cluster) / unit);
    let end = from;
    for (; end < wanted.end; end += unit) {
      const index = Math.floor(end / cluster);
      if (end % cluster === 0 || end === from) {
        tables.checkEntry(table, index);
        tables.checkChange(table, index);
        if (!isKept(l2, table.bytes, index)) break;
        if (l2.hostOffset(table.bytes, index) !== host + index * cluster) break;
      }
      if (isData(l2, table.bytes, index, (end % cluster) / unit) !== hasData) break;
    }
    assert(end > from, 'a reservation takes what it was asked for');
    return { from, end };
  }

  /**
   * Units of clusters that get new host clusters: where such a cluster has data elsewhere that is to stay, all of it comes
   * along.
   */
  #newUnits(table: CachedTable, wanted: Units): Units {
    const { context, tables } = this.#parts;
    const { l2, clusterBytes: cluster, unitBytes: unit } = context;
    const { bytes } = table;
    const first = Math.floor(wanted.from / cluster);
    // Of clusters that nothing is said of there is nothing to check.
    let index = l2.nextUsed(bytes, first, Math.ceil(wanted.end / cluster));
    for (; index * cluster < wanted.end; index++) {
      tables.checkEntry(table, index);
      tables.checkChange(table, index);
      if (index > first && (isKept(l2, bytes, index) || isWritable(l2, bytes, index))) break;
    }
    const end = Math.min(alignUp(wanted.end, unit), index * cluster);
    const last = index - 1;
    const movesAll = (at: number): boolean => {
      const kind = l2.kind(bytes, at);
      return kind === ClusterKind.compressed || (kind === ClusterKind.data && !l2.hasDataFile);
    };
    return {
      from: movesAll(first) ? first * cluster : alignDown(wanted.from, unit),
      end: movesAll(last) ? index * cluster : end,
    };
  }
}

/** A stretch of what a table maps, in bytes from its beginning: whole units. */
interface Units {
  from: number;
  end: number;
}

/** A cluster whose own host cluster can take data that it does not have yet. */
function isKept(l2: L2Layout, bytes: Buffer, index: number): boolean {
  const kind = l2.kind(bytes, index);
  if (kind === ClusterKind.data) return l2.unitsPerCluster > 1 && l2.isCopied(bytes, index);
  return kind === ClusterKind.zeroAllocated && l2.isCopied(bytes, index);
}

/** All of it may be overwritten where it is. */
function isWritable(l2: L2Layout, bytes: Buffer, index: number): boolean {
  return l2.kind(bytes, index) === ClusterKind.data && l2.isCopied(bytes, index);
}

function isData(l2: L2Layout, bytes: Buffer, index: number, unit: number): boolean {
  const kind = l2.unitsPerCluster === 1 ? l2.kind(bytes, index) : l2.unitKind(bytes, index, unit);
  return kind === ClusterKind.data;
}

interface Place {
  /** Guest offset at which the table begins. */
  base: number;
  units: Units;
  /** Where the first unit is in the child with the data. */
  host: number;
  /** The host clusters are those that the entries have. */
  kept: boolean;
  fresh: boolean;
}

class ClusterReservation implements Reservation {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly child: ChildIo;
  readonly hostOffset: number;
  readonly plain: boolean;
  readonly readsZero: boolean;
  readonly before: 'zero' | 'mixed';
  readonly #parts: ImageParts;
  readonly #table: CachedTable;
  readonly #units: Units;
  readonly #index: number;
  readonly #count: number;
  readonly #kept: boolean;
  readonly #old: Buffer;
  /** Nothing was said of any of the clusters. */
  readonly #wasUnused: boolean;
  #open = true;

  constructor(parts: ImageParts, table: CachedTable, { base, units, host, kept, fresh }: Place) {
    const { clusterBytes, data, encryption, l2 } = parts.context;
    this.plain = !encryption;
    this.#parts = parts;
    this.#table = table;
    this.#units = units;
    this.#index = Math.floor(units.from / clusterBytes);
    this.#count = Math.ceil(units.end / clusterBytes) - this.#index;
    this.#kept = kept;
    this.offset = base + units.from;
    // A data file is as long as the disk.
    const mostBytes = l2.hasDataFile ? parts.context.header.sizeBytes - this.offset : Infinity;
    this.lengthBytes = Math.min(units.end - units.from, mostBytes);
    this.child = data;
    this.hostOffset = host;
    this.readsZero = fresh && this.plain;
    this.#old = Buffer.from(this.#entries());
    this.#wasUnused = l2.nextUsed(this.#old, 0, this.#count) === this.#count;
    this.before = this.#wasZero() ? 'zero' : 'mixed';
    table.pins++;
  }

  #entries(): Buffer {
    const { entryBytes } = this.#parts.context.l2;
    const from = this.#index * entryBytes;
    return this.#table.bytes.subarray(from, from + this.#count * entryBytes);
  }

  /** First and last unit, this one excluded, of the cluster that is the i-th of it. */
  #unitsOf(i: number): { from: number; end: number } {
    const { clusterBytes, unitBytes } = this.#parts.context;
    const start = (this.#index + i) * clusterBytes;
    return {
      from: Math.max(0, this.#units.from - start) / unitBytes,
      end: Math.min(clusterBytes, this.#units.end - start) / unitBytes,
    };
  }

  #wasZero(): boolean {
    const { driver, l2 } = this.#parts.context;
    const hasBacking = driver.hasChild('backing');
    if (this.#wasUnused) return !hasBacking;
    for (let i = 0; i < this.#count; i++) {
      const { from, end } = this.#unitsOf(i);
      for (let unit = from; unit < end; unit++) {
        const kind = l2.unitsPerCluster === 1 ? l2.kind(this.#old, i) : l2.unitKind(this.#old, i, unit);
        if (kind === ClusterKind.data || kind === ClusterKind.compressed) return false;
        if (kind === ClusterKind.unallocated && hasBacking) return false;
      }
    }
    return true;
  }

  link(): void {
    this.#close();
    assert(this.#old.equals(this.#entries()), 'the mapping changed between reserve and link');
    const { context } = this.#parts;
    const { l2, clusterBytes: cluster } = context;
    const from = this.#index * l2.entryBytes;
    const bytes = this.#table.change(from, from + this.#count * l2.entryBytes);
    const discard = context.passesDiscard('other');
    const host = this.hostOffset - (this.#units.from - this.#index * cluster);
    const unlinks = !this.#kept && !this.#wasUnused;
    for (let i = 0; i < this.#count; i++) {
      const index = this.#index + i;
      const units = this.#unitsOf(i);
      if (units.end - units.from === l2.unitsPerCluster) {
        if (unlinks) unlinkEntry(this.#parts, this.#old, i, discard);
        l2.writeData(bytes, index, host + i * cluster, true);
      } else {
        // What the old cluster has of other units is nothing, or zeroes.
        if (unlinks) unlinkEntry(this.#parts, this.#old, i, discard);
        l2.setHost(bytes, index, host + i * cluster, true);
        l2.setUnits(bytes, index, units.from, units.end, 'data');
      }
    }
    context.unflushedBytes += this.lengthBytes;
  }

  abort(): void {
    this.#close();
    const { allocator, context, unlinked } = this.#parts;
    if (this.#kept || context.l2.hasDataFile) return;
    const { clusterBytes } = context;
    const start = Math.floor(this.hostOffset / clusterBytes);
    // Where its refcount block has left memory, the next write-back frees it.
    if (!allocator.tryRelease(start, this.#count))
      unlinked.add(start * clusterBytes, this.#count * clusterBytes, false);
  }

  #close(): void {
    assert(this.#open, 'a reservation is linked or aborted once');
    this.#open = false;
    this.#table.pins--;
  }
}
