import { BlockError, errnoError } from '../../base/error.js';
import { uint64 } from '../tables/read-bytes.js';
import { type Geometry, LARGEST, sectorsOf } from './geometry.js';

/** Microsoft's "Virtual Hard Disk Image Format Specification" 1.0; all numbers are big-endian. */
export const SECTOR_BYTES = 512;
export const FOOTER_BYTES = 512;
export const DYNAMIC_HEADER_BYTES = 1024;
/** What the format can say with sectors of 32 bits, 2040 GiB. */
export const MAX_SECTORS = 0xff000000;
export const COOKIE = 'conectix';
const DYNAMIC_COOKIE = 'cxsparse';
const VERSION = 0x00010000;
/** Programs whose disks are as large as the footer says, and not as their geometry. */
const BY_SIZE = ['win ', 'qem2', 'd2v ', 'tap\0', 'CTXS'];
/** 2000-01-01, from which time counts. */
const EPOCH_SECONDS = 946684800;

export const DiskType = { fixed: 2, dynamic: 3, differencing: 4 } as const;

const FieldAt = {
  features: 8,
  version: 12,
  dataOffset: 16,
  time: 24,
  creator: 28,
  creatorVersion: 32,
  creatorSystem: 36,
  originalBytes: 40,
  currentBytes: 48,
  cylinders: 56,
  heads: 58,
  sectors: 59,
  type: 60,
  checksum: 64,
  uuid: 68,
} as const;

export interface Footer {
  readonly bytes: Buffer;
  readonly dataOffset: number;
  readonly totalSectors: number;
  readonly type: number;
  readonly isSound: boolean;
}

export function isFooter(bytes: Buffer): boolean {
  return bytes.toString('latin1', 0, COOKIE.length) === COOKIE;
}

/** Errors: limit for a disk that is too large. */
export function parseFooter(bytes: Buffer): Footer {
  const geometry: Geometry = {
    cylinders: bytes.readUInt16BE(FieldAt.cylinders),
    heads: bytes.readUInt8(FieldAt.heads),
    sectors: bytes.readUInt8(FieldAt.sectors),
  };
  const creator = bytes.toString('latin1', FieldAt.creator, FieldAt.creator + 4);
  const byGeometry = sectorsOf(geometry);
  const isBySize = BY_SIZE.includes(creator) || byGeometry === sectorsOf(LARGEST);
  const bySize = Math.floor(uint64(bytes, FieldAt.currentBytes, false) / SECTOR_BYTES);
  const totalSectors = isBySize ? bySize : byGeometry;
  if (totalSectors > MAX_SECTORS) throw errnoError('EFBIG');
  return {
    bytes,
    dataOffset: uint64(bytes, FieldAt.dataOffset, false),
    totalSectors,
    type: bytes.readUInt32BE(FieldAt.type),
    isSound: checksumOf(bytes, FieldAt.checksum) === bytes.readUInt32BE(FieldAt.checksum),
  };
}

/** The complement of the sum of all bytes but its own. */
function checksumOf(bytes: Buffer, at: number): number {
  let sum = 0;
  for (const [i, byte] of bytes.entries()) if (i < at || i >= at + 4) sum += byte;
  return 2 ** 32 - 1 - (sum % 2 ** 32);
}

export interface NewFooter {
  readonly sizeBytes: number;
  readonly geometry: Geometry;
  readonly isFixed: boolean;
  /** The disk has the size and not the geometry. */
  readonly isBySize: boolean;
  readonly unixSeconds: number;
  readonly uuid: Uint8Array;
}

export function encodeFooter(image: NewFooter): Buffer {
  const { sizeBytes, geometry, isFixed } = image;
  const bytes = Buffer.alloc(FOOTER_BYTES);
  bytes.write(COOKIE, 0, 'latin1');
  bytes.writeUInt32BE(2, FieldAt.features);
  bytes.writeUInt32BE(VERSION, FieldAt.version);
  if (isFixed) bytes.fill(0xff, FieldAt.dataOffset, FieldAt.dataOffset + 8);
  else bytes.writeUInt32BE(FOOTER_BYTES, FieldAt.dataOffset + 4);
  bytes.writeUInt32BE(Math.max(0, Math.floor(image.unixSeconds) - EPOCH_SECONDS) % 2 ** 32, FieldAt.time);
  // Readers go by the creator (BY_SIZE): these two are QEMU's names for the two rules.
  bytes.write(image.isBySize ? 'qem2' : 'qemu', FieldAt.creator, 'latin1');
  bytes.writeUInt32BE(0x00050003, FieldAt.creatorVersion);
  bytes.write('Wi2k', FieldAt.creatorSystem, 'latin1');
  bytes.writeBigUInt64BE(BigInt(sizeBytes), FieldAt.originalBytes);
  bytes.writeBigUInt64BE(BigInt(sizeBytes), FieldAt.currentBytes);
  bytes.writeUInt16BE(geometry.cylinders, FieldAt.cylinders);
  bytes.writeUInt8(geometry.heads, FieldAt.heads);
  bytes.writeUInt8(geometry.sectors, FieldAt.sectors);
  bytes.writeUInt32BE(isFixed ? DiskType.fixed : DiskType.dynamic, FieldAt.type);
  bytes.set(image.uuid, FieldAt.uuid);
  bytes.writeUInt32BE(checksumOf(bytes, FieldAt.checksum), FieldAt.checksum);
  return bytes;
}

export interface DynamicHeader {
  readonly blockBytes: number;
  readonly bitmapBytes: number;
  readonly tableOffset: number;
  readonly tableEntries: number;
}

/** Errors: invalid. */
export function parseDynamicHeader(bytes: Buffer, totalSectors: number): DynamicHeader {
  if (bytes.toString('latin1', 0, 8) !== DYNAMIC_COOKIE) throw errnoError('EINVAL');
  const blockBytes = bytes.readUInt32BE(32);
  if (blockBytes < SECTOR_BYTES || !Number.isInteger(Math.log2(blockBytes)))
    throw new BlockError('invalid', `Invalid block size ${blockBytes}`);
  const tableEntries = bytes.readUInt32BE(28);
  if (tableEntries > 2 ** 31 / 4) throw new BlockError('invalid', 'Too many blocks');
  if (tableEntries * blockBytes < totalSectors * SECTOR_BYTES)
    throw new BlockError('invalid', 'Page table too small');
  const tableOffset = uint64(bytes, 16, false);
  if (tableOffset === Infinity) throw errnoError('EINVAL');
  const bitmapBytes = Math.ceil(blockBytes / (8 * SECTOR_BYTES) / SECTOR_BYTES) * SECTOR_BYTES;
  return { blockBytes, bitmapBytes, tableOffset, tableEntries };
}

export function encodeDynamicHeader({ blockBytes, tableOffset, tableEntries }: DynamicHeader): Buffer {
  const bytes = Buffer.alloc(DYNAMIC_HEADER_BYTES);
  bytes.write(DYNAMIC_COOKIE, 0, 'latin1');
  bytes.fill(0xff, 8, 16);
  bytes.writeBigUInt64BE(BigInt(tableOffset), 16);
  bytes.writeUInt32BE(VERSION, 24);
  bytes.writeUInt32BE(tableEntries, 28);
  bytes.writeUInt32BE(blockBytes, 32);
  bytes.writeUInt32BE(checksumOf(bytes, 36), 36);
  return bytes;
}
