import { BlockError, errnoError } from '../../base/error.js';
import { uint64 } from '../tables/read-bytes.js';

/** "Parallels Expandable Image File Format" (QEMU's docs/interop/parallels); all numbers are little-endian. */
export const HEADER_BYTES = 64;
export const SECTOR_BYTES = 512;
export const IN_USE = 0x746f6e59;
const OLD_MAGIC = 'WithoutFreeSpace';
const NEW_MAGIC = 'WithouFreSpacExt';
const MAGIC_BYTES = 16;
const VERSION = 2;

export const FieldAt = {
  version: 16,
  heads: 20,
  cylinders: 24,
  clusterSectors: 28,
  clusters: 32,
  diskSectors: 36,
  inUse: 44,
  dataSector: 48,
} as const;

export interface ParallelsHeader {
  readonly clusterBytes: number;
  readonly clusters: number;
  readonly diskBytes: number;
  readonly isInUse: boolean;
  /** Where clusters may begin. */
  readonly dataOffset: number;
  /** What the table counts in. */
  readonly unitBytes: number;
}

export function isParallels(bytes: Buffer): boolean {
  if (bytes.length < HEADER_BYTES) return false;
  const magic = bytes.toString('latin1', 0, MAGIC_BYTES);
  return (magic === OLD_MAGIC || magic === NEW_MAGIC) && bytes.readUInt32LE(FieldAt.version) === VERSION;
}

/** Errors: invalid, limit. */
export function parseHeader(bytes: Buffer): ParallelsHeader {
  if (!isParallels(bytes)) throw new BlockError('invalid', 'Image not in Parallels format');
  const isNew = bytes.toString('latin1', 0, MAGIC_BYTES) === NEW_MAGIC;
  const clusterSectors = bytes.readUInt32LE(FieldAt.clusterSectors);
  if (clusterSectors === 0) throw invalid('Invalid image: Zero sectors per track');
  if (clusterSectors > (2 ** 31 - 1) / 513) throw invalid('Invalid image: Too big cluster');
  const clusters = bytes.readUInt32LE(FieldAt.clusters);
  if (clusters > (2 ** 31 - 1) / 4) throw new BlockError('limit', 'Catalog too large', { errno: 'EFBIG' });
  const clusterBytes = clusterSectors * SECTOR_BYTES;
  const tableEnd = Math.ceil((HEADER_BYTES + clusters * 4) / SECTOR_BYTES);
  const diskSectors = isNew ? uint64(bytes, FieldAt.diskSectors) : bytes.readUInt32LE(FieldAt.diskSectors);
  if (diskSectors * SECTOR_BYTES > Number.MAX_SAFE_INTEGER) throw errnoError('EFBIG');
  return {
    clusterBytes,
    clusters,
    diskBytes: diskSectors * SECTOR_BYTES,
    isInUse: bytes.readUInt32LE(FieldAt.inUse) === IN_USE,
    dataOffset: Math.max(bytes.readUInt32LE(FieldAt.dataSector), tableEnd) * SECTOR_BYTES,
    unitBytes: isNew ? clusterBytes : SECTOR_BYTES,
  };
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message, { errno: 'EFBIG' });
}

/** Of a new image, with its empty table, up to where clusters begin. */
export function encodeHeader(
  diskBytes: number,
  clusterBytes: number,
): { header: Buffer; dataOffset: number } {
  const clusters = Math.ceil(diskBytes / clusterBytes);
  const dataOffset = Math.ceil((HEADER_BYTES + clusters * 4) / clusterBytes) * clusterBytes;
  const header = Buffer.alloc(SECTOR_BYTES);
  const sectors = Math.ceil(diskBytes / SECTOR_BYTES);
  header.write(NEW_MAGIC, 0, 'latin1');
  header.writeUInt32LE(VERSION, FieldAt.version);
  header.writeUInt32LE(16, FieldAt.heads);
  header.writeUInt32LE(Math.floor(sectors / 16 / 32) % 2 ** 32, FieldAt.cylinders);
  header.writeUInt32LE(clusterBytes / SECTOR_BYTES, FieldAt.clusterSectors);
  header.writeUInt32LE(clusters, FieldAt.clusters);
  header.writeBigUInt64LE(BigInt(sectors), FieldAt.diskSectors);
  header.writeUInt32LE(dataOffset / SECTOR_BYTES, FieldAt.dataSector);
  return { header, dataOffset };
}
