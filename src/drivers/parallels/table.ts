import { BlockError } from '../../base/error.js';
import { MAX_IMAGE_BYTES } from '../../base/limits.js';
import { type BlockTable, Place } from '../tables/block-map.js';
import { type EntryCache, Phase } from '../tables/entry-cache.js';
import { FieldAt, HEADER_BYTES, IN_USE, type ParallelsHeader } from './header.js';

/** The block allocation table behind the header. The header says that the image is in use while it changes. */
export class ParallelsTable implements BlockTable {
  readonly #cache: EntryCache;
  readonly #header: ParallelsHeader;
  #isMarked = false;
  #marking: Promise<void> | undefined;

  constructor(cache: EntryCache, header: ParallelsHeader) {
    this.#cache = cache;
    this.#header = header;
  }

  find(index: number): number {
    if (index >= this.#header.clusters) return Place.absent;
    const entry = this.#cache.tryUint32(HEADER_BYTES + index * 4, true);
    if (entry === -1) return Place.unknown;
    if (entry === 0) return Place.absent;
    const place = entry * this.#header.unitBytes;
    if (place > MAX_IMAGE_BYTES) throw this.#misplaced(index);
    return place;
  }

  #misplaced(index: number): BlockError {
    return new BlockError('corrupt', `Parallels cluster ${index} lies outside the image`, { errno: 'EIO' });
  }

  load(index: number): Promise<void> {
    return this.#cache.load(HEADER_BYTES + index * 4);
  }

  isReady(index: number): boolean {
    if (!this.#isMarked || !this.#cache.mayChange(HEADER_BYTES + index * 4)) return false;
    const place = this.find(index);
    return place >= this.#header.dataOffset || place === Place.absent;
  }

  async prepare(index: number): Promise<void> {
    if (!this.#isMarked) await (this.#marking ??= this.#mark());
    await this.#cache.prepare(HEADER_BYTES + index * 4);
    const place = this.find(index);
    if (place >= 0 && place < this.#header.dataOffset) throw this.#misplaced(index);
  }

  async #mark(): Promise<void> {
    try {
      await this.#cache.load(0);
      this.#cache.setUint32(FieldAt.inUse, IN_USE, true, Phase.first);
      await this.#cache.writeBack();
      this.#isMarked = true;
    } finally {
      this.#marking = undefined;
    }
  }

  set(index: number, place: number): void {
    this.#cache.setUint32(HEADER_BYTES + index * 4, place / this.#header.unitBytes, true, Phase.last);
  }

  /** All is on disk, and nobody uses the image any more. */
  async end(): Promise<void> {
    await this.#cache.writeBack();
    if (!this.#isMarked) return;
    await this.#cache.load(0);
    this.#cache.setUint32(FieldAt.inUse, 0, true, Phase.last);
    await this.#cache.writeBack();
    this.#isMarked = false;
  }
}
