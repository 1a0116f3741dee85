import { assert } from '../../base/assert.js';
import { alignDown, alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import type { ChildIo, MapDriver, Reservation } from '../../block/driver.js';
import { type Mapping } from '../../block/request.js';
import { outsideFile } from './entry-cache.js';
import type { FileEnd } from './file-end.js';

/** What a table says of a block where it is not an offset in the file. */
export const Place = {
  /** Its entry is not in memory. */
  unknown: -1,
  /** Zeroes, whatever is below. */
  zero: -2,
  /** Not in this image. */
  absent: -3,
} as const;

/** Most blocks that one mapping or reservation looks at. */
const MAX_BLOCKS = 4096;

/** Where the blocks of an image are: offsets of their data in the file, or a Place. */
export interface BlockTable {
  /** Errors: corrupt. */
  find(index: number): number;
  load(index: number): Promise<void>;
  /** The block may be changed at once: its entry is in memory, and so are marks that the image is in use. */
  isReady(index: number): boolean;
  prepare(index: number): Promise<void>;
  set(index: number, place: number): void;
}

export interface BlockMapOptions {
  readonly file: ChildIo;
  readonly table: BlockTable;
  readonly space: FileEnd;
  readonly blockBytes: number;
  /** What is in the file before a block's data, with it: a bitmap. */
  readonly headBytes?: number;
  readonly isPreallocated?: boolean;
  /** The table can say that a block is zero. */
  readonly hasZeroes?: boolean;
  /** There may be a backing file: then a block is filled as a whole. */
  readonly hasBacking?: () => boolean;
  /** Something of the tables is not on disk. */
  readonly isDirty: () => boolean;
}

/**
 * A format whose disk is in blocks of one size, each of which lies somewhere in one file; new ones come to its end. Blocks
 * that were zeroed or discarded keep their place.
 */
export class BlockMap implements MapDriver {
  readonly clusterBytes: number;
  readonly unitBytes: number;
  readonly #o: BlockMapOptions;
  readonly #headBytes: number;

  constructor(options: BlockMapOptions) {
    this.#o = options;
    this.clusterBytes = options.blockBytes;
    this.unitBytes = options.hasBacking ? options.blockBytes : Math.min(512, options.blockBytes);
    this.#headBytes = options.headBytes ?? 0;
  }

  get events(): ChildIo {
    return this.#o.file;
  }

  get isPreallocated(): boolean {
    return this.#o.isPreallocated === true;
  }

  get isMappingDurable(): boolean {
    return !this.#o.isDirty();
  }

  #hasBacking(): boolean {
    return this.#o.hasBacking?.() === true;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const { table, file } = this.#o;
    const block = this.clusterBytes;
    let index = Math.floor(offset / block);
    const within = offset - index * block;
    const place = table.find(index);
    if (place === Place.unknown) return false;
    const isReady = place >= 0 && table.isReady(index) && place < file.lengthBytes;
    let length = Math.min(lengthBytes, block - within);
    const last = index + MAX_BLOCKS;
    for (let next = place; length < lengthBytes && index < last;) {
      index++;
      if (place >= 0) next += block;
      if (this.#findNext(index) !== next || (place >= 0 && table.isReady(index) !== isReady)) break;
      length += Math.min(block, lengthBytes - length);
    }
    out.kind = place >= 0 ? 'data' : place === Place.zero ? 'zero' : 'backing';
    out.lengthBytes = length;
    out.child = place >= 0 ? file : undefined;
    out.hostOffset = place >= 0 ? place + within : -1;
    out.plain = place >= 0;
    out.writable = isReady;
    return true;
  }

  /** What is broken further on is told when that is asked for. */
  #findNext(index: number): number {
    try {
      return this.#o.table.find(index);
    } catch {
      return Place.unknown;
    }
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    while (!this.tryMap(offset, lengthBytes, out))
      await this.#o.table.load(Math.floor(offset / this.clusterBytes));
  }

  tryReserve(offset: number, lengthBytes: number): Reservation | undefined {
    const { table, space, file } = this.#o;
    const block = this.clusterBytes;
    const index = Math.floor(offset / block);
    if (!table.isReady(index)) return undefined;
    const place = table.find(index);
    if (place === Place.unknown) return undefined;
    if (place >= file.lengthBytes) throw outsideFile('A block', place);
    if (place >= 0) return this.#inPlace(offset, lengthBytes, index, place);
    const count = this.#countAlike(index, place, Math.ceil((offset + lengthBytes) / block) - index);
    const start = space.tryTake(count * (this.#headBytes + block));
    return start === undefined ? undefined : this.#anew(offset, lengthBytes, { index, count, place, start });
  }

  async reserve(offset: number, lengthBytes: number): Promise<Reservation> {
    const { table, space } = this.#o;
    const index = Math.floor(offset / this.clusterBytes);
    for (;;) {
      while (!table.isReady(index) || table.find(index) === Place.unknown) await table.prepare(index);
      const reservation = this.tryReserve(offset, lengthBytes);
      if (reservation) return reservation;
      // One block is enough to go on.
      lengthBytes = Math.min(lengthBytes, (index + 1) * this.clusterBytes - offset);
      await space.grow(this.#headBytes + this.clusterBytes);
    }
  }

  /** Data that could not be written when it was mapped. */
  #inPlace(offset: number, lengthBytes: number, index: number, place: number): Reservation {
    const [unit, block] = [this.unitBytes, this.clusterBytes];
    const from = alignDown(offset, unit);
    const end = Math.min(alignUp(offset + lengthBytes, unit), (index + 1) * block);
    return {
      offset: from,
      lengthBytes: end - from,
      child: this.#o.file,
      hostOffset: place + (from - index * block),
      plain: true,
      readsZero: false,
      before: 'mixed',
      link: () => undefined,
      abort: () => undefined,
    };
  }

  #countAlike(index: number, place: number, most: number): number {
    const { table } = this.#o;
    if (this.#headBytes > 0) return 1;
    let count = 1;
    while (
      count < Math.min(most, MAX_BLOCKS) &&
      table.isReady(index + count) &&
      this.#findNext(index + count) === place
    )
      count++;
    return count;
  }

  #anew(
    offset: number,
    lengthBytes: number,
    { index, count, place, start }: { index: number; count: number; place: number; start: number },
  ): Reservation {
    const { table, space, file } = this.#o;
    const [unit, block] = [this.unitBytes, this.clusterBytes];
    const from = alignDown(offset, unit);
    const end = Math.min(alignUp(offset + lengthBytes, unit), (index + count) * block);
    const data = start + this.#headBytes;
    return {
      offset: from,
      lengthBytes: end - from,
      child: file,
      hostOffset: data + (from - index * block),
      plain: true,
      readsZero: true,
      before: place === Place.absent && this.#hasBacking() ? 'mixed' : 'zero',
      link: () => {
        for (let i = 0; i < count; i++) {
          assert(table.find(index + i) === place, 'a mapping stays as it was reserved');
          table.set(index + i, data + i * block);
        }
      },
      abort: () => space.giveBack(start, count * (this.#headBytes + block)),
    };
  }

  async zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const { table, file, hasZeroes } = this.#o;
    await this.#eachBlock(offset, lengthBytes, async (index, place, from, length) => {
      if (place >= 0) await file.writeZeroes(place + from, length, flags);
      else if (place === Place.absent && this.#hasBacking()) {
        if (hasZeroes !== true)
          throw new BlockError('unsupported', 'Operation not supported', { errno: 'ENOTSUP' });
        table.set(index, Place.zero);
      }
    });
  }

  async discardClusters(offset: number, lengthBytes: number): Promise<void> {
    await this.#eachBlock(offset, lengthBytes, async (_index, place, from, length) => {
      if (place >= 0) await this.#o.file.discard(place + from, length);
    });
  }

  /** `from`: within the block. Where nothing is in the image nothing is made ready. */
  async #eachBlock(
    offset: number,
    lengthBytes: number,
    body: (index: number, place: number, from: number, lengthBytes: number) => Promise<void>,
  ): Promise<void> {
    const { table } = this.#o;
    const block = this.clusterBytes;
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      const index = Math.floor(at / block);
      const from = at - index * block;
      const length = Math.min(block - from, end - at);
      while (table.find(index) === Place.unknown) await table.load(index);
      const isConcerned = table.find(index) >= 0 || this.#hasBacking();
      while (isConcerned && !(table.isReady(index) && table.find(index) !== Place.unknown))
        await table.prepare(index);
      const place = table.find(index);
      if (place >= this.#o.file.lengthBytes) throw outsideFile('A block', place);
      if (isConcerned) await body(index, place, from, length);
      at += length;
    }
  }
}
