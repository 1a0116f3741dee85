import { assert } from '../../base/assert.js';
import { AsyncMutex } from '../../base/async.js';
import { BlockError, errnoError, errnoOf } from '../../base/error.js';
import type { ChildIo, DriverContext } from '../../block/driver.js';
import {
  dataFileOf,
  FieldOffset,
  type Header,
  headerClusterBytes,
  layoutOf,
  MAX_SNAPSHOTS,
  noRefcountTable,
  parseHeader,
} from './disk/header.js';
import type { L2Layout } from './disk/l2-layout.js';
import { diskOf, type SnapshotEntry } from './disk/snapshots.js';
import { Incompatible, SECTOR_BYTES } from './disk/layout.js';
import type { DiscardCause, DiscardSettings } from './discards.js';
import type { ImageEncryption } from './features/encryption.js';
import { ImageStorage } from './storage.js';
import type { MetadataMap } from './tables/metadata-map.js';

/** First read of an image: the header of every cluster size begins here. */
const FIRST_READ_BYTES = 4096;

/** Bytes of the image file, `end` excluded. */
export interface ByteRange {
  from: number;
  end: number;
}

/** What the parts of an open image share: its file, its header, and whether it is sound. */
export class ImageContext {
  readonly driver: DriverContext;
  readonly storage: ImageStorage;
  readonly l2: L2Layout;
  header: Header;
  /** How the guest's data is encrypted; set by the image's owner. */
  encryption: ImageEncryption | undefined;
  /** Which discards the file hears of; set by the image's owner. */
  discards!: DiscardSettings;
  /** The first sector of the header as it is on disk. */
  headerSector: Buffer;
  /** File size when the image was opened: what lies beyond is a hole. */
  readonly openedFileBytes: number;
  /** Writes back what is dirty; set by the image's owner. */
  requestFlush: () => Promise<void> = () => Promise.resolve();
  /** Names of backing files that the header on disk may point at although `header` does not: changes that failed. */
  staleNames: ByteRange[] = [];
  /** Bytes of clusters that the guest changed, and that no write-back has brought to disk since. */
  unflushedBytes = 0;
  /** Held around every change of the header. */
  readonly headerLock = new AsyncMutex();
  /**
   * What a change must find done, durably: it makes auto-clear features, bitmaps above all, say no more than is true.
   * Undefined: nothing. Set and unset by what knows (features/bitmaps).
   */
  beforeChanges: (() => Promise<void>) | undefined;
  readonly #beginning = new AsyncMutex();
  /** Where metadata is; set by the image's owner. */
  metadata!: MetadataMap;
  #isHeaderUncertain = false;
  #namesFree = false;
  /** Its refcounts may be wrong, and nobody has mended them: only a repair makes the image clean. */
  staysDirty: boolean;
  /** Another one that was opened for it changes the image: what is in memory here is not it, and is never written. */
  isSuperseded = false;
  #corrupted = false;
  #marking: Promise<void> | undefined;

  private constructor(
    driver: DriverContext,
    storage: ImageStorage,
    header: Header,
    sector: Buffer,
    fileBytes: number,
  ) {
    this.driver = driver;
    this.storage = storage;
    this.header = header;
    this.l2 = layoutOf(header);
    this.headerSector = sector;
    this.openedFileBytes = fileBytes;
    // Who opens it for use repairs it first.
    this.staysDirty = driver.forCheck && this.isDirty;
  }

  static async open(driver: DriverContext, forWriting: boolean): Promise<ImageContext> {
    const file = driver.child('file');
    const fileBytes = file.lengthBytes;
    const header = await readHeader(file, driver.forCheck);
    // A check can do something about it.
    if (header.parsed.snapshotCount > MAX_SNAPSHOTS && !driver.forCheck)
      throw new BlockError('limit', 'Snapshot table too large');
    const storage = new ImageStorage(file, dataChild(driver, header.parsed));
    const context = new ImageContext(driver, storage, header.parsed, header.sector, fileBytes);
    if (forWriting && !driver.forCheck) context.checkWritable();
    return context;
  }

