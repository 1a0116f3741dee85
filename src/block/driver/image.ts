import type { LuksAmendment } from '../../schema/encryption-options.js';
import type { DirtyBitmap, Durability } from '../dirty-bitmap.js';
import type { Json } from './options.js';

/**
 * The bitmaps that an image keeps. They are loaded when it is opened or becomes ours, and stored when it is closed, turns
 * read-only or is given away; whoever opens it after a crash finds that they are inconsistent.
 */
export interface BitmapStore {
  /** The image can keep some: not each version of a format does. */
  readonly isSupported: boolean;
  /** Errors, in QEMU's words: why a new one cannot be kept. */
  checkNew(name: string, granularityBytes: number): void;
  /** The image keeps it no longer; durable on return. */
  remove(name: string): Promise<void>;
  /**
   * From now on a crash leaves it right, with bits too many at most; durable on return. No change is in flight. Absent: the
   * store cannot. Errors: limit, no-space, those of writing; then it is what it was.
   */
  makeDurable?(bitmap: DirtyBitmap, durability: Durability): Promise<void>;
  /**
   * What was done to a bitmap by other means than changes of the disk: the image says nothing else of it from now on, not
   * after a crash either, and has it durably if the bitmap is durable. Errors: those of writing.
   */
  settle?(bitmap: DirtyBitmap): Promise<void>;
}

/** What the file system did about discards. */
export interface DiscardCounts {
  done: number;
  doneBytes: number;
  failed: number;
}

/** Driver-specific facts for `image` in query-block and `img info`. */
export interface DriverInfo {
  clusterSizeBytes?: number;
  /** Where a guest's memory would be kept, behind the disk. */
  vmStateOffset?: number;
  isDirty?: boolean;
  /** Queries do not tell whether it is dirty. */
  hasNoDirtyFlag?: boolean;
  isCorrupt?: boolean;
  isEncrypted?: boolean;
  /** The whole `format-specific` object as QMP prints it. */
  formatSpecific?: { [key: string]: Json };
  compressedClusters?: boolean;
  /** QAPI's SnapshotInfo of each internal snapshot. */
  snapshots?: readonly Json[];
}

/** What an image is to be like from now on; what is not given stays. */
export interface ImageAmendment {
  version?: 2 | 3;
  lazyRefcounts?: boolean;
  refcountBits?: number;
  /** How the file with the guest's data is called; empty: it has no name any more. */
  dataFile?: string;
  dataFileRaw?: boolean;
  /** What it is to name; only what it names already can stay. */
  backing?: { filename: string | undefined; format: string | undefined };
  keySlots?: KeySlotAmendment;
  /** Changes the size, after what needs a newer version and before what needs an older one. */
  resize?: () => Promise<void>;
}

/** Which passwords an encrypted image opens with. */
export interface KeySlotAmendment {
  amendment: LuksAmendment;
  /** Also what may make all data unreadable. */
  isForced: boolean;
}

/** What a check repairs: space that nobody uses, or everything that can be. */
export type RepairMode = 'none' | 'leaks' | 'all';

/** What a check of an image found and what is left of it; counts of clusters unless named otherwise. */
export interface ImageCheck {
  /** Parts of the image that could not be read. */
  checkErrors: number;
  corruptions: number;
  leaks: number;
  corruptionsFixed: number;
  leaksFixed: number;
  totalClusters: number;
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
  /** First byte behind the last cluster in use. */
  imageEndOffset: number;
}

/** How an image's file is used: growth that its content does not need, and fragmentation. */
export interface FileUse {
  lengthBytes: number;
  clusterBytes: number;
  /** Of clusters that count as in use, leaked ones included. */
  usedBytes: number;
  /** Of those before the last one in use that are free: what is written next goes there. */
  freeBytes: number;
  /** Of the disk's clusters, as it is now, those that have one of the file; compressed ones are counted by themselves. */
  dataClusters: number;
  compressedClusters: number;
  /** Stretches of the disk whose clusters lie one behind the other in the file. */
  extents: number;
  /** Clusters of which the one before on the disk has one of the file, too; and those of them that do not lie behind it. */
  adjoiningClusters: number;
  scatteredClusters: number;
}

export interface CompactOptions {
  /** Nothing is changed. */
  isDryRun?: boolean;
  /** Hears of clusters that are where they are to be. */
  onProgress?: (done: number, total: number) => void;
}

/** What became of an image's file, or would. */
export interface ImageCompaction {
  formerBytes: number;
  lengthBytes: number;
  /** Of clusters that have another place in the file now. */
  movedBytes: number;
  /** Of clusters that nobody used and that were counted. */
  leakedBytes: number;
}
