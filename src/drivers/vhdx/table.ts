import { BlockError } from '../../base/error.js';
import { MAX_IMAGE_BYTES, MiB } from '../../base/limits.js';
import { type BlockTable, Place } from '../tables/block-map.js';
import { type EntryCache, Phase } from '../tables/entry-cache.js';
import type { Extent } from './layout.js';
import type { DiskParameters } from './metadata.js';

export const ENTRY_BYTES = 8;
/** Entries say where in MiB; their low bits are the state. */
const STATES = 8;

export const BlockState = {
  notPresent: 0,
  undefined: 1,
  zero: 2,
  unmapped: 3,
  fullyPresent: 6,
  partiallyPresent: 7,
} as const;

/** Blocks that one sector bitmap block is for: its entry comes after theirs. */
export function chunkRatio({ blockBytes, logicalSectorBytes }: DiskParameters): number {
  return (2 ** 23 * logicalSectorBytes) / blockBytes;
}

/** Entries of the table, those of bitmap blocks with them. */
export function entryCount(disk: DiskParameters): number {
  const blocks = Math.ceil(disk.diskBytes / disk.blockBytes);
  return blocks + Math.floor((blocks - 1) / chunkRatio(disk));
}

/** The block allocation table. */
export class VhdxTable implements BlockTable {
  readonly #cache: EntryCache;
  readonly #region: Extent;
  readonly #ratio: number;
  /** Before the image is changed for the first time. */
  readonly #begin: () => Promise<void>;
  #hasBegun = false;

  constructor(cache: EntryCache, region: Extent, disk: DiskParameters, begin: () => Promise<void>) {
    this.#cache = cache;
    this.#region = region;
    this.#ratio = chunkRatio(disk);
    this.#begin = begin;
  }

  #entryAt(index: number): number {
    return this.#region.offset + (index + Math.floor(index / this.#ratio)) * ENTRY_BYTES;
  }

  /** Errors: corrupt. */
  find(index: number): number {
    const at = this.#entryAt(index);
    if (at >= this.#region.offset + this.#region.lengthBytes) return Place.absent;
    const entry = this.#cache.tryUint64(at);
    if (entry === -1) return Place.unknown;
    if (entry > MAX_IMAGE_BYTES) throw corrupt(index, 'lies outside the image');
    const state = entry % STATES;
    if (state === BlockState.fullyPresent) {
      const place = entry - (entry % MiB);
      if (place < MiB) throw corrupt(index, 'lies over the headers');
      return place;
    }
    if (state === BlockState.partiallyPresent) throw corrupt(index, 'is partly in a parent');
    return state === BlockState.zero ? Place.zero : Place.absent;
  }

  load(index: number): Promise<void> {
    return this.#cache.load(this.#entryAt(index));
  }

  isReady(index: number): boolean {
    return this.#hasBegun && this.#cache.mayChange(this.#entryAt(index));
  }

  async prepare(index: number): Promise<void> {
    if (!this.#hasBegun) await this.#begin();
    this.#hasBegun = true;
    await this.#cache.prepare(this.#entryAt(index));
  }

  /** The next change is the first again. */
  end(): void {
    this.#hasBegun = false;
  }

  set(index: number, place: number): void {
    this.#cache.setUint64(this.#entryAt(index), place + BlockState.fullyPresent, Phase.last);
  }
}

function corrupt(index: number, what: string): BlockError {
  return new BlockError('corrupt', `VHDX block ${index} ${what}`, { errno: 'EIO' });
}