  /** Header, tables and refcounts. */
  get meta(): ChildIo {
    return this.storage.meta;
  }

  /** Guest data; offsets of mappings and reservations are its. */
  get data(): ChildIo {
    return this.storage.data;
  }

  /** Nobody else has it open for writing, and we have. */
  get mayWrite(): boolean {
    return this.driver.mayWrite && !this.isSuperseded;
  }

  get clusterBytes(): number {
    return this.header.clusterBytes;
  }

  /** What is allocated and zeroed for itself: a cluster, or a part of one. */
  get unitBytes(): number {
    return this.header.clusterBytes / this.l2.unitsPerCluster;
  }

  /** The data file holds what the disk holds, byte for byte. */
  get isDataFileRaw(): boolean {
    return dataFileOf(this.header)?.isRaw === true;
  }

  /** The file is to free the blocks of clusters that become free for that cause. */
  passesDiscard(cause: DiscardCause): boolean {
    return this.discards[cause] ?? this.driver.modes.discard === 'unmap';
  }

  get l2Entries(): number {
    return this.l2.entriesIn(this.header.clusterBytes);
  }

  /** The header on disk may be another one than it is to be, which comes back with the next write-back. */
  get isHeaderUncertain(): boolean {
    return this.#isHeaderUncertain;
  }

  set isHeaderUncertain(isUncertain: boolean) {
    this.#isHeaderUncertain = isUncertain;
    if (!isUncertain) this.#namesFree = false;
  }

  /** The header on disk may name clusters that count as free: until a write-back has made it certain, none is given out. */
  get holdsFree(): boolean {
    return this.#namesFree;
  }

