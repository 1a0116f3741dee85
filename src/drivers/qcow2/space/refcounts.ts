import { assert } from '../../../base/assert.js';
import { MiB } from '../../../base/limits.js';
import { CachedTable, TableCache } from '../tables/cached-table.js';
import { hex, type ImageContext, readBytes } from '../image.js';
import { ENTRY_BYTES, readU64 } from '../disk/layout.js';
import type { SectorTable } from '../../tables/sector-table.js';

/** Most memory that refcount blocks take unless the options say otherwise. */
export const DEFAULT_REFCOUNT_CACHE_BYTES = 4 * MiB;

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
  /** Host clusters that one block describes. */
  readonly blockEntries: number;
  /** What a refcount can hold. */
  readonly mostReferences: number;
  readonly #context: ImageContext;
  readonly #order: number;

  constructor(context: ImageContext, table: SectorTable, limitBytes: number) {
    this.#context = context;
    this.table = table;
    this.#order = context.header.refcountOrder;
    this.mostReferences = 2 ** Math.min(2 ** this.#order, 53) - 1;
    this.blockEntries = (context.clusterBytes * 8) >>> this.#order;
    this.cache = new TableCache(context.clusterBytes, limitBytes);
  }

  blockIndex(cluster: number): number {
    return Math.floor(cluster / this.blockEntries);
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

  async #read(blockIndex: number): Promise<CachedTable> {
    const context = this.#context;
    const offset = readU64(this.table.bytes, blockIndex * ENTRY_BYTES, 'Refcount block offset');
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
