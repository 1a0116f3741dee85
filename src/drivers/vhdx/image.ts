import { alignUp } from '../../base/align.js';
import { AsyncMutex } from '../../base/async.js';
import { BlockError, errnoError } from '../../base/error.js';
import { MAX_IMAGE_BYTES, MiB } from '../../base/limits.js';
import type { ChildIo, DriverContext, DriverInfo, ImageCheck, RepairMode } from '../../block/driver.js';
import { randomUuid } from '../tables/new-image.js';
import { BlockMap } from '../tables/block-map.js';
import { nothingFound } from '../tables/check-result.js';
import { EntryCache, outsideFile } from '../tables/entry-cache.js';
import { FileEnd } from '../tables/file-end.js';
import type { OpenedFormat } from '../tables/format-node.js';
import { readBytes } from '../tables/read-bytes.js';
import {
  encodeHeader,
  HEADER_BYTES,
  HEADER_OFFSETS,
  IDENTIFIER,
  LOG_SECTOR_BYTES,
  MAX_LOG_BYTES,
  NO_GUID,
  parseHeader,
  parseRegions,
  REGION_OFFSETS,
  REGION_TABLE_BYTES,
  type Regions,
  type VhdxHeader,
} from './layout.js';
import { VhdxLog } from './log.js';
import { type DiskParameters, readParameters } from './metadata.js';
import { BlockState, chunkRatio, ENTRY_BYTES, entryCount, VhdxTable } from './table.js';

export async function loadVhdx(
  driver: DriverContext,
  _settings: unknown,
  mayWrite: boolean,
): Promise<OpenedFormat> {
  const file = driver.child('file');
  const identifier = await readBytes(file, 0, IDENTIFIER.length);
  if (identifier.toString('latin1') !== IDENTIFIER) throw errnoError('EINVAL');
  const headers = await VhdxHeaders.read(file);
  const isReplayed = await settleLog(driver, file, headers, mayWrite);
  const regions = await readRegions(file);
  const disk = await readParameters(file, regions.metadata);
  if (entryCount(disk) > regions.table.lengthBytes / ENTRY_BYTES) throw errnoError('EINVAL');
  const end = await endOf(file, headers.current, regions, disk, driver.forCheck);
  return new VhdxImage({ driver, file, headers, regions, disk, end, isReplayed });
}

/** What the last user's log says is done. Answers whether there was something. */
async function settleLog(
  driver: DriverContext,
  file: ChildIo,
  headers: VhdxHeaders,
  mayWrite: boolean,
): Promise<boolean> {
  const { logGuid, logBytes, logOffset } = headers.current;
  if (logGuid.equals(NO_GUID)) return false;
  const isSound = logBytes > 0 && logBytes % MiB === 0 && logOffset >= MiB && logOffset % MiB === 0;
  if (!isSound || logBytes > MAX_LOG_BYTES || logOffset > MAX_IMAGE_BYTES) throw errnoError('EINVAL');
  const log = new VhdxLog(file, headers.current);
  if (!(await log.isActive())) return false;
  // Its owner settles it before we own it.
  if (!driver.isActive && driver.host.passing?.isTaking === true) return false;
  if (!mayWrite) {
    const { filename } = driver;
    throw new BlockError(
      'permission',
      `VHDX image file '${filename}' opened read-only, but contains a log that needs to be replayed`,
      { errno: 'EPERM', hint: `To replay the log, run:\nqemu-img check -r all '${filename}'` },
    );
  }
  await log.replay();
  await headers.update({ logGuid: NO_GUID });
  return true;
}

async function readRegions(file: ChildIo): Promise<Regions> {
  let broken: unknown;
  for (const offset of REGION_OFFSETS) {
    try {
      return parseRegions(await readBytes(file, offset, REGION_TABLE_BYTES));
    } catch (error) {
      broken ??= error;
    }
  }
  throw broken;
}

/** Behind everything that is in use, in whole MiB. Errors: corrupt for a block outside the file, unless that is to be told. */
async function endOf(
  file: ChildIo,
  header: VhdxHeader,
  regions: Regions,
  disk: DiskParameters,
  isForCheck: boolean,
): Promise<number> {
  let end = MiB;
  for (const { offset, lengthBytes } of [regions.table, regions.metadata])
    end = Math.max(end, offset + lengthBytes);
  end = Math.max(end, header.logOffset + header.logBytes);
  await eachBlock({ file, regions, disk }, (index, place, diskBytes) => {
    const text = isForCheck ? undefined : whyNotInFile(file, index, place, diskBytes);
    if (text !== undefined) throw new BlockError('corrupt', text, { errno: 'EINVAL' });
    end = Math.max(end, place + disk.blockBytes);
  });
  if (end > MAX_IMAGE_BYTES) throw errnoError('EINVAL');
  return alignUp(end, MiB);
}

/** Those that have data: which entry of the table, where in the file, and how much of it the disk has. */
async function eachBlock(
  { file, regions, disk }: Pick<Parts, 'file' | 'regions' | 'disk'>,
  visit: (index: number, place: number, diskBytes: number) => void,
): Promise<void> {
  const entries = entryCount(disk);
  const bitmapEvery = chunkRatio(disk) + 1;
  const pieceEntries = 65536;
  for (let first = 0; first < entries; first += pieceEntries) {
    const count = Math.min(pieceEntries, entries - first);
    const bytes = await readBytes(file, regions.table.offset + first * ENTRY_BYTES, count * ENTRY_BYTES);
    for (let i = 0; i < count; i++) {
      const entry = bytes.readUInt32LE(i * ENTRY_BYTES) + bytes.readUInt32LE(i * ENTRY_BYTES + 4) * 2 ** 32;
      if (entry % 8 !== BlockState.fullyPresent) continue;
      const block = first + i - Math.floor((first + i) / bitmapEvery);
      const diskBytes = Math.min(disk.blockBytes, disk.diskBytes - block * disk.blockBytes);
      visit(first + i, entry - (entry % MiB), diskBytes);
    }
  }
}

