import type { MemoryBudget } from '../../base/memory-budget.js';
import type { ChildIo, DriverContext } from '../../block/driver.js';
import { Allocator } from './space/allocator.js';
import { UnlinkedClusters, WriteBack } from './order/flush.js';
import { MAX_SNAPSHOTS } from './disk/header.js';
import { ImageContext } from './image.js';
import type { DiscardSettings } from './discards.js';
import { DEFAULT_L2_CACHE_BYTES, L2Tables } from './tables/l2-cache.js';
import { ENTRY_BYTES, entryOffset } from './disk/layout.js';
import { Mapper } from './mapping/mapping.js';
import { MetadataMap } from './tables/metadata-map.js';
import type { OverlapChecks } from './tables/overlap-checks.js';
import { DEFAULT_REFCOUNT_CACHE_BYTES, Refcounts } from './space/refcounts.js';
import { type ImageParts, Reserver } from './space/reservation.js';
import { SectorTable } from '../tables/sector-table.js';
import type { ImageKey } from './features/encryption.js';
import { MetadataSpace } from './space/space.js';
import { type LoadedDirectory, NO_BITMAPS, readBitmapDirectory } from './features/bitmap-directory.js';
import { ImageBitmaps } from './features/bitmaps.js';
import { readSnapshots, type SnapshotEntry, snapshotRanges, type SnapshotTable } from './disk/snapshots.js';

export interface CacheSizes {
  l2CacheBytes?: number | undefined;
  refcountCacheBytes?: number | undefined;
}

/** What an image is opened with. */
export interface OpenSettings extends CacheSizes {
  readonly key: ImageKey;
  readonly discards: DiscardSettings;
  /** Metadata that is not looked out for when something is written (tables/overlap-checks.ts). */
  readonly unchecked: OverlapChecks;
}

/** An image as loaded from its file: header, L1 and refcount table in memory, everything else on demand. */
export class OpenImage implements ImageParts {
  readonly context: ImageContext;
  readonly tables: L2Tables;
  readonly refcounts: Refcounts;
  readonly space: MetadataSpace;
  readonly allocator: Allocator;
  readonly unlinked = new UnlinkedClusters();
  readonly writeBack: WriteBack;
  readonly mapper: Mapper;
  readonly reserver: Reserver;
  readonly bitmaps: ImageBitmaps;
  #snapshots: SnapshotTable;

  private constructor(
    context: ImageContext,
    tables: { l1: SectorTable; refcountTable: SectorTable },
    { snapshots, directory }: { snapshots: SnapshotTable; directory: LoadedDirectory },
    sizes: Omit<OpenSettings, 'key' | 'discards'>,
    budget: MemoryBudget | undefined,
  ) {
    const { l1, refcountTable } = tables;
    this.context = context;
    context.metadata = new MetadataMap(() => context.header, tables, sizes.unchecked);
    this.#snapshots = snapshots;
    // A repair finds out by itself where they are.
    if (!context.driver.forCheck)
      context.metadata.setSnapshots(snapshotRanges(snapshots, context.header.snapshotsOffset));
    const { l2CacheBytes = DEFAULT_L2_CACHE_BYTES } = sizes;
    this.tables = new L2Tables(context, l1, l2CacheBytes, budget);
    const refcountBytes = sizes.refcountCacheBytes ?? DEFAULT_REFCOUNT_CACHE_BYTES;
    this.refcounts = new Refcounts(context, refcountTable, refcountBytes);
    this.space = new MetadataSpace(context);
    this.allocator = new Allocator(context, this.refcounts, this.space);
    this.writeBack = new WriteBack(context, this);
    this.mapper = new Mapper(context, this.tables);
    this.reserver = new Reserver(this);
    context.requestFlush = () => this.writeBack.flush();
    this.bitmaps = new ImageBitmaps(this, directory);
  }

  /** Its internal snapshots, as the header on disk names them. */
  get snapshots(): SnapshotTable {
    return this.#snapshots;
  }

