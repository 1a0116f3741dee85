import { alignDown, alignUp } from '../../../base/align.js';
import { assert } from '../../../base/assert.js';
import { KiB } from '../../../base/limits.js';
import type { MemoryBudget, MemoryHolder } from '../../../base/memory-budget.js';
import { SECTOR_BYTES } from '../disk/layout.js';
import type { Piece } from '../../tables/sector-table.js';

/** Up to this a write-back copies what is dirty; more it writes from the table itself, which is copied when changed. */
const COPIED_PIECE_BYTES = 4 * KiB;
/** What a table holds that has left memory: whoever still looks at it is wrong, and finds nothing. */
const NOTHING = Buffer.alloc(0);

/** An L2 table or refcount block in memory, with the stretch of it that differs from the disk. */
export class CachedTable {
  /** L1 index of an L2 table; refcount table index of a refcount block. */
  readonly index: number;
  /** For reading, and never across a wait without a pin; see change(). */
  bytes: Buffer;
  readonly hostOffset: number;
  /** Its place on the storage is sure to take a change of it: see MetadataSpace. */
  hasSpace: boolean;
  /** Users that hold it across an await: it stays in memory. */
  pins = 0;
  /** Read for somebody who has not looked at it yet: requests that take turns must not evict each other's for ever. */
  isAwaited = false;
  /** Write-backs under way: the disk is older than memory. */
  writeBacks = 0;
  /** Looked at since the cache last thought of letting it go. */
  wasUsed = true;
  /** Its place in the cache's round. */
  place = 0;
  /** Of an L2 table: every entry was looked at and may be used unchecked. */
  wellFormed = true;
  #isNew: boolean;
  #dirtyFrom = 0;
  #dirtyEnd = 0;
  /** The dirty ones of the cache that it is in. */
  #dirtyTables: Set<CachedTable> | undefined;
  /** What a write-back is writing straight from here. */
  #lent: Buffer | undefined;

  constructor(index: number, bytes: Buffer, hostOffset: number, isNew: boolean) {
    this.index = index;
    this.bytes = bytes;
    this.hostOffset = hostOffset;
    this.#isNew = isNew;
    this.hasSpace = isNew;
  }

  /** Nothing on disk points at it yet: it may be written in full before what it refers to is durable. */
  get isNew(): boolean {
    return this.#isNew;
  }

  set isNew(isNew: boolean) {
    this.#isNew = isNew;
    this.#tellDirty();
  }

  /** Is in a cache from now on, or (undefined) in none. */
  joins(dirtyTables: Set<CachedTable> | undefined): void {
    this.#dirtyTables?.delete(this);
    this.#dirtyTables = dirtyTables;
    this.#tellDirty();
  }

  #tellDirty(): void {
    if (this.isDirty) this.#dirtyTables?.add(this);
    else this.#dirtyTables?.delete(this);
  }

  get isDirty(): boolean {
    return this.#isNew || this.#dirtyEnd > this.#dirtyFrom;
  }

  get mayEvict(): boolean {
    return this.pins === 0 && this.writeBacks === 0 && !this.isAwaited && !this.isDirty;
  }

  /** The bytes for a change of [from, end), which counts as dirty. */
  change(from: number, end: number): Buffer {
    this.markDirty(from, end);
    if (this.#lent === this.bytes) this.bytes = Buffer.from(this.#lent);
    return this.bytes;
  }

  /** Bytes [from, end) must be written. */
  markDirty(from: number, end: number): void {
    const start = alignDown(from, SECTOR_BYTES);
    const stop = alignUp(end, SECTOR_BYTES);
    if (this.#dirtyEnd === this.#dirtyFrom) {
      this.#dirtyFrom = start;
      this.#dirtyEnd = stop;
      this.#dirtyTables?.add(this);
    } else {
      this.#dirtyFrom = Math.min(this.#dirtyFrom, start);
      this.#dirtyEnd = Math.max(this.#dirtyEnd, stop);
    }
  }

  /** What must be written (all of a new table), as it is now; counts as clean. release() is due when it is written. */
  takeDirty(): Piece {
    const from = this.#isNew ? 0 : this.#dirtyFrom;
    const end = this.#isNew ? this.bytes.length : this.#dirtyEnd;
    this.#dirtyFrom = this.#dirtyEnd = 0;
    this.isNew = false;
    this.writeBacks++;
    const bytes = this.bytes.subarray(from, end);
    if (bytes.length > COPIED_PIECE_BYTES) this.#lent = this.bytes;
    return {
      offset: this.hostOffset + from,
      bytes: bytes.length > COPIED_PIECE_BYTES ? bytes : Buffer.from(bytes),
    };
  }

  /** A write-back has ended. Answers the buffer that nobody uses any more, if the table was changed meanwhile. */
  release(): Buffer | undefined {
    this.writeBacks--;
    const lent = this.#lent;
    this.#lent = undefined;
    return lent === this.bytes ? undefined : lent;
  }

  /** Left memory; answers its buffer. */
  retire(): Buffer {
    const { bytes } = this;
    this.bytes = NOTHING;
    this.joins(undefined);
    return bytes;
  }
}

/** Free buffers are kept up to this part of the cache. */
const FREE_SHARE = 8;

