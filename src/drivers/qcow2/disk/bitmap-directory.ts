import { alignUp } from '../../../base/align.js';
import { BlockError, errnoError, errnoOf } from '../../../base/error.js';
import { MAX_BITMAP_NAME_BYTES } from '../../../base/limits.js';
import { BITMAPS_BYTES } from './header-extensions.js';
import { ENTRY_BYTES, entryOffset, writeEntryAt, writeU64 } from './layout.js';

/** QEMU's bounds: of the number of bitmaps, and of the bytes of their names and fields together. */
export const MAX_BITMAPS = 65535;
export const MAX_DIRECTORY_BYTES = 1024 * MAX_BITMAPS;
/** Longest bitmap table, in entries, and most bytes of the granules of one bitmap: QEMU's bounds. */
const MAX_TABLE_ENTRIES = 0x8000000;
const MAX_SERIALISED_BYTES = 0x20000000;
const MIN_GRANULARITY_BITS = 9;
export const MAX_GRANULARITY_BITS = 31;

const ENTRY_HEADER_BYTES = 24;
const DIRTY_TRACKING = 1;
const Flag = { inUse: 1, auto: 2 } as const;
const KNOWN_FLAGS = 3;
/** Bits of a bitmap table's entry that the specification keeps for later: 56 to 63, and 1 to 8. */
const RESERVED_HIGH = 0xff000000;
const RESERVED_LOW = 0x000001fe;
const ALL_ONES = 1;

/** The bitmaps extension of the header (qcow2 specification, "Bitmaps extension"). */
export interface BitmapsExtension {
  count: number;
  directoryBytes: number;
  /** One that is negative is none of a file. */
  directoryOffset: number;
}

/** A bitmap that the image keeps (qcow2 specification, "Bitmap directory"). */
export interface BitmapEntry {
  name: string;
  /** As they are on disk. */
  nameBytes: Buffer;
  granularityBytes: number;
  /** Whoever has it in memory has not brought it to disk, or had not before it crashed. */
  isInUse: boolean;
  /** It records from the moment when the image is opened. */
  isAuto: boolean;
  /** One that is negative is none of a file; as any, it does not matter while the bitmap is in use. */
  tableOffset: number;
  tableEntries: number;
}

/** Errors: kind corrupt, in QEMU's words. */
export function decodeBitmapsExtension(data: Buffer, clusterBytes: number): BitmapsExtension {
  const count = data.readUInt32BE(0);
  const directoryBytes = data.readBigUInt64BE(8);
  const directoryOffset = data.readBigUInt64BE(16);
  if (data.readUInt32BE(4) !== 0) throw corrupt('bitmaps_ext: Reserved field is not zero');
  if (count > MAX_BITMAPS) {
    const most = `exceeding the QEMU supported maximum of ${MAX_BITMAPS}`;
    throw corrupt(`bitmaps_ext: Image has ${count} bitmaps, ${most}`);
  }
  if (count === 0) throw corrupt('found bitmaps extension with zero bitmaps');
  if (directoryOffset % BigInt(clusterBytes) !== 0n)
    throw corrupt('bitmaps_ext: invalid bitmap directory offset');
  if (directoryBytes > MAX_DIRECTORY_BYTES) {
    const most = `exceeds the maximum supported size (${MAX_DIRECTORY_BYTES})`;
    throw corrupt(`bitmaps_ext: bitmap directory size (${directoryBytes}) ${most}`);
  }
  if (directoryBytes === 0n) throw corrupt('Requested bitmap directory size is zero');
  return {
    count,
    directoryBytes: Number(directoryBytes),
    directoryOffset: signed(directoryOffset),
  };
}

export function encodeBitmapsExtension(extension: BitmapsExtension): Buffer {
  const data = Buffer.alloc(BITMAPS_BYTES);
  data.writeUInt32BE(extension.count, 0);
  writeU64(data, 8, extension.directoryBytes);
  writeU64(data, 16, extension.directoryOffset);
  return data;
}

/** One entry of a directory, checked for nothing but that it ends within it; `at` is where it begins. */
export interface RawEntry {
  at: number;
  lengthBytes: number;
  nameBytes: Buffer;
  extraBytes: number;
  flags: number;
  type: number;
  granularityBits: number;
  tableOffset: bigint;
  tableEntries: number;
}

/** Errors: kind corrupt, when an entry does not end within the directory, or there are more than `most`. */
export function* rawEntries(directory: Buffer, most = Infinity): Generator<RawEntry> {
  let found = 0;
  for (let at = 0; at < directory.length;) {
    if (at + ENTRY_HEADER_BYTES > directory.length) throw corrupt('Broken bitmap directory');
    if (found++ === most) throw corrupt('More bitmaps found than specified in header extension');
    const nameBytes = directory.readUInt16BE(at + 18);
    const extraBytes = directory.readUInt32BE(at + 20);
    const lengthBytes = alignUp(ENTRY_HEADER_BYTES + nameBytes + extraBytes, 8);
    // So long an entry QEMU does not find too long for the directory.
    if (lengthBytes >= 2 ** 31) throw extraData();
    if (at + lengthBytes > directory.length) throw corrupt('Broken bitmap directory');
    const nameAt = at + ENTRY_HEADER_BYTES + extraBytes;
    yield {
      at,
      lengthBytes,
      extraBytes,
      nameBytes: Buffer.from(directory.subarray(nameAt, nameAt + nameBytes)),
      flags: directory.readUInt32BE(at + 12),
      type: directory.readUInt8(at + 16),
      granularityBits: directory.readUInt8(at + 17),
      tableOffset: directory.readBigUInt64BE(at),
      tableEntries: directory.readUInt32BE(at + 8),
    };
    at += lengthBytes;
  }
}

