import type { ChildIo } from '../../block/driver.js';
import { type BlockTable, Place } from '../tables/block-map.js';
import { type EntryCache, Phase } from '../tables/entry-cache.js';
import { readBytes } from '../tables/read-bytes.js';
import { type DynamicHeader, SECTOR_BYTES } from './footer.js';

const UNUSED = 0xffffffff;
/** Blocks whose bitmaps are known to be full. */
const MAX_KNOWN_BLOCKS = 65536;

/** The block allocation table. Each block has a bitmap of its sectors before it, which readers may go by: we fill it. */
export class VpcTable implements BlockTable {
  readonly #file: ChildIo;
  readonly #cache: EntryCache;
  readonly #header: DynamicHeader;
  readonly #fullBlocks = new Set<number>();

  constructor(file: ChildIo, cache: EntryCache, header: DynamicHeader) {
    this.#file = file;
    this.#cache = cache;
    this.#header = header;
  }

  #entryAt(index: number): number {
    return this.#header.tableOffset + index * 4;
  }

  find(index: number): number {
    const { tableEntries, bitmapBytes } = this.#header;
    // There is nothing below that could show.
    if (index >= tableEntries) return Place.zero;
    const entry = this.#cache.tryUint32(this.#entryAt(index), false);
    if (entry === -1) return Place.unknown;
    return entry === UNUSED ? Place.zero : entry * SECTOR_BYTES + bitmapBytes;
  }

  load(index: number): Promise<void> {
    return this.#cache.load(this.#entryAt(index));
  }

  isReady(index: number): boolean {
    if (!this.#cache.mayChange(this.#entryAt(index))) return false;
    return this.find(index) < 0 || this.#fullBlocks.has(index);
  }

  async prepare(index: number): Promise<void> {
    await this.#cache.prepare(this.#entryAt(index));
    const place = this.find(index);
    if (place < 0 || this.#fullBlocks.has(index)) return;
    const { bitmapBytes } = this.#header;
    const bitmap = await readBytes(this.#file, place - bitmapBytes, bitmapBytes);
    if (bitmap.some((byte) => byte !== 0xff))
      await this.#file.write(place - bitmapBytes, Buffer.alloc(bitmapBytes, 0xff), 0);
    this.#isFull(index);
  }

  set(index: number, place: number): void {
    const { bitmapBytes } = this.#header;
    const start = place - bitmapBytes;
    this.#cache.queue(start, Buffer.alloc(bitmapBytes, 0xff), Phase.first);
    this.#cache.setUint32(this.#entryAt(index), start / SECTOR_BYTES, false, Phase.last);
    this.#isFull(index);
  }

  #isFull(index: number): void {
    if (this.#fullBlocks.size >= MAX_KNOWN_BLOCKS) this.#fullBlocks.clear();
    this.#fullBlocks.add(index);
  }
}
