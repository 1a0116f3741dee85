import { BlockError, errnoError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { uint64 } from '../tables/read-bytes.js';

/** QEMU's docs/interop/qed_spec; all numbers are little-endian. */
export const HEADER_BYTES = 64;
export const SECTOR_BYTES = 512;
export const ENTRY_BYTES = 8;
const MAGIC = 0x00444551;
const MIN_CLUSTER_BYTES = 4096;
const MAX_CLUSTER_BYTES = 64 * MiB;
const MAX_TABLE_CLUSTERS = 16;
const MAX_NAME_BYTES = 1023;

/** Features that change how an image is to be read. */
export const Feature = { backingFile: 1, needCheck: 2, backingIsRaw: 4 } as const;
const ALL_FEATURES = 7;

const FieldAt = {
  clusterBytes: 4,
  tableClusters: 8,
  headerClusters: 12,
  features: 16,
  compatible: 24,
  autoclear: 32,
  l1Offset: 40,
  sizeBytes: 48,
  nameOffset: 56,
  nameBytes: 60,
} as const;

export interface QedHeader {
  readonly clusterBytes: number;
  readonly tableClusters: number;
  readonly headerClusters: number;
  features: number;
  compatible: bigint;
  autoclear: bigint;
  readonly l1Offset: number;
  sizeBytes: number;
  nameOffset: number;
  nameBytes: number;
}

/** Entries of one table. */
export function entriesOf({
  tableClusters,
  clusterBytes,
}: Pick<QedHeader, 'tableClusters' | 'clusterBytes'>): number {
  return (tableClusters * clusterBytes) / ENTRY_BYTES;
}

export function isQed(bytes: Buffer): boolean {
  return bytes.length >= HEADER_BYTES && bytes.readUInt32LE(0) === MAGIC;
}

/** Errors: invalid, unsupported, in QEMU's words. */
export function parseHeader(bytes: Buffer, fileBytes: number): QedHeader {
  if (!isQed(bytes)) throw new BlockError('invalid', 'Image not in QED format');
  const features = uint64(bytes, FieldAt.features);
  if (features > ALL_FEATURES) {
    const all = bytes.readBigUInt64LE(FieldAt.features);
    const unknown = all - (all % BigInt(ALL_FEATURES + 1));
    throw new BlockError('unsupported', `Unsupported QED features: ${unknown.toString(16)}`, {
      errno: 'ENOTSUP',
    });
  }
  const u32 = (at: number): number => bytes.readUInt32LE(at);
  const header: QedHeader = {
    clusterBytes: u32(FieldAt.clusterBytes),
    tableClusters: u32(FieldAt.tableClusters),
    headerClusters: u32(FieldAt.headerClusters),
    features,
    compatible: bytes.readBigUInt64LE(FieldAt.compatible),
    autoclear: bytes.readBigUInt64LE(FieldAt.autoclear),
    l1Offset: uint64(bytes, FieldAt.l1Offset),
    sizeBytes: uint64(bytes, FieldAt.sizeBytes),
    nameOffset: u32(FieldAt.nameOffset),
    nameBytes: u32(FieldAt.nameBytes),
  };
  checkSizes(header, fileBytes);
  if (hasFeature(features, Feature.backingFile)) {
    if (header.nameOffset + header.nameBytes > header.clusterBytes * header.headerClusters)
      throw errnoError('EINVAL');
    if (header.nameBytes > MAX_NAME_BYTES) throw errnoError('EINVAL');
  }
  return header;
}

function checkSizes(header: QedHeader, fileBytes: number): void {
  const { clusterBytes, tableClusters, headerClusters, l1Offset, sizeBytes } = header;
  const refuse = (what: string): BlockError =>
    new BlockError('corrupt', `QED ${what} is invalid`, { errno: 'EINVAL' });
  if (!isClusterSize(clusterBytes)) throw refuse('cluster size');
  if (!isTableSize(tableClusters)) throw refuse('table size');
  if (!isImageSize(sizeBytes, clusterBytes, tableClusters)) throw refuse('image size');
  if (headerClusters === 0 || !isTableOffset(l1Offset, header, fileBytes)) throw refuse('table offset');
}

export function hasFeature(features: number, feature: number): boolean {
  return Math.floor(features / feature) % 2 === 1;
}

export function isClusterSize(bytes: number): boolean {
  return bytes >= MIN_CLUSTER_BYTES && bytes <= MAX_CLUSTER_BYTES && Number.isInteger(Math.log2(bytes));
}

export function isTableSize(clusters: number): boolean {
  return clusters > 0 && clusters <= MAX_TABLE_CLUSTERS && Number.isInteger(Math.log2(clusters));
}

/** What two levels of tables reach. */
export function maxSizeBytes(clusterBytes: number, tableClusters: number): number {
  const entries = (tableClusters * clusterBytes) / ENTRY_BYTES;
  return entries * entries * clusterBytes;
}

export function isImageSize(bytes: number, clusterBytes: number, tableClusters: number): boolean {
  return bytes % SECTOR_BYTES === 0 && bytes <= maxSizeBytes(clusterBytes, tableClusters);
}

/** A cluster in the file, behind the header. */
export function isClusterOffset(offset: number, header: QedHeader, fileBytes: number): boolean {
  const { clusterBytes, headerClusters } = header;
  return offset % clusterBytes === 0 && offset >= headerClusters * clusterBytes && offset < fileBytes;
}

export function isTableOffset(offset: number, header: QedHeader, fileBytes: number): boolean {
  const last = offset + (header.tableClusters - 1) * header.clusterBytes;
  return isClusterOffset(offset, header, fileBytes) && isClusterOffset(last, header, fileBytes);
}

/** The first sector. */
export function encodeHeader(header: QedHeader): Buffer {
  const bytes = Buffer.alloc(SECTOR_BYTES);
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeUInt32LE(header.clusterBytes, FieldAt.clusterBytes);
  bytes.writeUInt32LE(header.tableClusters, FieldAt.tableClusters);
  bytes.writeUInt32LE(header.headerClusters, FieldAt.headerClusters);
  bytes.writeUInt32LE(header.features, FieldAt.features);
  bytes.writeBigUInt64LE(header.compatible, FieldAt.compatible);
  bytes.writeBigUInt64LE(header.autoclear, FieldAt.autoclear);
  bytes.writeBigUInt64LE(BigInt(header.l1Offset), FieldAt.l1Offset);
  bytes.writeBigUInt64LE(BigInt(header.sizeBytes), FieldAt.sizeBytes);
  bytes.writeUInt32LE(header.nameOffset, FieldAt.nameOffset);
  bytes.writeUInt32LE(header.nameBytes, FieldAt.nameBytes);
  return bytes;
}