/** Of `count` bitmaps of a disk. Errors: kind corrupt, in QEMU's words. */
export function decodeDirectory(
  directory: Buffer,
  count: number,
  { sizeBytes, clusterBytes }: { sizeBytes: number; clusterBytes: number },
): BitmapEntry[] {
  const entries: BitmapEntry[] = [];
  const names = new Set<string>();
  for (const raw of rawEntries(directory, count)) {
    if (raw.extraBytes > 0) throw extraData();
    const name = raw.nameBytes.toString('utf8');
    if (!isValid(raw, sizeBytes, clusterBytes))
      throw corrupt(`Bitmap '${name.replace(/\0.*/s, '')}' doesn't satisfy the constraints`);
    if (names.has(name)) throw corrupt(`Bitmap already exists: ${name}`);
    names.add(name);
    entries.push({
      name,
      nameBytes: raw.nameBytes,
      granularityBytes: 2 ** raw.granularityBits,
      isInUse: (raw.flags & Flag.inUse) !== 0,
      isAuto: (raw.flags & Flag.auto) !== 0,
      tableOffset: signed(raw.tableOffset),
      tableEntries: raw.tableEntries,
    });
  }
  if (entries.length < count) throw corrupt('Less bitmaps found than specified in header extension');
  return entries;
}

function extraData(): BlockError {
  return corrupt('Bitmap extra data is not supported');
}

/** An offset in a file, as the calls of the system take it. */
function signed(offset: bigint): number {
  return Number(BigInt.asIntN(64, offset));
}

/** In QEMU's words. */
export function unreadableTable(name: string, cause: unknown): BlockError {
  const what = `Could not read bitmap_table table from image for bitmap '${name}'`;
  return errnoError(errnoOf(cause), what, { cause });
}

function isValid(raw: RawEntry, sizeBytes: number, clusterBytes: number): boolean {
  const { tableOffset, tableEntries, granularityBits, nameBytes, flags, type } = raw;
  const hasTable = tableEntries > 0 && tableOffset > 0n && tableOffset % BigInt(clusterBytes) === 0n;
  if (!hasTable || tableEntries > MAX_TABLE_ENTRIES) return false;
  if (granularityBits < MIN_GRANULARITY_BITS || granularityBits > MAX_GRANULARITY_BITS) return false;
  if (nameBytes.length > MAX_BITMAP_NAME_BYTES) return false;
  if ((flags & ~KNOWN_FLAGS) !== 0 || type !== DIRTY_TRACKING) return false;
  const heldBytes = tableEntries * clusterBytes;
  if (heldBytes > MAX_SERIALISED_BYTES) return false;
  // One that is in use may be of a disk of another size.
  return (flags & Flag.inUse) !== 0 || sizeBytes <= heldBytes * 8 * 2 ** granularityBits;
}

export function encodeDirectory(entries: readonly BitmapEntry[]): Buffer {
  return Buffer.concat(entries.map(encodeEntry));
}

/** Of an entry with such a name. */
export function entryBytes(nameBytes: number): number {
  return alignUp(ENTRY_HEADER_BYTES + nameBytes, 8);
}

function encodeEntry(entry: BitmapEntry): Buffer {
  const bytes = Buffer.alloc(entryBytes(entry.nameBytes.length));
  bytes.writeBigInt64BE(BigInt(entry.tableOffset));
  bytes.writeUInt32BE(entry.tableEntries, 8);
  bytes.writeUInt32BE((entry.isInUse ? Flag.inUse : 0) | (entry.isAuto ? Flag.auto : 0), 12);
  bytes.writeUInt8(DIRTY_TRACKING, 16);
  bytes.writeUInt8(Math.log2(entry.granularityBytes), 17);
  bytes.writeUInt16BE(entry.nameBytes.length, 18);
  entry.nameBytes.copy(bytes, ENTRY_HEADER_BYTES);
  return bytes;
}

/** Entries of a bitmap table of so many granules; undefined: they would be more than an image may keep. */
export function tableEntriesFor(
  sizeBytes: number,
  granularityBytes: number,
  clusterBytes: number,
): number | undefined {
  const serialisedBytes = Math.ceil(Math.ceil(sizeBytes / granularityBytes) / 8);
  if (serialisedBytes > MAX_SERIALISED_BYTES) return undefined;
  return Math.max(1, Math.ceil(serialisedBytes / clusterBytes));
}

/** What an entry of a bitmap table says of its part: where its bytes are, or that all of them are alike. */
export type TablePart = { hostOffset: number } | 'zeroes' | 'ones';

/** Errors: invalid (EINVAL), for an entry that cannot be. */
export function decodeTableEntry(table: Buffer, index: number, clusterBytes: number): TablePart {
  const at = index * ENTRY_BYTES;
  const low = table.readUInt32BE(at + 4);
  const hostOffset = entryOffset(table, index);
  const isReserved = (table.readUInt32BE(at) & RESERVED_HIGH) !== 0 || (low & RESERVED_LOW) !== 0;
  const isOnes = (low & ALL_ONES) !== 0;
  if (isReserved || hostOffset % clusterBytes !== 0 || (isOnes && hostOffset !== 0))
    throw errnoError('EINVAL');
  if (!Number.isSafeInteger(hostOffset + clusterBytes)) throw errnoError('EINVAL');
  if (hostOffset !== 0) return { hostOffset };
  return isOnes ? 'ones' : 'zeroes';
}

/** 0: zeroes. */
export function writeTableEntry(table: Buffer, index: number, hostOffset: number): void {
  writeEntryAt(table, index * ENTRY_BYTES, hostOffset, false, 0);
}

function corrupt(message: string): BlockError {
  return new BlockError('corrupt', message);
}
