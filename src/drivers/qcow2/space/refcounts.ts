import { assert } from '../../../base/assert.js';
import { MiB } from '../../../base/limits.js';
import { isZero } from '../../../base/zero.js';
import { CachedTable, TableCache } from '../tables/cached-table.js';
import { hex, type ImageContext, readBytes } from '../image.js';
import { ENTRY_BYTES, readU64 } from '../disk/layout.js';
import type { SectorTable } from '../../tables/sector-table.js';

/** Most memory that refcount blocks take unless the options say otherwise. */
export const DEFAULT_REFCOUNT_CACHE_BYTES = 4 * MiB;

/** More of a block is compared with zeroes at once. */
const LOOKED_AT_BYTES = 64;

/** Reads the refcount of entry `index` of a block whose entries have 2^order bits. Saturates at 2^53 - 1. */
export function readRefcount(block: Buffer, index: number, order: number): number {
  switch (order) {
    case 4:
      return block.readUInt16BE(index * 2);
    case 5:
      return block.readUInt32BE(index * 4);
    case 6: {
      const high = block.readUInt32BE(index * 8);
      return high >= 2 ** 21 ? Number.MAX_SAFE_INTEGER : high * 2 ** 32 + block.readUInt32BE(index * 8 + 4);
    }
    default: {
      const bits = 1 << order;
      const byte = block[(index * bits) >>> 3] ?? 0;
      return (byte >>> ((index * bits) & 7)) & ((1 << bits) - 1);
    }
  }
}

export function writeRefcount(block: Buffer, index: number, order: number, value: number): void {
  switch (order) {
    case 4:
      block.writeUInt16BE(value, index * 2);
      return;
    case 5:
      block.writeUInt32BE(value, index * 4);
      return;
    case 6:
      block.writeUInt32BE(Math.floor(value / 2 ** 32), index * 8);
      block.writeUInt32BE(value % 2 ** 32, index * 8 + 4);
      return;
    default: {
      const bits = 1 << order;
      const shift = (index * bits) & 7;
      const mask = ((1 << bits) - 1) << shift;
      const at = (index * bits) >>> 3;
      block[at] = ((block[at] ?? 0) & ~mask) | (value << shift);
    }
  }
}

/** Refcounts of host clusters: the refcount table in memory, its blocks loaded when needed. */
export class Refcounts {
  readonly table: SectorTable;
  readonly cache: TableCache;
  readonly #context: ImageContext;
  #order = 0;
  #blockEntries = 0;
  #mostReferences = 0;

  constructor(context: ImageContext, table: SectorTable, limitBytes: number) {
    this.#context = context;
    this.table = table;
    this.#takeWidth();
    this.cache = new TableCache(context.clusterBytes, limitBytes);
  }

  /** Host clusters that one block describes. */
  get blockEntries(): number {
    return this.#blockEntries;
  }

  /** What a refcount can hold. */
  get mostReferences(): number {
    return this.#mostReferences;
  }

  /** That of the header. */
  #takeWidth(): void {
    const { header, clusterBytes } = this.#context;
    this.#order = header.refcountOrder;
    this.#blockEntries = (clusterBytes * 8) >>> this.#order;
    this.#mostReferences = 2 ** Math.min(2 ** this.#order, 53) - 1;
  }

  blockIndex(cluster: number): number {
    return Math.floor(cluster / this.blockEntries);
  }

  /** How many clusters from this one on its block describes. */
  leftInBlock(cluster: number): number {
    return this.blockEntries - (cluster % this.blockEntries);
  }

  /** Whether the refcount table has a place for this block. */
  inTable(blockIndex: number): boolean {
    return blockIndex < this.table.entries;
  }

  /** No block: all its clusters are free. */
  isAbsent(blockIndex: number): boolean {
    if (blockIndex >= this.table.entries) return true;
    const at = blockIndex * ENTRY_BYTES;
    return this.table.bytes.readUInt32BE(at) === 0 && this.table.bytes.readUInt32BE(at + 4) === 0;
  }

  peek(blockIndex: number): CachedTable | undefined {
    return this.cache.peek(blockIndex);
  }

  /** Reads a block, which must not be absent. */
  load(blockIndex: number): Promise<CachedTable> {
    return this.cache.load(blockIndex, () => this.#read(blockIndex));
  }

  /** A block in memory, until another one is asked for; undefined where there is none. */
  async loaded(blockIndex: number): Promise<CachedTable | undefined> {
    if (this.isAbsent(blockIndex)) return undefined;
    while (!this.peek(blockIndex)) await this.load(blockIndex);
    return this.peek(blockIndex);
  }

  /** Errors: kind corrupt. */
  blockOffset(blockIndex: number): number {
    return readU64(this.table.bytes, blockIndex * ENTRY_BYTES, 'Refcount block offset');
  }

  /** They are what another table and its blocks say, which the header names by now, with refcounts of its width. */
  adopt(table: Buffer, hostOffset: number): void {
    this.cache.forgetAll();
    this.table.adopt(table, hostOffset);
    this.#takeWidth();
  }

  async #read(blockIndex: number): Promise<CachedTable> {
    const context = this.#context;
    const offset = this.blockOffset(blockIndex);
    const where = `reftable index: ${hex(blockIndex)}`;
    context.checkMetadataOffset('Refblock', offset, where);
    // Behind the end there are zeroes: they would say that clusters in use are free.
    if (offset >= context.meta.lengthBytes)
      throw context.corrupt(`Refblock offset ${hex(offset)} outside the image (${where})`);
    await context.announce('refblock_load');
    const bytes = this.cache.buffer();
    await readBytes(context.meta, offset, bytes);
    return new CachedTable(blockIndex, bytes, offset, false);
  }

  count(block: CachedTable, cluster: number): number {
    return readRefcount(block.bytes, cluster % this.blockEntries, this.#order);
  }

  set(block: CachedTable, cluster: number, value: number): void {
    const index = cluster % this.blockEntries;
    const byte = (index << this.#order) >>> 3;
    writeRefcount(block.change(byte, byte + 1), index, this.#order, value);
  }

  /** The same value for `count` clusters, which one block describes. */
  setAll(block: CachedTable, cluster: number, count: number, value: number): void {
    const index = cluster % this.blockEntries;
    const from = (index << this.#order) >>> 3;
    const end = (((index + count) << this.#order) + 7) >>> 3;
    const bytes = block.change(from, end);
    for (let i = index; i < index + count; i++) writeRefcount(bytes, i, this.#order, value);
  }

  /** The last of `count` clusters, which one block describes, whose refcount is not 0; or -1. */
  lastCounted(block: CachedTable, cluster: number, count: number): number {
    const index = cluster % this.blockEntries;
    const from = (index << this.#order) >>> 3;
    const end = (((index + count) << this.#order) + 7) >>> 3;
    if (end - from > LOOKED_AT_BYTES && isZero(block.bytes.subarray(from, end))) return -1;
    for (let i = count - 1; i >= 0; i--) if (this.count(block, cluster + i) !== 0) return cluster + i;
    return -1;
  }

  /** A new block at host cluster `cluster`, whose own refcount the caller sets. */
  add(blockIndex: number, cluster: number): CachedTable {
    assert(this.inTable(blockIndex) && this.isAbsent(blockIndex), 'a refcount block is added once');
    const { clusterBytes } = this.#context;
    const block = new CachedTable(blockIndex, this.cache.buffer().fill(0), cluster * clusterBytes, true);
    this.#context.metadata.add('refcount block', cluster);
    this.table.set(blockIndex, block.hostOffset, false);
    this.cache.put(block);
    return block;
  }
}
