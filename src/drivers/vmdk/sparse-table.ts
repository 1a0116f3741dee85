import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { MAX_IMAGE_BYTES } from '../../base/limits.js';
import { type BlockTable, Place } from '../tables/block-map.js';
import { type EntryCache, Phase } from '../tables/entry-cache.js';
import type { FileEnd } from '../tables/file-end.js';
import { SECTOR_BYTES, type SparseHeader } from './sparse-header.js';

const ENTRY_BYTES = 4;
const ZERO_ENTRY = 1;

/** Grain directory and tables of a sparse extent. A copy of both is kept alike where there is one. */
export class SparseTable implements BlockTable {
  readonly #cache: EntryCache;
  readonly #space: FileEnd;
  readonly #header: SparseHeader;

  constructor(cache: EntryCache, space: FileEnd, header: SparseHeader) {
    this.#cache = cache;
    this.#space = space;
    this.#header = header;
  }

  #grainBytes(): number {
    return this.#header.grainSectors * SECTOR_BYTES;
  }

  /** In the directory that begins there. */
  #directoryEntryAt(index: number, directorySector: number): number {
    const { tableEntries } = this.#header;
    return directorySector * SECTOR_BYTES + Math.floor(index / tableEntries) * ENTRY_BYTES;
  }

  /** Where the grain's entry is; or a Place where there is none. Errors: corrupt. */
  #entryAt(index: number, directorySector: number): number {
    const table = this.#cache.tryUint32(this.#directoryEntryAt(index, directorySector), true);
    if (table === -1) return Place.unknown;
    if (table === 0) return Place.absent;
    return table * SECTOR_BYTES + (index % this.#header.tableEntries) * ENTRY_BYTES;
  }

  find(index: number): number {
    const { grainSectors, sectors, directorySector, hasZeroGrains } = this.#header;
    if (index * grainSectors >= sectors) return Place.absent;
    const at = this.#entryAt(index, directorySector);
    if (at < 0) return at;
    const entry = this.#cache.tryUint32(at, true);
    if (entry === -1) return Place.unknown;
    if (entry === 0) return Place.absent;
    return entry === ZERO_ENTRY && hasZeroGrains ? Place.zero : entry * SECTOR_BYTES;
  }

  async load(index: number): Promise<void> {
    await this.#loadIn(index, this.#header.directorySector);
  }

  async #loadIn(index: number, directorySector: number): Promise<void> {
    await this.#cache.load(this.#directoryEntryAt(index, directorySector));
    const at = this.#entryAt(index, directorySector);
    if (at >= 0) await this.#cache.load(at);
  }

  #directories(): number[] {
    const { directorySector, redundantSector } = this.#header;
    return redundantSector === undefined ? [directorySector] : [directorySector, redundantSector];
  }

  isReady(index: number): boolean {
    return this.#directories().every((directory) => {
      const at = this.#entryAt(index, directory);
      return at >= SECTOR_BYTES && this.#cache.mayChange(at);
    });
  }

  async prepare(index: number): Promise<void> {
    for (const directory of this.#directories()) {
      await this.#cache.prepare(this.#directoryEntryAt(index, directory));
      await this.#loadIn(index, directory);
      while (this.#entryAt(index, directory) === Place.absent) await this.#addTable(index, directory);
      this.#checkPlace(this.#entryAt(index, directory), index);
      await this.#cache.prepare(this.#entryAt(index, directory));
    }
    this.#checkPlace(this.find(index), index);
  }

  /** What is written lies neither over the header nor where nothing can be. */
  #checkPlace(place: number, index: number): void {
    if ((place >= 0 && place < SECTOR_BYTES) || place > MAX_IMAGE_BYTES)
      throw new BlockError('corrupt', `VMDK grain ${index} lies outside the image`, { errno: 'EIO' });
  }

  /** Grains stay aligned to their size. */
  async #addTable(index: number, directory: number): Promise<void> {
    const bytes = alignUp(this.#header.tableEntries * ENTRY_BYTES, this.#grainBytes());
    const table = this.#space.tryTake(bytes);
    if (table === undefined) return this.#space.grow(bytes);
    this.#cache.setUint32(this.#directoryEntryAt(index, directory), table / SECTOR_BYTES, true, Phase.last);
  }

  set(index: number, place: number): void {
    const value = place === Place.zero ? ZERO_ENTRY : place / SECTOR_BYTES;
    if (value > 0xffffffff) throw new BlockError('limit', 'VMDK extent is full', { errno: 'EFBIG' });
    for (const directory of this.#directories())
      this.#cache.setUint32(this.#entryAt(index, directory), value, true, Phase.first);
  }
}