  get isMarkedCorrupt(): boolean {
    return (this.#corrupted && this.mayWrite) || (this.header.incompatible & Incompatible.corrupt) !== 0n;
  }

  get isDirty(): boolean {
    return (this.header.incompatible & Incompatible.dirty) !== 0n;
  }

  /** Nothing was found broken since it was opened. */
  get isSound(): boolean {
    return !this.#corrupted;
  }

  /** Guest data may be overwritten where it is: the image is sound, and changes have begun. */
  get mayWriteInPlace(): boolean {
    return !this.#corrupted && this.beforeChanges === undefined;
  }

  /** Errors in QEMU's words when this image must not be written, repaired or not. */
  checkWritable(): void {
    if (this.isMarkedCorrupt)
      throw new BlockError('corrupt', 'qcow2: Image is corrupt; cannot be opened read/write');
    const { refcountTableOffset, refcountTableClusters } = this.header;
    if (refcountTableClusters === 0) throw noRefcountTable();
    // What it does not say would count as free.
    if (refcountTableOffset + refcountTableClusters * this.clusterBytes > this.meta.lengthBytes)
      throw new BlockError('corrupt', 'Reference count table lies outside the file', {
        offset: refcountTableOffset,
      });
  }

  /** The disk is what it was at a snapshot. The header on disk says something else: nothing may be written. */
  showSnapshot(snapshot: SnapshotEntry): void {
    assert(!this.mayWrite, 'an image that shows a snapshot is only read');
    this.header = { ...this.header, ...diskOf(snapshot, this.header) };
  }

  /** Where it cannot be repaired now: errors when its refcounts may be wrong. */
  checkClean(): void {
    if (!this.isDirty) return;
    const how = 'its refcounts are repaired when it is opened read/write from the beginning';
    throw new BlockError('unsupported', `qcow2: Image is dirty (lazy refcounts); ${how}`);
  }

  /**
   * Reports a broken image and makes the error to throw. From then on nothing is allocated or linked in it, and its
   * corrupt bit is set: it opens for reading only until it is repaired.
   */
  corrupt(message: string, offset?: number): BlockError {
    if (!this.#corrupted) {
      this.#corrupted = true;
      if (this.mayWrite && this.header.version >= 3)
        this.#marking = this.setIncompatible(Incompatible.corrupt).catch(() => undefined);
      const event = { name: 'corrupted' as const, message, fatal: this.mayWrite };
      this.driver.tell(corruptionText(message, this.mayWrite));
      this.driver.report(offset === undefined ? event : { ...event, offset, sizeBytes: this.clusterBytes });
    }
    const where = offset === undefined ? {} : { offset };
    return new BlockError('corrupt', message, { errno: 'EIO', node: this.driver.nodeName, ...where });
  }

  /** Sets bits of the incompatible features; durable on return. */
  setIncompatible(bits: bigint): Promise<void> {
    return this.#changeIncompatible((before) => before | bits);
  }

  /** Clears those that are set; durable on return. */
  clearIncompatible(bits: bigint): Promise<void> {
    return this.#changeIncompatible((before) => before & ~bits);
  }

  async #changeIncompatible(change: (before: bigint) => bigint): Promise<void> {
    await this.headerLock.run(async () => {
      const incompatible = change(this.header.incompatible);
      if (incompatible === this.header.incompatible) return;
      const edit = (sector: Buffer): void =>
        void sector.writeBigUInt64BE(incompatible, FieldOffset.incompatible);
      // Of a broken image, what it says of that stays said, durable or not.
      if (this.#corrupted) await this.writeHeader(edit).then(() => this.meta.flush());
      else await this.switchHeaderHeld(edit);
      this.header.incompatible = incompatible;
    });
  }

  /** The corrupt bit is written, or could not be. */
  async marked(): Promise<void> {
    await this.#marking;
  }

  /** Errors: kind corrupt when metadata lies in [offset, offset + lengthBytes), which is to take something else. */
  checkNoMetadata(offset: number, lengthBytes: number): void {
    const what = this.metadata.find(offset, lengthBytes);
    if (what !== undefined) throw this.overlap(what, offset);
  }

  overlap(what: string, offset: number): BlockError {
    return this.corrupt(`Preventing invalid write on metadata (overlaps with ${what})`, offset);
  }

  /** Before any change of the image. Errors: kind corrupt; EIO. */
  assertMayWrite(): void {
    if (this.isSuperseded)
      throw errnoError('EIO', 'The image was left half changed, and could not be read since');
    assert(this.mayWrite, () => `change of node '${this.driver.nodeName}', which may not be written`);
    if (this.#corrupted)
      throw new BlockError('corrupt', 'Image is corrupt', { errno: 'EIO', node: this.driver.nodeName });
  }

  assertMayRepair(): void {
    const { mayWrite, forCheck, nodeName } = this.driver;
    assert(mayWrite && forCheck, () => `node '${nodeName}' was not opened to be repaired`);
  }

  /** Errors: kind corrupt unless a metadata cluster may be there; `isShared`: it is not changed where it is. */
  checkMetadataOffset(what: string, offset: number, where: string, isShared = false): void {
    if (offset % this.clusterBytes !== 0)
      throw this.corrupt(`${what} offset ${hex(offset)} unaligned (${where})`);
    if (!Number.isSafeInteger(offset + this.clusterBytes))
      throw this.corrupt(`${what} offset ${hex(offset)} outside the image (${where})`);
    const other = this.metadata.findOther(offset);
    if (other !== undefined && !(isShared && other === `active ${what}`))
      throw this.corrupt(`${what} overlaps with ${other} (${where})`, offset);
  }

  /** Changes fields in the first sector, which the disk writes whole or not at all; not yet durable on return. */
  async writeHeader(edit: (sector: Buffer) => void): Promise<void> {
    assert(this.mayWrite, 'the header of an image that may not be written');
    const sector = Buffer.from(this.headerSector);
    edit(sector);
    await this.meta.write(0, sector, 0);
    this.headerSector = sector;
  }

  /**
   * The same as one step that is durable on return. When it fails, the header on disk is what it was; where not even that
   * can be had, no write-back succeeds before it is. `namesFree`: of what it is to say, clusters count as free.
   */
  switchHeader(edit: (sector: Buffer) => void, { namesFree = false } = {}): Promise<void> {
    return this.headerLock.run(() => this.switchHeaderHeld(edit, namesFree));
  }

  /** The same for who holds the header's lock. */
  async switchHeaderHeld(edit: (sector: Buffer) => void, namesFree = false): Promise<void> {
    const before = this.headerSector;
    try {
      await this.writeHeader(edit);
      await this.meta.flush();
      this.isHeaderUncertain = false;
    } catch (error) {
      this.headerSector = before;
      try {
        await this.writeHeader(() => undefined);
        await this.meta.flush();
      } catch {
        this.isHeaderUncertain = true;
        this.#namesFree ||= namesFree;
      }
      throw error;
    }
  }

  /**
   * Before a first change: what must be durable before it, which it waits for. Afterwards nothing the image says of
   * itself is made untrue by a change.
   */
  beginChanges(): Promise<void> {
    return this.#beginning.run(async () => {
      await this.beforeChanges?.();
    });
  }

