import { assert } from '../../../base/assert.js';
import { divideRoundUp } from '../../../base/align.js';
import { AsyncMutex } from '../../../base/async.js';
import { BlockError } from '../../../base/error.js';
import { MAX_BITMAP_NAME_BYTES } from '../../../base/limits.js';
import type { ChangeLog } from '../../../block/change-log.js';
import { DirtyBitmap, type Durability } from '../../../block/dirty-bitmap.js';
import type { BitmapStore, Json } from '../../../block/driver.js';
import {
  type BitmapEntry,
  type BitmapsExtension,
  encodeDirectory,
  entryBytes,
  MAX_BITMAPS,
  MAX_DIRECTORY_BYTES,
  tableEntriesFor,
} from '../disk/bitmap-directory.js';
import { MAX_DURABLE_BITMAPS } from '../disk/durable-bitmaps.js';
import type { OpenImage } from '../open-image.js';
import { type ClusterRun, dropReferences } from '../space/bulk.js';
import { clustersOf, loadBits, storeBits, tooLarge, writeNew } from './bitmap-table.js';
import type { LoadedDirectory } from './bitmap-directory.js';
import { type BitmapsHeader, headerWith, KNOWN_AUTOCLEAR, saysTheSame } from './bitmaps-header.js';
import { DurableBitmaps, type Placed } from './durable-bitmaps.js';
import { changeHeader, checkHeaderChange } from './header-change.js';

/**
 * The bitmaps that an open image keeps (qcow2 specification, "Bitmaps"). As long as they are in memory and the image may
 * change, the disk says of each that it is in use; before the first change that is durable. What is stored is written
 * where nothing was, and then the header names the new directory (docs/CRASH-SAFETY.md).
 */
export class ImageBitmaps implements BitmapStore {
  readonly #image: OpenImage;
  /** As they are on disk, in the directory's order. */
  #entries: readonly BitmapEntry[];
  #directory: BitmapsExtension | undefined;
  /** Clusters that only a bitmap of that name, or the directory (''), has; known before the first change. */
  #owned: Map<string, ClusterRun[]> | undefined;
  readonly #mutex = new AsyncMutex();
  readonly #durable: DurableBitmaps;

  constructor(image: OpenImage, { entries, extension }: LoadedDirectory) {
    this.#image = image;
    this.#entries = entries;
    this.#directory = extension;
    this.#durable = new DurableBitmaps(image);
    this.#updateBeforeChanges();
  }

  /** What changes of the disk go through; undefined: no bitmap is durable. */
  get changeLog(): ChangeLog | undefined {
    return this.#durable.log;
  }

  /** The image is used no longer, or is somebody else's. */
  abandon(): void {
    this.#durable.abandon();
  }

