import { BlockError, errnoOf, toBlockError } from '../../../base/error.js';
import { MiB } from '../../../base/limits.js';
import type { Allocator } from '../space/allocator.js';
import type { CachedTable } from '../tables/cached-table.js';
import { FieldOffset } from '../disk/header.js';
import type { ImageContext } from '../image.js';
import type { L2Tables } from '../tables/l2-cache.js';
import { ENTRY_BYTES, writeU64 } from '../disk/layout.js';
import type { Refcounts } from '../space/refcounts.js';
import type { Piece, SectorTable } from '../../tables/sector-table.js';

/** Clusters that are not free yet: until a write-back frees them, the file grows instead. */
const MAX_UNLINKED_BYTES = 256 * MiB;
/** The same in stretches, each some bytes of memory. */
const MAX_UNLINKED_RANGES = 65536;

export interface UnlinkedRange {
  offset: number;
  lengthBytes: number;
  /** The host may free the blocks too. */
  discard: boolean;
}

/**
 * Ranges of the image's own file (a data file has none) that nothing in memory points at any more, but the disk may: they
 * keep their refcount until it cannot.
 */
export class UnlinkedClusters {
  #ranges: UnlinkedRange[] = [];
  #bytes = 0;

  get isEmpty(): boolean {
    return this.#ranges.length === 0;
  }

  /** A write-back is due, however seldom the guest flushes. */
  get needsWriteBack(): boolean {
    return this.#bytes >= MAX_UNLINKED_BYTES || this.#ranges.length >= MAX_UNLINKED_RANGES;
  }

  add(offset: number, lengthBytes: number, discard: boolean): void {
    this.#bytes += lengthBytes;
    const last = this.#ranges.at(-1);
    if (last && last.discard === discard && last.offset + last.lengthBytes === offset) {
      last.lengthBytes += lengthBytes;
    } else {
      this.#ranges.push({ offset, lengthBytes, discard });
    }
  }

  takeAll(): UnlinkedRange[] {
    const ranges = this.#ranges;
    this.#ranges = [];
    this.#bytes = 0;
    return ranges;
  }

  /** After a write-back that failed. */
  restore(ranges: readonly UnlinkedRange[]): void {
    this.#ranges = [...ranges, ...this.#ranges];
    for (const { lengthBytes } of ranges) this.#bytes += lengthBytes;
  }
}

interface TablePiece {
  table: CachedTable;
  piece: Piece;
}

interface TableMove {
  from: { hostOffset: number; lengthBytes: number };
  hostOffset: number;
  entries: number;
}

/** All that a write-back brings to disk, as it was at one moment. */
interface Snapshot {
  newBlocks: TablePiece[];
  blocks: TablePiece[];
  refcountTable: Piece[];
  refcountTableMove: TableMove | undefined;
  newTables: TablePiece[];
  tables: TablePiece[];
  l1: Piece[];
  l1Move: TableMove | undefined;
  unlinked: UnlinkedRange[];
  /** Guest bytes whose mapping it brings to disk. */
  guestBytes: number;
}

/** How far a write-back came. */
const Stage = { begun: 0, refcountTable: 1, links: 2, l1: 3, done: 4 } as const;

/**
 * Writes metadata back in the order that keeps the image whole at every moment (docs/CRASH-SAFETY.md). The
 * only code that writes L1, L2 and refcount structures of an open image.
 */
export class WriteBack {
  readonly #context: ImageContext;
  readonly #tables: L2Tables;
  readonly #refcounts: Refcounts;
  readonly #allocator: Allocator;
  readonly #unlinked: UnlinkedClusters;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;

  constructor(
    context: ImageContext,
    parts: { tables: L2Tables; refcounts: Refcounts; allocator: Allocator; unlinked: UnlinkedClusters },
  ) {
    this.#context = context;
    this.#tables = parts.tables;
    this.#refcounts = parts.refcounts;
    this.#allocator = parts.allocator;
    this.#unlinked = parts.unlinked;
  }