const SECTOR_BYTES = 512;

/** A file may end with the disk, in the middle of its last block and of a sector. */
function isInFile(file: ChildIo, place: number, diskBytes: number): boolean {
  return place + diskBytes <= alignUp(file.lengthBytes, SECTOR_BYTES);
}

/** A file that was cut off would read as zeroes. In QEMU's words; undefined: it was not. */
function whyNotInFile(file: ChildIo, index: number, place: number, diskBytes: number): string | undefined {
  if (isInFile(file, place, diskBytes)) return undefined;
  const [size, last] = [alignUp(file.lengthBytes, SECTOR_BYTES), place + diskBytes - 1];
  const which = place >= size ? `start offset ${place}` : `end offset ${last}`;
  return `VHDX BAT entry ${index} ${which} points after end of file (${size}). Image has probably been truncated.`;
}

/** Two headers, of which the sound one with the higher number counts: the other is written, and then counts. */
class VhdxHeaders {
  readonly #file: ChildIo;
  readonly #lock = new AsyncMutex();
  #current: VhdxHeader;
  #slot: number;

  private constructor(file: ChildIo, current: VhdxHeader, slot: number) {
    this.#file = file;
    this.#current = current;
    this.#slot = slot;
  }

  /** Errors: invalid. */
  static async read(file: ChildIo): Promise<VhdxHeaders> {
    let best: { header: VhdxHeader; slot: number } | undefined;
    for (const [slot, offset] of HEADER_OFFSETS.entries()) {
      const header = parseHeader(await readBytes(file, offset, HEADER_BYTES));
      if (header && !(best && best.header.sequence >= header.sequence)) best = { header, slot };
    }
    if (!best) throw new BlockError('invalid', 'No valid VHDX header found', { errno: 'EINVAL' });
    return new VhdxHeaders(file, best.header, best.slot);
  }

  get current(): VhdxHeader {
    return this.#current;
  }

  /** Durable on return. */
  update(change: Partial<VhdxHeader>): Promise<void> {
    return this.#lock.run(async () => {
      const next = { ...this.#current, ...change, sequence: this.#current.sequence + 1n };
      const slot = 1 - this.#slot;
      await this.#file.write(HEADER_OFFSETS[slot] ?? 0, encodeHeader(next), 0);
      await this.#file.flush();
      [this.#current, this.#slot] = [next, slot];
    });
  }
}

interface Parts {
  driver: DriverContext;
  file: ChildIo;
  headers: VhdxHeaders;
  regions: Regions;
  disk: DiskParameters;
  end: number;
  isReplayed: boolean;
}

class VhdxImage implements OpenedFormat {
  readonly map: BlockMap;
  readonly #p: Parts;
  readonly #cache: EntryCache;
  readonly #table: VhdxTable;
  #log: VhdxLog | undefined;
  #beginning: Promise<void> | undefined;

  constructor(parts: Parts) {
    this.#p = parts;
    const { file, regions, disk, end } = parts;
    this.#cache = new EntryCache(file, {
      sectorBytes: LOG_SECTOR_BYTES,
      writeLast: async (changes) => this.#log?.write(changes),
    });
    this.#table = new VhdxTable(this.#cache, regions.table, disk, () => (this.#beginning ??= this.#begin()));
    const isDirty = (): boolean => this.#cache.isDirty;
    const space = new FileEnd(file, end, disk.blockBytes);
    this.map = new BlockMap({ file, table: this.#table, space, blockBytes: disk.blockBytes, isDirty });
  }

  get lengthBytes(): number {
    return this.#p.disk.diskBytes;
  }

  /** Before the first change: the file is told to be another, and to have a log. */
  async #begin(): Promise<void> {
    const { headers, driver, file } = this.#p;
    const { logOffset, logBytes } = headers.current;
    if (logOffset + logBytes > file.lengthBytes || logBytes < MiB) throw outsideFile('The log', logOffset);
    const guid = (): Buffer => randomUuid(driver.host);
    try {
      await headers.update({ fileGuid: guid(), dataGuid: guid(), logGuid: guid() });
      this.#log = new VhdxLog(this.#p.file, headers.current);
    } catch (error) {
      this.#beginning = undefined;
      throw error;
    }
  }

  flush(): Promise<void> {
    return this.#cache.writeBack();
  }

  async end(): Promise<void> {
    await this.#cache.writeBack();
    if (!this.#log) return;
    await this.#p.headers.update({ logGuid: NO_GUID });
    this.#table.end();
    this.#log = undefined;
    this.#beginning = undefined;
  }

  info(): DriverInfo {
    return { clusterSizeBytes: this.#p.disk.blockBytes };
  }

  async check(_repair: RepairMode, say: (line: string) => void): Promise<ImageCheck> {
    const { file, isReplayed } = this.#p;
    const result = nothingFound();
    if (isReplayed) result.corruptionsFixed++;
    await eachBlock(this.#p, (index, place, diskBytes) => {
      const text = whyNotInFile(file, index, place, diskBytes);
      if (text !== undefined) say(`qemu-img: ${text}`);
      if (place < MiB || text !== undefined) result.corruptions++;
    });
    return result;
  }
}