/** Tables that were not looked at for a round leave first; what the disk lacks stays. */
export class TableCache implements MemoryHolder {
  readonly #tables = new Map<number, CachedTable>();
  /** All of them in a round, which a hand goes along in search of one to leave. */
  readonly #round: CachedTable[] = [];
  #hand = 0;
  readonly #dirty = new Set<CachedTable>();
  readonly #tableBytes: number;
  #maxTables: number;
  /** Buffers of tables that left, for others that come: no garbage at any rate of loading. */
  readonly #free: Buffer[] = [];
  readonly #loading = new Map<number, Promise<CachedTable>>();
  #last: CachedTable | undefined;
  #budget: MemoryBudget | undefined;

  /** Keeps `limitBytes`, but two tables at least; and in a budget with others, only what that has room for. */
  constructor(tableBytes: number, limitBytes: number, budget?: MemoryBudget) {
    this.#tableBytes = tableBytes;
    this.#budget = budget;
    this.#maxTables = Math.max(2, Math.floor(limitBytes / tableBytes));
  }

  get heldBytes(): number {
    return this.#tables.size * this.#tableBytes;
  }

  letGo(bytes: number): void {
    this.#free.length = 0;
    const enough = this.heldBytes - bytes;
    this.#goAround(
      () => this.heldBytes > enough,
      (table) => {
        if (this.#last === table) this.#last = undefined;
        this.#takeOut(table);
        table.retire();
      },
    );
  }

  /** The image has been opened anew, or is closed. */
  leaveBudget(): void {
    this.#budget?.leave(this);
    this.#budget = undefined;
  }

  get limitBytes(): number {
    return this.#maxTables * this.#tableBytes;
  }

  /** From now on so many tables fit at the same time: somebody needs them together. */
  makeRoomFor(tables: number): void {
    this.#maxTables = Math.max(this.#maxTables, tables);
  }

  /** The table if it is in memory. */
  peek(index: number): CachedTable | undefined {
    const last = this.#last;
    const table = last?.index === index ? last : this.#tables.get(index);
    if (table) {
      table.wasUsed = true;
      table.isAwaited = false;
      this.#last = table;
    }
    return table;
  }

  /**
   * The table, by `read` unless it is in memory or already being read. It stays until the next peek(), which is due
   * when the promise resolves.
   */
  async load(index: number, read: () => Promise<CachedTable>): Promise<CachedTable> {
    const cached = this.peek(index);
    if (cached) return cached;
    let loading = this.#loading.get(index);
    if (!loading) {
      loading = read().then((table) => {
        table.isAwaited = true;
        this.put(table);
        return table;
      });
      this.#loading.set(index, loading);
      const forget = (): void => void this.#loading.delete(index);
      loading.then(forget, forget);
    }
    return loading;
  }

  /** Room for a table, with anything in it. */
  buffer(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafe(this.#tableBytes);
  }

  #recycle(buffer: Buffer): void {
    if (this.#free.length * FREE_SHARE < this.#maxTables) this.#free.push(buffer);
  }

  /** A write-back of the table has ended. */
  release(table: CachedTable): void {
    const buffer = table.release();
    if (buffer) this.#recycle(buffer);
  }

  put(table: CachedTable): void {
    const before = this.#tables.get(table.index);
    if (before && before !== table) {
      this.#takeOut(before);
      if (before.mayEvict) this.#recycle(before.retire());
      else before.joins(undefined);
    }
    if (before !== table) {
      table.place = this.#round.push(table) - 1;
      this.#tables.set(table.index, table);
      table.joins(this.#dirty);
      this.#budget?.took(this, this.#tableBytes);
    }
    this.#last = table;
    table.wasUsed = true;
    this.#evict();
  }

  /** The table is nothing's any more: what of it is not on disk need not come there. */
  forget(index: number): void {
    const table = this.#tables.get(index);
    if (!table) return;
    assert(table.pins === 0, 'a table that somebody uses is not forgotten');
    this.#takeOut(table);
    if (this.#last === table) this.#last = undefined;
    table.joins(undefined);
  }

  /** The same of all of them. */
  forgetAll(): void {
    for (const index of [...this.#tables.keys()]) this.forget(index);
  }

  #takeOut(table: CachedTable): void {
    this.#tables.delete(table.index);
    this.#budget?.gave(this.#tableBytes);
    const last = this.#round.pop();
    if (!last || last === table) return;
    this.#round[table.place] = last;
    last.place = table.place;
  }

  /** Most of the cache must stay in memory until it is written back. */
  get needsWriteBack(): boolean {
    return this.#dirty.size * 2 > this.#maxTables;
  }

  get isDirty(): boolean {
    return this.#dirty.size > 0;
  }

  /** Those that differ from the disk; the caller may make each of them clean. */
  dirty(): Iterable<CachedTable> {
    return this.#dirty;
  }

  #evict(): void {
    this.#goAround(
      () => this.#tables.size > this.#maxTables,
      (table) => {
        if (table === this.#last) return;
        this.#takeOut(table);
        this.#recycle(table.retire());
      },
    );
  }

  /** The hand goes on while there are too many, past those that were looked at since it was there last. */
  #goAround(isOver: () => boolean, leave: (table: CachedTable) => void): void {
    // Twice around: the first time may only find that all were looked at.
    for (let steps = 2 * this.#round.length; steps > 0 && isOver(); steps--) {
      if (this.#hand >= this.#round.length) this.#hand = 0;
      const table = this.#round[this.#hand];
      if (!table) return;
      if (!table.wasUsed && table.mayEvict) leave(table);
      // Where one has left, another is.
      if (this.#round[this.#hand] !== table) continue;
      table.wasUsed = false;
      this.#hand++;
    }
  }
}
