import { missing } from '../../../base/assert.js';
import { hasOtherBits } from '../../../base/bit-bytes.js';
import { toBlockError } from '../../../base/error.js';
import { ChangeLog } from '../../../block/change-log.js';
import type { DirtyBitmap, Durability } from '../../../block/dirty-bitmap.js';
import { type BitmapEntry, tableEntriesFor } from '../disk/bitmap-directory.js';
import {
  decodeDurable,
  type DurableEntries,
  findDurable,
  type NamedDurability,
} from '../disk/durable-bitmaps.js';
import { AUTOCLEAR_DURABLE_BITMAPS } from '../disk/layout.js';
import type { OpenImage } from '../open-image.js';
import type { ClusterRun } from '../space/bulk.js';
import { tooLarge } from './bitmap-table.js';
import { DurableBits } from './durable-bits.js';

/** A bitmap that was put into clusters of its own: its entry says so when the header names it. */
export interface Placed {
  readonly entry: BitmapEntry;
  readonly runs: ClusterRun[];
}

/**
 * Of an image's bitmaps, those that a crash leaves right. While they are in use, all their clusters are there and hold at
 * least their bits (block/change-log.ts); the header lists them, and an auto-clear bit of ours says that nobody has had
 * the image for writing who does not know that.
 */
export class DurableBitmaps {
  readonly #image: OpenImage;
  /** As the image was opened. */
  readonly #listed: DurableEntries;
  readonly #wasOurs: boolean;
  /** Where those are that are in use. */
  readonly #bits = new Map<DirtyBitmap, DurableBits>();
  /** One for good: changes may wait in it while the last of its bitmaps goes and another comes. */
  #log: ChangeLog | undefined;
  #isLogged = false;

  constructor(image: OpenImage) {
    const { header } = image.context;
    this.#image = image;
    this.#listed = decodeDurable(header.extensions);
    this.#wasOurs = (header.autoclear & AUTOCLEAR_DURABLE_BITMAPS) !== 0n;
  }

  /** What a bitmap is that the image was opened with; undefined: it has never been durable. */
  found({ name, isInUse }: BitmapEntry): Durability | undefined {
    const listed = findDurable(this.#listed, name);
    if (!listed || (!isInUse && listed.lost)) return undefined;
    if (listed.lost || this.#wasOurs) return listed;
    return isInUse ? { ...listed, lost: 'written-by-another' } : { ...listed, wasElsewhere: true };
  }

  get log(): ChangeLog | undefined {
    return this.#isLogged ? this.#log : undefined;
  }

  /** Changes go through a log from now on. */
  needLog(): ChangeLog {
    const { context } = this.#image;
    const { clock } = context.driver.host;
    this.#isLogged = true;
    this.#log ??= new ChangeLog(clock, context.header.sizeBytes, async () => {
      await context.beginChanges();
      if (this.#bits.size === 0) this.#log?.activate([]);
    });
    return this.#log;
  }

  /** Those of the node that are durable, of entries of the directory. */
  of(entries: readonly BitmapEntry[]): DirtyBitmap[] {
    const names = new Set(entries.map(({ name }) => name));
    return this.#image.context.driver.dirtyBitmaps.filter(
      ({ name = '', persistent, durable, inconsistent, isGivenAway }) =>
        persistent && durable && !durable.lost && !inconsistent && !isGivenAway && names.has(name),
    );
  }

  /** What the header is to list, of entries of the directory. */
  listed(entries: readonly BitmapEntry[]): NamedDurability[] {
    const { driver } = this.#image.context;
    return entries.flatMap(({ name }) => {
      const bitmap = driver.dirtyBitmaps.find((one) => one.name === name && one.persistent);
      return bitmap?.durable && !bitmap.isGivenAway ? [{ ...bitmap.durable, name }] : [];
    });
  }

  bitsOf(bitmap: DirtyBitmap): DurableBits | undefined {
    return this.#bits.get(bitmap);
  }

  arePlaced(entries: readonly BitmapEntry[]): boolean {
    return this.of(entries).every((bitmap) => this.#bits.has(bitmap));
  }

  /** Bytes of its clusters, for a disk of that size. Errors: limit. */
  #lengthFor({ granularityBytes }: DirtyBitmap, sizeBytes: number): number {
    const { clusterBytes } = this.#image.context;
    const entries = tableEntriesFor(sizeBytes, granularityBytes, clusterBytes);
    if (entries === undefined) throw tooLarge();
    return entries * clusterBytes;
  }