  /** QAPI's Qcow2BitmapInfo of each, as it is on disk; undefined: the image keeps none. */
  get infos(): Json[] | undefined {
    if (this.#entries.length === 0) return undefined;
    return this.#entries.map(({ name, granularityBytes, isInUse, isAuto }) => ({
      flags: [...(isInUse ? ['in-use'] : []), ...(isAuto ? ['auto'] : [])],
      name,
      granularity: granularityBytes,
    }));
  }

  /** Some are not said to be in use, though they are in memory. */
  get areUnmarked(): boolean {
    return !this.#image.context.driver.forCheck && this.#entries.some(({ isInUse }) => !isInUse);
  }

  /** The header has features that we do not know, and so will not keep right. */
  get hasUnknownFeatures(): boolean {
    const { header } = this.#image.context;
    return (header.autoclear & ~KNOWN_AUTOCLEAR) !== 0n;
  }

  /**
   * Those that the node does not have yet, as the image has them. Errors: kind corrupt and those of reading, in QEMU's
   * words; exists, with `isComplete`, for one that the node has though nobody is said to use it.
   */
  async load(isComplete: boolean): Promise<DirtyBitmap[]> {
    const { driver, header } = this.#image.context;
    const loaded: DirtyBitmap[] = [];
    for (const entry of this.#entries) {
      const { name, isInUse } = entry;
      const durable = this.#durable.found(entry);
      const there = driver.dirtyBitmaps.find((bitmap) => bitmap.name === name);
      if (there) {
        if (!isInUse && isComplete) throw new BlockError('exists', `Bitmap already exists: ${name}`);
        // It came with its bits (a migration), and goes on as it was.
        if (durable && !durable.lost && there.persistent) there.durable ??= durable;
        continue;
      }
      const isKnown = !isInUse || (durable !== undefined && durable.lost === undefined);
      const bitmap = new DirtyBitmap(header.sizeBytes, entry.granularityBytes, name);
      bitmap.persistent = true;
      bitmap.durable = durable;
      bitmap.inconsistent = !isKnown;
      bitmap.enabled = entry.isAuto && isKnown;
      if (isKnown) await loadBits(this.#image, entry, bitmap);
      loaded.push(bitmap);
    }
    const all = [...driver.dirtyBitmaps, ...loaded];
    if (all.some(({ durable }) => durable && !durable.lost)) this.#durable.needLog();
    return loaded;
  }

  // ---- before the first change

  /** The image says nothing that a change of it would make untrue. */
  #isReadyForChanges(): boolean {
    const { driver } = this.#image.context;
    if (driver.forCheck) return !this.hasUnknownFeatures;
    const isOwned = this.#owned !== undefined || this.#entries.length === 0;
    const isPlaced = this.#durable.arePlaced(this.#entries);
    return isOwned && isPlaced && this.#isHeaderRight() && !this.areUnmarked;
  }

  #updateBeforeChanges(): void {
    this.#image.context.beforeChanges = this.#isReadyForChanges() ? undefined : () => this.#beforeChanges();
  }

  async #beforeChanges(): Promise<void> {
    const { context } = this.#image;
    const { autoclear } = context.header;
    context.assertMayWrite();
    if (context.driver.forCheck) {
      await changeHeader(context, { autoclear: autoclear & KNOWN_AUTOCLEAR });
    } else {
      await this.#own();
      if (!this.#durable.arePlaced(this.#entries)) await this.#placeDurable();
      await this.#settleHeader();
      if (this.areUnmarked) await this.#mark();
    }
    this.#updateBeforeChanges();
  }

  /** Each durable bitmap has all its clusters, and they hold all its bits; one for which there is no space is so no longer. */
  async #placeDurable(): Promise<void> {
    for (const bitmap of await this.#durable.adopt(this.#entries))
      try {
        await this.#replace((taken) => this.#durable.place(bitmap, bitmap.sizeBytes, taken));
      } catch (error) {
        if (this.#image.context.isHeaderUncertain) throw error;
        this.#durable.giveUp(bitmap, error);
      }
  }

  /** The image names a bitmap where it is put by `place`; what it had of it before is free then. */
  async #replace(place: (taken: ClusterRun[]) => Promise<Placed & { commit: () => void }>): Promise<void> {
    await this.#taking(async (taken) => {
      const { entry, runs, commit } = await place(taken);
      const entries = withEntry(this.#entries, entry);
      await this.#switchTo(entries, new Map(this.#owned).set(entry.name, runs), taken, commit);
    });
  }

  /** What `body` has taken is free again where it fails, unless the header may name it. */
  async #taking(body: (taken: ClusterRun[]) => Promise<void>): Promise<void> {
    const taken: ClusterRun[] = [];
    try {
      await body(taken);
    } catch (error) {
      if (!this.#image.context.isHeaderUncertain) for (const run of taken) dropReferences(this.#image, run);
      throw error;
    }
  }

  /** The header names the directory that is in memory, and no features that we do not know. */
  async #settleHeader(): Promise<void> {
    const { context } = this.#image;
    if (this.#isHeaderRight()) return;
    await changeHeader(context, this.#headerFor(this.#directory, this.#entries));
  }

  #isHeaderRight(): boolean {
    const { header, isHeaderUncertain } = this.#image.context;
    if (isHeaderUncertain) return false;
    return saysTheSame(header, this.#headerFor(this.#directory, this.#entries));
  }

  #headerFor(directory: BitmapsExtension | undefined, entries: readonly BitmapEntry[]): BitmapsHeader {
    return headerWith(this.#image.context.header, directory, this.#durable.listed(entries));
  }

  /** All are in use. Nothing has changed yet. */
  async #mark(): Promise<void> {
    const durable = this.#durable.of(this.#entries);
    const entries = this.#entries.map((entry) => {
      const bitmap = durable.find(({ name }) => name === entry.name);
      return { ...entry, isInUse: true, isAuto: bitmap?.enabled ?? entry.isAuto };
    });
    await this.#rewriteDirectory(entries);
  }

  /** Where it is: whichever of its sectors come to disk, each entry is true. */
  async #rewriteDirectory(entries: readonly BitmapEntry[]): Promise<void> {
    const { meta } = this.#image.context;
    assert(this.#directory, 'bitmaps have a directory');
    await meta.write(this.#directory.directoryOffset, encodeDirectory(entries), 0);
    await meta.flush();
    this.#entries = entries;
  }

  /** Finds out which clusters are theirs, so that nothing else gets them, and they can be given back. */
  async #own(): Promise<void> {
    if (this.#owned) return;
    const owned = new Map<string, ClusterRun[]>();
    if (this.#directory) {
      const { clusterBytes } = this.#image.context;
      const { directoryOffset, directoryBytes } = this.#directory;
      const count = divideRoundUp(directoryBytes, clusterBytes);
      const run = { start: directoryOffset / clusterBytes, count };
      this.#image.context.checkNoMetadata(directoryOffset, count * clusterBytes);
      owned.set('', await this.#claim('bitmap directory', [run]));
    }
    for (const entry of this.#entries)
      owned.set(entry.name, await this.#claim('bitmap', await clustersOf(this.#image, entry)));
    this.#owned = owned;
  }

  /** Of the clusters of a broken image, only those that are counted and nothing else's are ever given back. */
  async #claim(what: string, runs: readonly ClusterRun[]): Promise<ClusterRun[]> {
    const { context, allocator } = this.#image;
    const claimed: ClusterRun[] = [];
    for (const { start, count } of runs)
      for (const counted of await allocator.countedRuns(start, count))
        for (let cluster = counted.start; cluster < counted.start + counted.count; cluster++) {
          if (context.metadata.findAny(cluster * context.clusterBytes, context.clusterBytes) !== undefined)
            continue;
          context.metadata.add(what, cluster);
          claimed.push({ start: cluster, count: 1 });
        }
    return claimed;
  }

  /** Errors: those of a bitmap that cannot follow, or could not be stored any more. */
  checkNewSize(sizeBytes: number): void {
    const { driver, clusterBytes } = this.#image.context;
    for (const bitmap of driver.dirtyBitmaps) {
      if (this.#entries.some(({ name }) => name === bitmap.name)) bitmap.assertUsable('change');
      if (!bitmap.persistent) continue;
      if (tableEntriesFor(sizeBytes, bitmap.granularityBytes, clusterBytes) === undefined) throw tooLarge();
    }
  }

  // ---- storing

  get isSupported(): boolean {
    return this.#image.context.header.version >= 3;
  }

  /** Errors: see BitmapStore. */
  checkNew(name: string, granularityBytes: number): void {
    const { context } = this.#image;
    const { header, driver, clusterBytes } = context;
    const invalid = (text: string): BlockError => new BlockError('invalid', text);
    if (!this.isSupported)
      throw new BlockError('unsupported', 'Cannot store dirty bitmaps in qcow2 v2 files', {
        errno: 'ENOTSUP',
      });
    if (Buffer.byteLength(name) > MAX_BITMAP_NAME_BYTES)
      throw invalid(`Name length exceeds maximum (${MAX_BITMAP_NAME_BYTES} characters)`);
    if (tableEntriesFor(header.sizeBytes, granularityBytes, clusterBytes) === undefined) throw tooLarge();
    const names = new Set([name, ...this.#entries.map((entry) => entry.name)]);
    for (const bitmap of driver.dirtyBitmaps) if (bitmap.persistent) names.add(bitmap.name ?? '');
    if (names.size > MAX_BITMAPS) throw invalid('Maximum number of persistent bitmaps is already reached');
    let directoryBytes = 0;
    for (const each of names) directoryBytes += entryBytes(Buffer.byteLength(each));
    if (directoryBytes > MAX_DIRECTORY_BYTES) throw invalid('No space in the bitmap directory');
    const directory = { count: 1, directoryBytes, directoryOffset: 0 };
    checkHeaderChange(context, this.#headerFor(directory, this.#entries));
  }

  // ---- durable ones

  /** Errors: see BitmapStore. */
  async makeDurable(bitmap: DirtyBitmap, durability: Durability): Promise<void> {
    await this.#mutex.run(async () => {
      const { context } = this.#image;
      if (this.#durable.bitsOf(bitmap)) return;
      if (!context.mayWrite) throw new BlockError('permission', 'No write access', { errno: 'EACCES' });
      context.assertMayWrite();
      const others = this.#durable.listed(this.#entries).filter(({ name }) => name !== bitmap.name);
      if (others.length >= MAX_DURABLE_BITMAPS)
        throw new BlockError('limit', `An image keeps at most ${MAX_DURABLE_BITMAPS} durable bitmaps`);
      await context.beginChanges();
      const before = bitmap.durable;
      bitmap.durable = durability;
      try {
        await this.#durable
          .needLog()
          .exclusive(() => this.#replace((taken) => this.#durable.place(bitmap, bitmap.sizeBytes, taken)));
      } catch (error) {
        bitmap.durable = before;
        throw error;
      }
    });
  }

  /** See BitmapStore. */
  async settle(bitmap: DirtyBitmap): Promise<void> {
    await this.#mutex.run(async () => {
      const { context } = this.#image;
      const isThere = bitmap.persistent && this.#entries.some(({ name }) => name === bitmap.name);
      if (!isThere || !context.mayWrite) return;
      // What the image says of it is not true any more, though nothing of the disk has changed.
      await context.beginChanges();
      if (!this.#durable.of(this.#entries).includes(bitmap)) return;
      const isRight = this.#entries.every(
        ({ name, isAuto }) => name !== bitmap.name || isAuto === bitmap.enabled,
      );
      if (!isRight)
        await this.#rewriteDirectory(
          this.#entries.map((entry) =>
            entry.name === bitmap.name ? { ...entry, isAuto: bitmap.enabled } : entry,
          ),
        );
      await this.#durable.log?.settle();
    });
  }

  /** Before the disk grows: durable bitmaps have room for its granules. Errors: see storeBits. */
  async makeRoom(sizeBytes: number): Promise<void> {
    await this.#mutex.run(async () => {
      for (const bitmap of this.#durable.of(this.#entries))
        if (!this.#durable.fits(bitmap, sizeBytes))
          await this.#durable
            .needLog()
            .exclusive(() => this.#replace((taken) => this.#durable.place(bitmap, sizeBytes, taken)));
    });
  }

  /** Bitmaps of the node that are to be in the image when it is no longer ours. */
  #toStore(): DirtyBitmap[] {
    return this.#image.context.driver.dirtyBitmaps.filter(
      (bitmap) => bitmap.persistent && !bitmap.inconsistent && !bitmap.readOnly && !bitmap.isGivenAway,
    );
  }

  /** Everything that the node's bitmaps hold is in the image, durably, and no longer said to be in use. */
  store(): Promise<void> {
    return this.#mutex.run(async () => {
      const { context } = this.#image;
      const bitmaps = this.#toStore();
      if (bitmaps.length === 0 || !context.driver.isActive) return;
      if (!context.mayWrite) throw new BlockError('permission', 'No write access', { errno: 'EACCES' });
      context.assertMayWrite();
      await context.beginChanges();
      const durable = bitmaps.filter(
        (bitmap) => this.#durable.bitsOf(bitmap) && this.#durable.isExact(bitmap),
      );
      await this.#durable.end();
      let entries = this.#entries;
      const owned = new Map(this.#owned);
      try {
        await this.#taking(async (taken) => {
          // New ones go behind those that are there, the newest first.
          for (const bitmap of bitmaps.reverse()) {
            const from = taken.length;
            const isThere = durable.includes(bitmap);
            const entry = isThere ? this.#storedEntry(bitmap) : await this.#storeOne(bitmap, taken);
            entries = withEntry(entries, entry);
            if (!isThere) owned.set(entry.name, taken.slice(from));
          }
          await this.#switchTo(entries, owned, taken);
        });
      } catch (error) {
        this.#updateBeforeChanges();
        throw error;
      }
    });
  }

  /** Of a durable bitmap, whose clusters hold what they are to hold. */
  #storedEntry({ name, enabled }: DirtyBitmap): BitmapEntry {
    const entry = this.#entries.find((one) => one.name === name);
    assert(entry, 'a durable bitmap is in the directory');
    return { ...entry, isInUse: false, isAuto: enabled };
  }

  async #storeOne(bitmap: DirtyBitmap, taken: ClusterRun[]): Promise<BitmapEntry> {
    const { name = '', granularityBytes, enabled, successor } = bitmap;
    let all = bitmap;
    if (successor) {
      all = new DirtyBitmap(bitmap.sizeBytes, granularityBytes);
      all.merge(bitmap);
      all.merge(successor);
    }
    return {
      ...(await storeBits(this.#image, all, taken)),
      ...{ name, nameBytes: Buffer.from(name, 'utf8'), granularityBytes, isInUse: false, isAuto: enabled },
    };
  }

  remove(name: string): Promise<void> {
    return this.#mutex.run(async () => {
      if (!this.#entries.some((entry) => entry.name === name)) return;
      const { context } = this.#image;
      context.assertMayWrite();
      await context.beginChanges();
      const bitmap = context.driver.dirtyBitmaps.find((one) => one.name === name);
      const owned = new Map(this.#owned);
      owned.delete(name);
      const entries = this.#entries.filter((entry) => entry.name !== name);
      // Until the header names it no more, it knows of all changes.
      const forget = (): void => void (bitmap && this.#durable.forget(bitmap));
      await this.#durable.exclusive(() =>
        this.#taking((taken) => this.#switchTo(entries, owned, taken, forget)),
      );
    });
  }

  /**
   * Makes these what the image keeps: all of it is durable before the header names the new directory, and what only the
   * old one had is free afterwards. `commit` is called as soon as that is so.
   */
  async #switchTo(
    entries: readonly BitmapEntry[],
    owned: Map<string, ClusterRun[]>,
    taken: ClusterRun[],
    commit: () => void = () => undefined,
  ): Promise<void> {
    const image = this.#image;
    const from = taken.length;
    let directory: BitmapsExtension | undefined;
    if (entries.length > 0) {
      const bytes = encodeDirectory(entries);
      const directoryOffset = await writeNew(image, 'bitmap directory', bytes, taken);
      directory = { count: entries.length, directoryBytes: bytes.length, directoryOffset };
    }
    owned.set('', taken.slice(from));
    await image.writeBack.flush();
    try {
      await changeHeader(image.context, this.#headerFor(directory, entries));
    } catch (error) {
      this.#updateBeforeChanges();
      throw error;
    }
    const before = this.#owned ?? new Map<string, ClusterRun[]>();
    this.#entries = entries;
    this.#directory = directory;
    this.#owned = owned;
    commit();
    for (const [key, runs] of before)
      if (owned.get(key) !== runs) for (const run of runs) dropReferences(image, run);
    this.#updateBeforeChanges();
  }
}

/** In the place of the one of its name, else at the end. */
function withEntry(entries: readonly BitmapEntry[], entry: BitmapEntry): BitmapEntry[] {
  const index = entries.findIndex(({ name }) => name === entry.name);
  return index < 0 ? [...entries, entry] : entries.with(index, entry);
}