  get isDirty(): boolean {
    const { cache, l1 } = this.#tables;
    return (
      this.#context.isHeaderUncertain ||
      !this.#unlinked.isEmpty ||
      l1.isDirty ||
      this.#refcounts.table.isDirty ||
      cache.isDirty ||
      this.#refcounts.cache.isDirty
    );
  }

  /** What is in memory is on the disk too, durably. */
  get isSettled(): boolean {
    return !this.#running && !this.isDirty;
  }

  /** A flush frees clusters at its end, which the next one brings to disk: nothing waits for one afterwards. */
  async flushAll(): Promise<void> {
    do await this.flush();
    while (this.isDirty);
  }

  /** Everything written and linked before the call is durable afterwards. Calls made during a write-back share the next. */
  flush(): Promise<void> {
    if (this.#next) return this.#next;
    const before = this.#running;
    if (!before) return this.#start();
    const next = before.then(
      () => this.#startNext(),
      () => this.#startNext(),
    );
    this.#next = next;
    return next;
  }

  #startNext(): Promise<void> {
    this.#next = undefined;
    return this.#start();
  }

  #start(): Promise<void> {
    const running = this.#writeBack().finally(() => {
      if (this.#running === running) this.#running = undefined;
    });
    this.#running = running;
    return running;
  }

  async #writeBack(): Promise<void> {
    await this.#context.announce('flush_to_os');
    if (!this.isDirty) return this.#flushAll();
    const snapshot = this.#take();
    const progress: { stage: number } = { stage: Stage.begun };
    try {
      await this.#write(snapshot, progress);
    } catch (error) {
      this.#restore(snapshot, progress.stage);
      throw error;
    } finally {
      for (const { table } of [...snapshot.newBlocks, ...snapshot.blocks])
        this.#refcounts.cache.release(table);
      for (const { table } of [...snapshot.newTables, ...snapshot.tables]) this.#tables.cache.release(table);
    }
    await this.#free(snapshot);
  }

  async #write(s: Snapshot, progress: { stage: number }): Promise<void> {
    // What is at the new place was durable before. The flush that follows comes before any link.
    if (this.#context.isHeaderUncertain)
      await this.#context.headerLock.run(() => this.#context.writeHeader(() => undefined));
    if (s.refcountTableMove) {
      await this.#moveRefcountTable(s, s.refcountTableMove);
    } else if (s.refcountTable.length > 0) {
      // A block must be durable before the table points at it.
      await this.#writeTables('refblock_alloc_write', s.newBlocks);
      await this.#flushMeta();
      await this.#writePieces('refblock_alloc_hookup', s.refcountTable);
    }
    progress.stage = Stage.refcountTable;
    if (!s.refcountTableMove) await this.#writeTables('refblock_update', s.blocks);
    await this.#writeTables('l2_alloc_write', s.newTables);
    if (s.l1Move) await this.#writePieces('l1_grow_write_table', s.l1);
    if (s.tables.length === 0 && s.l1.length === 0) return this.#finish(progress);
    // Guest data, refcounts and new L2 tables must be durable before anything points at them.
    await this.#flushAll();
    progress.stage = Stage.links;
    await this.#writeTables('l2_update', s.tables);
    if (s.l1Move) await this.#switchL1(s.l1Move);
    else await this.#writePieces('l1_update', s.l1);
    progress.stage = Stage.l1;
    await this.#finish(progress);
  }

  async #finish(progress: { stage: number }): Promise<void> {
    await this.#flushAll();
    this.#context.isHeaderUncertain = false;
    progress.stage = Stage.done;
  }

  /** The larger refcount table and all blocks first; then the header names it. */
  async #moveRefcountTable(s: Snapshot, move: TableMove): Promise<void> {
    await this.#writeTables('refblock_alloc_write_blocks', s.newBlocks);
    await this.#writeTables('refblock_update', s.blocks);
    await this.#writePieces('refblock_alloc_write_table', s.refcountTable);
    await this.#flushMeta();
    await this.#context.announce('refblock_alloc_switch_table');
    const clusters = (move.entries * ENTRY_BYTES) / this.#context.clusterBytes;
    await this.#context.headerLock.run(() =>
      this.#context.writeHeader((sector) => {
        writeU64(sector, FieldOffset.refcountTableOffset, move.hostOffset);
        sector.writeUInt32BE(clusters, FieldOffset.refcountTableClusters);
      }),
    );
    // Durable by the flush that comes before any link.
    const { header } = this.#context;
    header.refcountTableOffset = move.hostOffset;
    header.refcountTableClusters = clusters;
  }

  async #switchL1(move: TableMove): Promise<void> {
    await this.#context.announce('l1_grow_activate_table');
    await this.#context.headerLock.run(() =>
      this.#context.writeHeader((sector) => {
        writeU64(sector, FieldOffset.l1Offset, move.hostOffset);
        sector.writeUInt32BE(move.entries, FieldOffset.l1Entries);
      }),
    );
    this.#context.header.l1Offset = move.hostOffset;
    this.#context.header.l1Entries = move.entries;
  }

  /** The error of an end at which the write-back fails: for lack of space it says how much goes with it. */
  lossError(error: unknown): BlockError {
    const cause = toBlockError(error);
    const { unflushedBytes, driver } = this.#context;
    if (cause.kind !== 'no-space' || unflushedBytes === 0) return cause;
    const what = `The last ${unflushedBytes} bytes written to '${driver.filename}' are lost`;
    return new BlockError(cause.kind, `${what}: ${cause.message}`, { errno: errnoOf(cause), cause });
  }

  /** What only the disk's older state pointed at is free now. */
  async #free(s: Snapshot): Promise<void> {
    const ranges = [...s.unlinked];
    for (const move of [s.refcountTableMove, s.l1Move]) {
      if (move)
        ranges.push({
          offset: move.from.hostOffset,
          lengthBytes: move.from.lengthBytes,
          discard: this.#context.passesDiscard('other'),
        });
    }
    if (ranges.length === 0) return;
    try {
      await this.#context.announce('cluster_free');
      for (let range = ranges[0]; range; range = ranges[0]) {
        await this.#freeRange(range);
        ranges.shift();
      }
    } catch (error) {
      // Leaked at worst: nothing points at them, and nobody gets them.
      if (!isCorrupt(error)) this.#unlinked.restore(ranges);
      throw error;
    }
  }

  /** What it gave back is no longer in `range`, also after a failure. */
  async #freeRange(range: UnlinkedRange): Promise<void> {
    const { clusterBytes } = this.#context;
    // The host's blocks go first: the clusters may be given out as soon as they are released.
    if (range.discard) await this.#discard(range);
    while (range.lengthBytes > 0) {
      const clusters = Math.ceil(range.lengthBytes / clusterBytes);
      const done = await this.#allocator.releaseSome(range.offset / clusterBytes, clusters);
      range.offset += done * clusterBytes;
      range.lengthBytes -= done * clusterBytes;
      if (this.#allocator.needsWriteBack) await this.#writeRefcounts();
    }
  }

  /** Blocks that the disk names already, in between: no refcount in memory is ever less than what the disk needs. */
  async #writeRefcounts(): Promise<void> {
    const pieces: TablePiece[] = [];
    for (const table of this.#refcounts.cache.dirty()) {
      if (!table.isNew) pieces.push({ table, piece: table.takeDirty() });
    }
    try {
      await this.#writeTables('refblock_update', pieces);
    } catch (error) {
      restorePieces(pieces);
      throw error;
    } finally {
      for (const { table } of pieces) this.#refcounts.cache.release(table);
    }
  }

  /** Only what becomes free: the blocks of a cluster that an internal snapshot has too hold the snapshot's data. */
  async #discard(range: UnlinkedRange): Promise<void> {
    const { clusterBytes, meta } = this.#context;
    const first = range.offset / clusterBytes;
    for (const run of await this.#allocator.ownedRuns(first, range.lengthBytes / clusterBytes)) {
      const offset = run.start * clusterBytes;
      // Compressed data at the end of the file may not fill its cluster.
      const length = Math.min(run.count * clusterBytes, meta.lengthBytes - offset);
      try {
        if (length > 0) await meta.discard(offset, length);
      } catch {
        // A hint; the clusters are free in any case.
      }
    }
  }

  async #writeTables(event: string, pieces: readonly TablePiece[]): Promise<void> {
    await this.#writePieces(
      event,
      pieces.map(({ piece }) => piece),
    );
  }

  async #writePieces(event: string, pieces: readonly Piece[]): Promise<void> {
    const { meta } = this.#context;
    for (const { offset, bytes } of pieces) {
      const wait = this.#context.announce(event);
      if (wait) await wait;
      if (!meta.tryWrite(offset, bytes, 0)) await meta.write(offset, bytes, 0);
    }
  }

  async #flushMeta(): Promise<void> {
    const wait = this.#context.announce('flush_to_disk');
    if (wait) await wait;
    await this.#context.meta.flush();
  }

  /** Guest data too. */
  async #flushAll(): Promise<void> {
    const wait = this.#context.announce('flush_to_disk');
    if (wait) await wait;
    await this.#context.storage.flush();
  }

  /** Takes all that is dirty as it is; what changes from here on is for the next write-back. Without a wait. */
  #take(): Snapshot {
    const { cache, l1 } = this.#tables;
    const refcountTable = this.#refcounts.table;
    const snapshot: Snapshot = {
      newBlocks: [],
      blocks: [],
      refcountTableMove: takeMove(refcountTable),
      refcountTable: [],
      newTables: [],
      tables: [],
      l1Move: takeMove(l1),
      l1: [],
      unlinked: this.#unlinked.takeAll(),
      guestBytes: this.#context.unflushedBytes,
    };
    this.#context.unflushedBytes = 0;
    snapshot.refcountTable = refcountTable.takeDirty(snapshot.refcountTableMove !== undefined);
    snapshot.l1 = l1.takeDirty(snapshot.l1Move !== undefined);
    for (const block of this.#refcounts.cache.dirty()) {
      (block.isNew ? snapshot.newBlocks : snapshot.blocks).push({ table: block, piece: block.takeDirty() });
    }
    for (const table of cache.dirty()) {
      (table.isNew ? snapshot.newTables : snapshot.tables).push({ table, piece: table.takeDirty() });
    }
    return snapshot;
  }

  /** A write-back failed: all of it is dirty again. What the disk may point at already is no longer new. */
  #restore(s: Snapshot, stage: number): void {
    for (const { table } of s.newBlocks) {
      if (stage < Stage.refcountTable) table.isNew = true;
      else table.markDirty(0, table.bytes.length);
    }
    for (const { table } of s.newTables) {
      if (stage < Stage.links) table.isNew = true;
      else table.markDirty(0, table.bytes.length);
    }
    restorePieces([...s.blocks, ...s.tables]);
    this.#unlinked.restore(s.unlinked);
    this.#context.unflushedBytes += s.guestBytes;
    const { table } = this.#refcounts;
    this.#restoreTable(table, s.refcountTable, s.refcountTableMove, stage >= Stage.refcountTable);
    this.#restoreTable(this.#tables.l1, s.l1, s.l1Move, stage >= Stage.l1);
  }

  /** `isNamed`: the header names the new place, where all is durable, and the old place is to be freed. */
  #restoreTable(
    table: SectorTable,
    pieces: readonly Piece[],
    move: TableMove | undefined,
    isNamed: boolean,
  ): void {
    if (!move) return table.restoreDirty(pieces);
    // Moved again meanwhile: the place in between is nothing's.
    const unused = isNamed ? move.from : table.moved;
    if (unused)
      this.#unlinked.add(unused.hostOffset, unused.lengthBytes, this.#context.passesDiscard('other'));
    if (isNamed) this.#context.isHeaderUncertain = true;
    else table.moved = move.from;
  }
}

function restorePieces(pieces: readonly TablePiece[]): void {
  for (const { table, piece } of pieces) {
    const from = piece.offset - table.hostOffset;
    table.markDirty(from, from + piece.bytes.length);
  }
}

function isCorrupt(error: unknown): boolean {
  return error instanceof Error && 'kind' in error && error.kind === 'corrupt';
}

function takeMove(table: SectorTable): TableMove | undefined {
  const { moved } = table;
  table.moved = undefined;
  return moved && { from: moved, hostOffset: table.hostOffset, entries: table.entries };
}
