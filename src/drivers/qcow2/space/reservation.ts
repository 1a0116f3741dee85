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
  if (!absent) parts.unlinked.add(entryOffset(tables.l1.bytes, l1Index), context.clusterBytes, false);
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
    const first = Math.floor((offset % coverage) / cluster);
    const last = Math.ceil(((offset % coverage) + lengthBytes) / cluster);
    const count = this.#alikeCount(table, first, Math.min(last, context.l2Entries));
    const guestOffset = l1Index * coverage + first * cluster;
    if (isKept(l2, table.bytes, first)) {
      const host = l2.hostOffset(table.bytes, first);
      return new ClusterReservation(this.#parts, table, first, {
        offset: guestOffset,
        host,
        count,
        kept: true,
      });
    }
    const run = allocator.tryAllocate(count, 'data cluster');
    if (typeof run === 'function') return run;
    assert(table === tables.peek(l1Index), 'an L2 table stays while it is used');
    return new ClusterReservation(this.#parts, table, first, {
      offset: guestOffset,
      host: run.start * cluster,
      count: run.count,
      kept: false,
      fresh: run.isFresh,
    });
  }

  /** How many entries from `first` can go into one reservation. */
  #alikeCount(table: CachedTable, first: number, end: number): number {
    const { context, tables } = this.#parts;
    const { l2 } = context;
    const { bytes } = table;
    const kept = isKept(l2, bytes, first);
    let index = first;
    for (; index < end; index++) {
      tables.checkEntry(table, index);
      tables.checkChange(table, index);
      const kind = l2.kind(bytes, index);
      if (index === first) continue;
      if (kind === ClusterKind.data && l2.isCopied(bytes, index)) break;
      if (isKept(l2, bytes, index) !== kept) break;
      if (
        kept &&
        l2.hostOffset(bytes, index) !== l2.hostOffset(bytes, first) + (index - first) * context.clusterBytes
      )
        break;
    }
    return index - first;
  }
}

/** A zero cluster whose own host cluster can take the data. */
function isKept(l2: L2Layout, bytes: Buffer, index: number): boolean {
  return l2.kind(bytes, index) === ClusterKind.zeroAllocated && l2.isCopied(bytes, index);
}

interface Place {
  offset: number;
  host: number;
  count: number;
  /** The clusters are those that the zero entries kept. */
  kept: boolean;
  fresh?: boolean;
}

class ClusterReservation implements Reservation {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly child: ChildIo;
  readonly hostOffset: number;
  readonly plain = true;
  readonly readsZero: boolean;
  readonly before: 'zero' | 'mixed';
  readonly #parts: ImageParts;
  readonly #table: CachedTable;
  readonly #index: number;
  readonly #count: number;
  readonly #kept: boolean;
  readonly #old: Buffer;
  #open = true;

  constructor(parts: ImageParts, table: CachedTable, index: number, place: Place) {
    this.#parts = parts;
    this.#table = table;
    this.#index = index;
    this.#count = place.count;
    this.#kept = place.kept;
    this.offset = place.offset;
    this.lengthBytes = place.count * parts.context.clusterBytes;
    this.child = parts.context.data;
    this.hostOffset = place.host;
    this.readsZero = place.fresh ?? false;
    this.#old = Buffer.from(this.#entries());
    this.before = this.#wasZero() ? 'zero' : 'mixed';
    table.pins++;
  }

  #entries(): Buffer {
    const { entryBytes } = this.#parts.context.l2;
    const from = this.#index * entryBytes;
    return this.#table.bytes.subarray(from, from + this.#count * entryBytes);
  }

  #wasZero(): boolean {
    const { driver, l2 } = this.#parts.context;
    const hasBacking = driver.hasChild('backing');
    for (let i = 0; i < this.#count; i++) {
      const kind = l2.kind(this.#old, i);
      if (kind === ClusterKind.data || kind === ClusterKind.compressed) return false;
      if (kind === ClusterKind.unallocated && hasBacking) return false;
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
    for (let i = 0; i < this.#count; i++) {
      if (!this.#kept) unlinkEntry(this.#parts, this.#old, i, false);
      l2.write(bytes, this.#index + i, this.hostOffset + i * cluster, true);
    }
    context.unflushedBytes += this.lengthBytes;
  }

  abort(): void {
    this.#close();
    if (this.#kept) return;
    const { allocator, context, unlinked } = this.#parts;
    const start = this.hostOffset / context.clusterBytes;
    // Where its refcount block has left memory, the next write-back frees it.
    if (!allocator.tryRelease(start, this.#count)) unlinked.add(this.hostOffset, this.lengthBytes, false);
  }

  #close(): void {
    assert(this.#open, 'a reservation is linked or aborted once');
    this.#open = false;
    this.#table.pins--;
  }
}