  /** What began by itself, for no change, has ended. */
  hasBegun(): Promise<void> {
    return this.#beginning.run(() => Promise.resolve());
  }

  announce(event: string): Promise<void> | undefined {
    return this.meta.announce(event);
  }
}

/** Where guest data is. Errors: invalid, in QEMU's words. */
function dataChild(driver: DriverContext, header: Header): ChildIo {
  const hasChild = driver.hasChild('data-file');
  if (dataFileOf(header)) {
    if (hasChild) return driver.child('data-file');
    if (!driver.onlyLook) throw new BlockError('invalid', "'data-file' is required for this image");
  } else if (hasChild) {
    const text = "'data-file' can only be set for images with an external data file";
    throw new BlockError('invalid', text);
  }
  return driver.child('file');
}

/** As QEMU writes numbers in messages. */
export function hex(value: number): string {
  return value === 0 ? '0' : `0x${value.toString(16)}`;
}

/** What is said of a broken image, once. */
export function corruptionText(message: string, isWritable: boolean): string {
  return isWritable
    ? `qcow2: Marking image as corrupt: ${message}; further corruption events will be suppressed`
    : `qcow2: Image is corrupt: ${message}; further non-fatal corruption events will be suppressed`;
}

/** Reads and checks the header cluster, for a check as parseHeader has it. */
export async function readHeader(
  file: ChildIo,
  forCheck: boolean,
): Promise<{ parsed: Header; sector: Buffer }> {
  const fileBytes = file.lengthBytes;
  let start = Buffer.alloc(Math.min(FIRST_READ_BYTES, fileBytes));
  try {
    await readBytes(file, 0, start);
  } catch (error) {
    throw errnoError(errnoOf(error), 'Could not read qcow2 header', { cause: error });
  }
  const clusterBytes = headerClusterBytes(start);
  if (clusterBytes > start.length && fileBytes > start.length) {
    start = Buffer.alloc(Math.min(clusterBytes, fileBytes));
    await readBytes(file, 0, start);
  }
  const parsed = parseHeader(start.subarray(0, clusterBytes), forCheck);
  const sector = Buffer.alloc(SECTOR_BYTES);
  start.copy(sector, 0, 0, SECTOR_BYTES);
  return { parsed, sector };
}

/** Reads now where that needs no wait. */
export function readBytes(file: ChildIo, offset: number, buffer: Buffer): Promise<void> | undefined {
  if (buffer.length === 0 || file.tryRead(offset, buffer)) return undefined;
  return file.read(offset, buffer);
}
