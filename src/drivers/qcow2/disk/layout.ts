import { alignUp } from '../../../base/align.js';
import { assert } from '../../../base/assert.js';
import { BlockError } from '../../../base/error.js';

/** "QFI\xfb". */
export const MAGIC = 0x514649fb;
/** Unit in which a disk writes atomically: what must change together lies in one. */
export const SECTOR_BYTES = 512;
/** An entry of the L1 and refcount tables, and of L2 tables without subclusters (see L2Layout). */
export const ENTRY_BYTES = 8;
const TWO_32 = 2 ** 32;

/** Bits of incompatible_features (qcow2 specification, "Header"). */
export const Incompatible = {
  dirty: 1n,
  corrupt: 2n,
  externalDataFile: 4n,
  compressionType: 8n,
  extendedL2: 16n,
} as const;

export const COMPATIBLE_LAZY_REFCOUNTS = 1n;
export const AUTOCLEAR_BITMAPS = 1n;
/** What an external data file holds is what the disk holds. */
export const AUTOCLEAR_RAW_DATA = 2n;
/** Ours: nobody who does not know of durable bitmaps has opened the image for writing since they were last right. */
export const AUTOCLEAR_DURABLE_BITMAPS = 1n << 40n;

/** Bits of the upper half of an L1 or L2 entry. */
export const COPIED_HIGH = 0x80000000;
const COMPRESSED_HIGH = 0x40000000;
/** Bits 32-55 of an offset. */
const OFFSET_HIGH = 0x00ffffff;
/** Bits 9-31 of an offset. */
const OFFSET_LOW = 0xfffffe00;
/** Bit 0 of an L2 entry: reads as zeroes. */
export const ZERO_LOW = 1;

/** What an L2 entry says of its cluster. */
export const ClusterKind = {
  unallocated: 0,
  /** Reads as zeroes, no host cluster. */
  zeroPlain: 1,
  /** Reads as zeroes, and keeps a host cluster for later. */
  zeroAllocated: 2,
  data: 3,
  compressed: 4,
} as const;

/** Offset (bits 9-55) in an entry of a table of ENTRY_BYTES; 0 when there is none. May be 2^53 or more in a corrupt image. */
export function entryOffset(table: Buffer, index: number): number {
  return entryOffsetAt(table, index * ENTRY_BYTES);
}

/** The same of the entry that begins at `at`. */
export function entryOffsetAt(table: Buffer, at: number): number {
  return (table.readUInt32BE(at) & OFFSET_HIGH) * TWO_32 + ((table.readUInt32BE(at + 4) & OFFSET_LOW) >>> 0);
}

/** Bit 63: the refcount of what the entry points at is exactly one. */
export function entryIsCopied(table: Buffer, index: number): boolean {
  return entryIsCopiedAt(table, index * ENTRY_BYTES);
}

export function entryIsCopiedAt(table: Buffer, at: number): boolean {
  return (table.readUInt32BE(at) & COPIED_HIGH) !== 0;
}

/** One of ClusterKind. */
export function clusterKind(table: Buffer, index: number): number {
  return clusterKindAt(table, index * ENTRY_BYTES);
}

export function clusterKindAt(table: Buffer, at: number): number {
  const high = table.readUInt32BE(at);
  if ((high & COMPRESSED_HIGH) !== 0) return ClusterKind.compressed;
  const low = table.readUInt32BE(at + 4);
  const hasOffset = ((high & OFFSET_HIGH) | (low & OFFSET_LOW)) !== 0;
  if ((low & ZERO_LOW) !== 0) return hasOffset ? ClusterKind.zeroAllocated : ClusterKind.zeroPlain;
  // Offset 0 with bit 63 would be data at offset 0 of an external data file; here, as in QEMU, it is nothing.
  return hasOffset ? ClusterKind.data : ClusterKind.unallocated;
}

/** Bits of an entry that the specification keeps for later, in its two halves. */
export const Reserved = {
  l1: { high: 0x7f000000, low: 0x000001ff },
  /** Of an entry that is not compressed. */
  l2: { high: 0x3f000000, low: 0x000001fe },
  /** Where parts of clusters are zeroes each for itself. */
  extendedL2: { high: 0x3f000000, low: 0x000001ff },
  refcountTable: { high: 0, low: 0x000001ff },
} as const;

export function hasReservedBits(
  table: Buffer,
  index: number,
  reserved: { high: number; low: number },
): boolean {
  return hasReservedBitsAt(table, index * ENTRY_BYTES, reserved);
}

export function hasReservedBitsAt(
  table: Buffer,
  at: number,
  reserved: { high: number; low: number },
): boolean {
  return (table.readUInt32BE(at) & reserved.high) !== 0 || (table.readUInt32BE(at + 4) & reserved.low) !== 0;
}

