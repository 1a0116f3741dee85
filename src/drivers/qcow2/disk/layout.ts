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
  refcountTable: { high: 0, low: 0x000001ff },
} as const;

export function hasReservedBits(
  table: Buffer,
  index: number,
  reserved: { high: number; low: number },
): boolean {
  const at = index * ENTRY_BYTES;
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

/** Sets or clears bit 63 and leaves the rest of the entry as it is. */
export function writeCopied(table: Buffer, index: number, copied: boolean): void {
  const at = index * ENTRY_BYTES;
  const high = table.readUInt32BE(at);
  table.writeUInt32BE((copied ? high | COPIED_HIGH : high & ~COPIED_HIGH) >>> 0, at);
}

export interface CompressedRange {
  hostOffset: number;
  lengthBytes: number;
}

/** Where the compressed data of an L2 entry lies (qcow2 specification, "Compressed Clusters Descriptor"). */
export function compressedRange(table: Buffer, index: number, clusterBits: number): CompressedRange {
  const entry = table.readBigUInt64BE(index * ENTRY_BYTES) & 0x3fffffffffffffffn;
  const offsetBits = BigInt(62 - (clusterBits - 8));
  const hostOffset = Number(entry & ((1n << offsetBits) - 1n) & 0xffffffffffffffn);
  const sectors = Number(entry >> offsetBits) + 1;
  return { hostOffset, lengthBytes: sectors * SECTOR_BYTES - (hostOffset % SECTOR_BYTES) };
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