  /** Its clusters can all be rewritten where they are, for a disk of that size. */
  fits(bitmap: DirtyBitmap, sizeBytes: number): boolean {
    return (this.#bits.get(bitmap)?.lengthBytes ?? 0) >= this.#lengthFor(bitmap, sizeBytes);
  }

  /** Its table is as long as it has to be, and no longer. */
  isExact(bitmap: DirtyBitmap): boolean {
    return this.#bits.get(bitmap)?.lengthBytes === this.#lengthFor(bitmap, bitmap.sizeBytes);
  }

  /**
   * Takes those into use whose clusters are all there, and answers the others, which have to be placed. What is there may
   * be bits too many, and is made no fewer than the bitmap has. Errors: those of reading and writing.
   */
  async adopt(entries: readonly BitmapEntry[]): Promise<DirtyBitmap[]> {
    const others: DirtyBitmap[] = [];
    const log = this.needLog();
    const copies = [];
    for (const bitmap of this.of(entries)) {
      const entry = entries.find(({ name }) => name === bitmap.name) ?? missing('entry of a durable bitmap');
      const placed = this.#bits.get(bitmap);
      const bits = placed ?? (await this.#there(entry));
      if (!bits || bits.lengthBytes < this.#lengthFor(bitmap, bitmap.sizeBytes)) {
        others.push(bitmap);
        continue;
      }
      const bytes = placed ? Buffer.alloc(bits.lengthBytes) : await bits.read();
      if (!placed) await this.#complete(bits, bytes, log.image(bitmap, bytes.length));
      copies.push({ bitmap, place: bits, bytes });
    }
    for (const { bitmap, place } of copies) this.#bits.set(bitmap, place);
    log.activate(copies);
    log.shrunk();
    return others;
  }

  /** Undefined where its clusters cannot be used. Errors: no-space, of what has to be written before: they are there still. */
  async #there(entry: BitmapEntry): Promise<DurableBits | undefined> {
    try {
      return await DurableBits.of(this.#image, entry);
    } catch (error) {
      if (toBlockError(error).kind === 'no-space') throw error;
      return undefined;
    }
  }

  async #complete(bits: DurableBits, there: Buffer, wanted: Buffer): Promise<void> {
    if (!hasOtherBits(wanted, there)) return;
    await bits.write(0, wanted, true);
    wanted.copy(there);
  }

  /**
   * Puts a bitmap where nothing is, for a disk of that size; it is used there from commit() on, when the header names it.
   * Each run that it takes is added to `taken` first. Errors: see storeBits.
   */
  async place(
    bitmap: DirtyBitmap,
    sizeBytes: number,
    taken: ClusterRun[],
  ): Promise<Placed & { commit: () => void }> {
    const { name = '', granularityBytes, enabled } = bitmap;
    const log = this.needLog();
    const from = taken.length;
    const bytes = log.image(bitmap, this.#lengthFor(bitmap, sizeBytes));
    const { bits, stored } = await DurableBits.place(this.#image, bytes, taken);
    const entry: BitmapEntry = {
      ...{ ...stored, name, nameBytes: Buffer.from(name, 'utf8'), granularityBytes },
      ...{ isInUse: true, isAuto: enabled },
    };
    const commit = (): void => {
      this.#isLogged = true;
      this.#bits.set(bitmap, bits);
      const others = [...this.#bits].map(([each, place]) => {
        // Of those that the log has, it knows itself what is there.
        const known = place === bits ? bytes : Buffer.alloc(place.lengthBytes);
        return { bitmap: each, place, bytes: known };
      });
      log.activate(others);
    };
    return { entry, runs: taken.slice(from), commit };
  }

  /** It is durable no longer, for want of space. */
  giveUp(bitmap: DirtyBitmap, error: unknown): void {
    const { driver } = this.#image.context;
    const { message } = toBlockError(error);
    bitmap.durable = undefined;
    driver.warn(
      `Bitmap '${bitmap.name ?? ''}' of node '${driver.nodeName}' is no longer durable: ${message}`,
    );
  }

  /** Nothing of them is written meanwhile but what `body` writes. */
  exclusive<T>(body: () => Promise<T>): Promise<T> {
    return this.#log ? this.#log.exclusive(body) : body();
  }

  /** The header names it no more. For the body of exclusive(). */
  forget(bitmap: DirtyBitmap): void {
    this.#bits.delete(bitmap);
    this.#log?.forget(bitmap);
    if (this.#bits.size === 0) this.#isLogged = false;
  }

  /** They hold what they are to hold, and are not used before they are adopted again. */
  async end(): Promise<void> {
    try {
      await this.#log?.end();
    } finally {
      this.#bits.clear();
    }
  }

  /** The image is used no longer, or is somebody else's. */
  abandon(): void {
    this.#log?.abandon();
    this.#bits.clear();
  }
}