/** Writes an entry that points at `offset` (0: nothing); `low` is or-ed into the lower half. */
export function writeEntry(table: Buffer, index: number, offset: number, copied: boolean): void {
  writeEntryAt(table, index * ENTRY_BYTES, offset, copied, 0);
}

export function writeEntryAt(table: Buffer, at: number, offset: number, copied: boolean, low: number): void {
  table.writeUInt32BE((Math.floor(offset / TWO_32) | (copied ? COPIED_HIGH : 0)) >>> 0, at);
  table.writeUInt32BE(((offset % TWO_32) | low) >>> 0, at + 4);
}

/** The entry points at `offset`, and the rest of it is as it was. */
export function writeOffset(table: Buffer, at: number, offset: number): void {
  const high = table.readUInt32BE(at) & ~OFFSET_HIGH;
  const low = table.readUInt32BE(at + 4) & ~OFFSET_LOW;
  table.writeUInt32BE((high | Math.floor(offset / TWO_32)) >>> 0, at);
  table.writeUInt32BE((low | (offset % TWO_32)) >>> 0, at + 4);
}

/** Sets or clears bit 63 and leaves the rest of the entry as it is. */
export function writeCopied(table: Buffer, index: number, copied: boolean): void {
  writeCopiedAt(table, index * ENTRY_BYTES, copied);
}

export function writeCopiedAt(table: Buffer, at: number, copied: boolean): void {
  const high = table.readUInt32BE(at);
  table.writeUInt32BE((copied ? high | COPIED_HIGH : high & ~COPIED_HIGH) >>> 0, at);
}

export interface CompressedRange {
  hostOffset: number;
  lengthBytes: number;
}

/** The same of the host clusters that have a part of it: each counts one reference for it. */
export function hostClustersOf(
  { hostOffset, lengthBytes }: CompressedRange,
  clusterBytes: number,
): CompressedRange {
  const start = hostOffset - (hostOffset % clusterBytes);
  return { hostOffset: start, lengthBytes: alignUp(hostOffset + lengthBytes - start, clusterBytes) };
}

/**
 * Where the compressed data of the L2 entry at `at` lies (qcow2 specification, "Compressed Clusters Descriptor"). May be
 * 2^53 or more in a corrupt image.
 */
export function compressedRangeAt(table: Buffer, at: number, clusterBits: number): CompressedRange {
  const high = table.readUInt32BE(at);
  // The descriptor is 62 bits long; the offset's low 32 are the entry's.
  const highBits = 62 - (clusterBits - 8) - 32;
  const offsetHigh = high & (2 ** highBits - 1) & OFFSET_HIGH;
  const sectors = ((high & 0x3fffffff) >>> highBits) + 1;
  const low = table.readUInt32BE(at + 4);
  // Of a broken entry the offset may be more than a number holds.
  return {
    hostOffset: offsetHigh * TWO_32 + low,
    lengthBytes: sectors * SECTOR_BYTES - (low % SECTOR_BYTES),
  };
}

/** Writes the L2 entry of compressed data that lies there. */
export function writeCompressedAt(
  table: Buffer,
  at: number,
  { hostOffset, lengthBytes }: CompressedRange,
  clusterBits: number,
): void {
  const highBits = 62 - (clusterBits - 8) - 32;
  const sectors =
    Math.floor((hostOffset + lengthBytes - 1) / SECTOR_BYTES) - Math.floor(hostOffset / SECTOR_BYTES);
  const high = Math.floor(hostOffset / TWO_32);
  assert(high < 2 ** highBits, 'compressed data lies within reach of its entry');
  table.writeUInt32BE((COMPRESSED_HIGH + sectors * 2 ** highBits + high) >>> 0, at);
  table.writeUInt32BE(hostOffset % TWO_32, at + 4);
}

/** The offset of the same as its bits are, in hexadecimal: of a broken entry it may be more than any file has. */
export function compressedOffsetText(table: Buffer, at: number, clusterBits: number): string {
  const entry = table.readBigUInt64BE(at);
  return BigInt.asUintN(62 - (clusterBits - 8), entry).toString(16);
}

/** A 64-bit field. Errors: kind corrupt at 2^53 and above, which no file offset reaches. */
export function readU64(buffer: Buffer, at: number, what: string): number {
  const value = buffer.readUInt32BE(at) * TWO_32 + buffer.readUInt32BE(at + 4);
  if (!Number.isSafeInteger(value)) throw new BlockError('corrupt', `${what} is too large`);
  return value;
}

export function writeU64(buffer: Buffer, at: number, value: number): void {
  buffer.writeUInt32BE(Math.floor(value / TWO_32), at);
  buffer.writeUInt32BE((value % TWO_32) >>> 0, at + 4);
}
