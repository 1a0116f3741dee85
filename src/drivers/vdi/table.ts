import { BlockError } from '../../base/error.js';
import { type EntryCache, Phase } from '../tables/entry-cache.js';
import { type BlockTable, Place } from '../tables/block-map.js';
import { BLOCK_BYTES, FieldAt, type VdiHeader } from './header.js';

export const UNALLOCATED = 0xffffffff;
export const DISCARDED = 0xfffffffe;

/** The block map: which block of the data area each block of the disk has. */
export class VdiTable implements BlockTable {
  readonly #cache: EntryCache;
  readonly #header: VdiHeader;
  /** As the header is to say. */
  #allocatedBlocks: number;

  /** `allocatedBlocks`: all blocks of the data area in use have smaller numbers. */
  constructor(cache: EntryCache, header: VdiHeader, allocatedBlocks: number) {
    this.#cache = cache;
    this.#header = header;
    this.#allocatedBlocks = allocatedBlocks;
  }

  #entryAt(index: number): number {
    return this.#header.mapOffset + index * 4;
  }

  find(index: number): number {
    const { blocks, dataOffset } = this.#header;
    if (index >= blocks) return Place.zero;
    const entry = this.#cache.tryUint32(this.#entryAt(index), true);
    if (entry === -1) return Place.unknown;
    // There is nothing below that could show.
    if (entry === UNALLOCATED || entry === DISCARDED) return Place.zero;
    if (entry >= blocks)
      throw new BlockError('corrupt', `VDI block ${index} lies outside the image`, { errno: 'EIO' });
    return dataOffset + entry * BLOCK_BYTES;
  }

  load(index: number): Promise<void> {
    return this.#cache.load(this.#entryAt(index));
  }

  isReady(index: number): boolean {
    return this.#cache.isLoaded(0) && this.#cache.mayChange(this.#entryAt(index));
  }

  async prepare(index: number): Promise<void> {
    await this.#cache.prepare(0);
    await this.#cache.prepare(this.#entryAt(index));
  }

  /** The count in the header comes first: who opens the image after a crash gives out no block twice. */
  set(index: number, place: number): void {
    const block = (place - this.#header.dataOffset) / BLOCK_BYTES;
    if (block >= this.#allocatedBlocks) {
      this.#allocatedBlocks = block + 1;
      this.#cache.setUint32(FieldAt.allocatedBlocks, this.#allocatedBlocks, true, Phase.first);
    }
    this.#cache.setUint32(this.#entryAt(index), block, true, Phase.last);
  }
}