  /** It says what is not so while it is ours to write: that nobody uses its bitmaps, or features that we do not know. */
  get saysTooMuch(): boolean {
    const { bitmaps, context } = this;
    return bitmaps.areUnmarked || (bitmaps.hasUnknownFeatures && !context.driver.forCheck);
  }

  /** From now on it may be written. */
  becomesWritable(): void {
    const { refcountTableClusters, clusterBytes } = this.context.header;
    this.refcounts.table.untrim(refcountTableClusters * clusterBytes);
  }

  /** The header names another table of them. */
  setSnapshots(table: SnapshotTable, offset: number): void {
    const { header, metadata } = this.context;
    header.snapshotCount = table.entries.length;
    header.snapshotsOffset = offset;
    this.#snapshots = table;
    metadata.setSnapshots(snapshotRanges(table, offset));
  }

  /**
   * `snapshot`: the disk as it was then, which is only read. Errors: see parseHeader; kind corrupt, unsupported when it
   * may not be opened `forWriting`.
   */
  static async open(
    driver: DriverContext,
    { key, discards, ...sizes }: OpenSettings,
    forWriting: boolean,
    snapshot?: SnapshotEntry,
  ): Promise<OpenImage> {
    const context = await ImageContext.open(driver, forWriting);
    context.discards = discards;
    context.encryption = await key.open(driver, context.header, context.meta);
    if (snapshot) context.showSnapshot(snapshot);
    const { header, meta: file } = context;
    const l1 = await readTable(file, header.l1Offset, header.l1Entries * ENTRY_BYTES);
    await context.announce('reftable_load');
    const refcountBytes = header.refcountTableClusters * header.clusterBytes;
    const refcountTable = await readTable(file, header.refcountTableOffset, refcountBytes);
    // A chain has many images that are only read.
    if (!forWriting) refcountTable.trim();
    const snapshots = await readSnapshotTable(context);
    const directory = snapshot ? NO_BITMAPS : await readDirectory(context);
    const isShared = !forWriting && !snapshot && sizes.l2CacheBytes === undefined;
    const budget = isShared ? driver.tableMemory : undefined;
    const image = new OpenImage(context, { l1, refcountTable }, { snapshots, directory }, sizes, budget);
    if (forWriting && !driver.forCheck) await image.lookAtInactive();
    return image;
  }

  /** Learns where the L2 tables of the snapshots are, where no write may hit these. Errors: those of reading. */
  async lookAtInactive(): Promise<void> {
    const { metadata, meta, clusterBytes } = this.context;
    if (!metadata.knowsInactive || this.#snapshots.entries.length === 0) return;
    const clusters = new Set<number>();
    for (const { l1Offset, l1Entries } of this.#snapshots.entries) {
      const l1 = await readTable(meta, l1Offset, l1Entries * ENTRY_BYTES);
      for (let index = 0; index < l1.entries; index++) {
        const offset = entryOffset(l1.bytes, index);
        if (offset !== 0) clusters.add(Math.floor(offset / clusterBytes));
      }
    }
    metadata.setInactive(clusters);
  }
}

/** A check tells itself what is wrong with it. */
async function readDirectory({ driver, header, meta }: ImageContext): Promise<LoadedDirectory> {
  const reading = readBitmapDirectory(meta, header);
  return driver.forCheck ? reading.catch(() => NO_BITMAPS) : reading;
}

/** The same. */
async function readSnapshotTable({ driver, header, meta }: ImageContext): Promise<SnapshotTable> {
  if (!driver.forCheck) return readSnapshots(meta, header);
  if (header.snapshotCount > MAX_SNAPSHOTS) return NO_SNAPSHOTS;
  return readSnapshots(meta, header).catch(() => NO_SNAPSHOTS);
}

const NO_SNAPSHOTS: SnapshotTable = { entries: [], lengthBytes: 0 };

async function readTable(file: ChildIo, offset: number, lengthBytes: number): Promise<SectorTable> {
  const bytes = Buffer.alloc(lengthBytes);
  if (offset < file.lengthBytes) await file.read(offset, bytes);
  return new SectorTable(bytes, offset);
}
