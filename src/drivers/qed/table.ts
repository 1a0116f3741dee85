import { BlockError } from '../../base/error.js';
import { type BlockTable, Place } from '../tables/block-map.js';
import { type EntryCache, Phase } from '../tables/entry-cache.js';
import type { FileEnd } from '../tables/file-end.js';
import { entriesOf, ENTRY_BYTES, isClusterOffset, isTableOffset, type QedHeader } from './header.js';

const ZERO_ENTRY = 1;

/** Two levels of tables. A new table reads as zeroes; the entry that points at it comes last to disk. */
export class QedTable implements BlockTable {
  readonly #cache: EntryCache;
  readonly #space: FileEnd;
  readonly #header: QedHeader;
  readonly #entries: number;
  /** Before the image is changed for the first time. */
  readonly #begin: () => Promise<void>;
  #hasBegun = false;

  constructor(cache: EntryCache, space: FileEnd, header: QedHeader, begin: () => Promise<void>) {
    this.#cache = cache;
    this.#space = space;
    this.#header = header;
    this.#entries = entriesOf(header);
    this.#begin = begin;
  }

  #tableBytes(): number {
    return this.#header.tableClusters * this.#header.clusterBytes;
  }

  #l1EntryAt(index: number): number {
    return this.#header.l1Offset + Math.floor(index / this.#entries) * ENTRY_BYTES;
  }

  /** Where the block's entry is; or a Place where there is none. Errors: corrupt. */
  #entryAt(index: number): number {
    const table = this.#cache.tryUint64(this.#l1EntryAt(index));
    if (table === -1) return Place.unknown;
    if (table === 0) return Place.absent;
    if (!isTableOffset(table, this.#header, this.#fileEnd()))
      throw corrupt(`L2 table offset of cluster ${index}`);
    return table + (index % this.#entries) * ENTRY_BYTES;
  }

  #fileEnd(): number {
    return Math.max(this.#space.end, this.#cache.file.lengthBytes);
  }

  find(index: number): number {
    const at = this.#entryAt(index);
    if (at < 0) return at;
    const entry = this.#cache.tryUint64(at);
    if (entry === -1) return Place.unknown;
    if (entry === 0) return Place.absent;
    if (entry === ZERO_ENTRY) return Place.zero;
    if (!isClusterOffset(entry, this.#header, this.#fileEnd())) throw corrupt(`offset of cluster ${index}`);
    return entry;
  }

  async load(index: number): Promise<void> {
    await this.#cache.load(this.#l1EntryAt(index));
    const at = this.#entryAt(index);
    if (at >= 0) await this.#cache.load(at);
  }

  isReady(index: number): boolean {
    if (!this.#hasBegun || this.#cache.isCrowded) return false;
    const at = this.#entryAt(index);
    return at >= 0 && this.#cache.isLoaded(at);
  }

  async prepare(index: number): Promise<void> {
    if (!this.#hasBegun) await this.#begin();
    this.#hasBegun = true;
    if (this.#cache.isCrowded) await this.#cache.writeBack();
    await this.load(index);
    while (this.#entryAt(index) === Place.absent) {
      const table = this.#space.tryTake(this.#tableBytes());
      if (table === undefined) await this.#space.grow(this.#tableBytes());
      else this.#cache.setUint64(this.#l1EntryAt(index), table, Phase.last);
    }
    await this.load(index);
  }

  set(index: number, place: number): void {
    this.#cache.setUint64(this.#entryAt(index), place === Place.zero ? ZERO_ENTRY : place, Phase.first);
  }
}

function corrupt(what: string): BlockError {
  return new BlockError('corrupt', `Invalid QED ${what}`, { errno: 'EINVAL' });
}
