import { BlockError, errnoError } from '../../base/error.js';
import { uint64 } from '../tables/read-bytes.js';

/** Of sparse extents: "Virtual Disk Format 1.1" (KDMV), and the older one of ESX (COWD). All little-endian. */
export const SECTOR_BYTES = 512;
export const HEADER_BYTES = 512;
export const MAGIC = 'KDMV';
export const ESX_MAGIC = 'COWD';
export const GRAIN_SECTORS = 128;
export const TABLE_ENTRIES = 512;
/** The directory is at the end of the file: a copy of the header there says where. */
const DIRECTORY_AT_END = 2 ** 64 - 1;
const MAX_GRAIN_SECTORS = 0x200000;
/** 64 MiB: all of a grain is in memory while one sector of it is read. */
const MAX_COMPRESSED_GRAIN_SECTORS = 0x20000;
/** QEMU's. */
const MAX_DIRECTORY_BYTES = 512 * 2 ** 20;

const HeaderFlag = {
  newLines: 1,
  redundant: 2,
  zeroGrain: 4,
  compressed: 0x10000,
  markers: 0x20000,
} as const;

export interface SparseHeader {
  readonly version: number;
  readonly sectors: number;
  readonly grainSectors: number;
  readonly descriptorSector: number;
  readonly descriptorSectors: number;
  readonly tableEntries: number;
  readonly directorySector: number;
  /** Copies of directory and tables; undefined: none. */
  readonly redundantSector: number | undefined;
  readonly grainSector: number;
  readonly hasZeroGrains: boolean;
  readonly isCompressed: boolean;
  readonly hasMarkers: boolean;
  /** Its directory is at the end of the file, before a footer that says where. */
  readonly hasFooter: boolean;
}

export function hasMagic(bytes: Buffer, magic: string): boolean {
  return bytes.toString('latin1', 0, 4) === magic;
}

/** Errors: unsupported, invalid, limit, in QEMU's words. */
export function parseSparseHeader(bytes: Buffer): SparseHeader {
  const u32 = (at: number): number => bytes.readUInt32LE(at);
  const version = u32(4);
  const flags = u32(8);
  const has = (flag: number): boolean => Math.floor(flags / flag) % 2 === 1;
  if (version > 3)
    throw new BlockError('unsupported', `Unsupported VMDK version ${version}`, { errno: 'ENOTSUP' });
  const header: SparseHeader = {
    version,
    sectors: uint64(bytes, 12),
    grainSectors: uint64(bytes, 20),
    descriptorSector: uint64(bytes, 28),
    descriptorSectors: uint64(bytes, 36),
    tableEntries: u32(44),
    directorySector: uint64(bytes, 56),
    redundantSector: has(HeaderFlag.redundant) ? uint64(bytes, 48) : undefined,
    grainSector: uint64(bytes, 64),
    hasZeroGrains: has(HeaderFlag.zeroGrain),
    isCompressed: bytes.readUInt16LE(77) === 1,
    hasMarkers: has(HeaderFlag.markers),
    hasFooter: false,
  };
  if (header.isCompressed && header.grainSectors > MAX_COMPRESSED_GRAIN_SECTORS)
    throw new BlockError('limit', 'Invalid granularity, image may be corrupt', { errno: 'EFBIG' });
  if (header.tableEntries > TABLE_ENTRIES)
    throw new BlockError('limit', 'L2 table size too big', { errno: 'EINVAL' });
  checkShape(header);
  return header;
}

export function isDirectoryAtEnd(bytes: Buffer): boolean {
  return (
    bytes.readBigUInt64LE(56) === BigInt(DIRECTORY_AT_END) || bytes.readBigUInt64LE(56) === 2n ** 64n - 1n
  );
}

/** ESX's: no descriptor, tables of 4096 entries, no copies. */
export function parseEsxHeader(bytes: Buffer): SparseHeader {
  const u32 = (at: number): number => bytes.readUInt32LE(at);
  const header: SparseHeader = {
    version: u32(4),
    sectors: u32(12),
    grainSectors: u32(16),
    descriptorSector: 0,
    descriptorSectors: 0,
    tableEntries: 4096,
    directorySector: u32(20),
    redundantSector: undefined,
    grainSector: u32(28),
    hasZeroGrains: false,
    isCompressed: false,
    hasMarkers: false,
    hasFooter: false,
  };
  checkShape(header);
  return header;
}

function checkShape({ sectors, grainSectors, tableEntries, ...header }: SparseHeader): void {
  if (grainSectors > MAX_GRAIN_SECTORS)
    throw new BlockError('limit', 'Invalid granularity, image may be corrupt', { errno: 'EFBIG' });
  if (grainSectors === 0 || tableEntries === 0) throw errnoError('EINVAL');
  if (!Number.isSafeInteger(sectors * SECTOR_BYTES)) throw errnoError('EFBIG');
  if (Math.ceil(sectors / (grainSectors * tableEntries)) * 4 > MAX_DIRECTORY_BYTES)
    throw new BlockError('limit', 'L1 size too big', { errno: 'EFBIG' });
  const places = [
    header.directorySector,
    header.redundantSector ?? 0,
    header.grainSector,
    header.descriptorSector,
  ];
  if (places.some((sector) => sector > 2 ** 43)) throw errnoError('EINVAL');
}

export interface NewSparse {
  readonly sizeBytes: number;
  readonly hasZeroGrains: boolean;
  readonly isCompressed: boolean;
}

/** Header, directories and tables of a new extent, empty. The tables' places are all given from the beginning. */
export function encodeSparse({ sizeBytes, hasZeroGrains, isCompressed }: NewSparse): {
  header: Buffer;
  directories: Array<{ offset: number; bytes: Buffer }>;
  descriptorOffset: number;
  descriptorBytes: number;
  grainOffset: number;
} {
  const sectors = Math.ceil(sizeBytes / SECTOR_BYTES);
  const tableSectors = (TABLE_ENTRIES * 4) / SECTOR_BYTES;
  const tables = Math.ceil(Math.ceil(sectors / GRAIN_SECTORS) / TABLE_ENTRIES);
  const directorySectors = Math.ceil((tables * 4) / SECTOR_BYTES);
  const copySectors = directorySectors + tables * tableSectors;
  const descriptorSector = 1;
  const descriptorSectors = 20;
  const redundantSector = descriptorSector + descriptorSectors;
  const directorySector = redundantSector + copySectors;
  const grainSector = Math.ceil((directorySector + copySectors) / GRAIN_SECTORS) * GRAIN_SECTORS;
  const header = Buffer.alloc(HEADER_BYTES);
  const u64 = (value: number, at: number): void => void header.writeBigUInt64LE(BigInt(value), at);
  const flags =
    HeaderFlag.newLines +
    HeaderFlag.redundant +
    (hasZeroGrains ? HeaderFlag.zeroGrain : 0) +
    (isCompressed ? HeaderFlag.compressed + HeaderFlag.markers : 0);
  header.write(MAGIC, 0, 'latin1');
  header.writeUInt32LE(isCompressed ? 3 : hasZeroGrains ? 2 : 1, 4);
  header.writeUInt32LE(flags, 8);
  u64(sectors, 12);
  u64(GRAIN_SECTORS, 20);
  u64(descriptorSector, 28);
  u64(descriptorSectors, 36);
  header.writeUInt32LE(TABLE_ENTRIES, 44);
  u64(redundantSector, 48);
  u64(directorySector, 56);
  u64(grainSector, 64);
  // A transfer as text would change them.
  header.write('\n \r\n', 73, 'latin1');
  header.writeUInt16LE(isCompressed ? 1 : 0, 77);
  const directories = [redundantSector, directorySector].map((sector) => {
    const bytes = Buffer.alloc(directorySectors * SECTOR_BYTES);
    for (let i = 0; i < tables; i++) bytes.writeUInt32LE(sector + directorySectors + i * tableSectors, i * 4);
    return { offset: sector * SECTOR_BYTES, bytes };
  });
  return {
    header,
    directories,
    descriptorOffset: descriptorSector * SECTOR_BYTES,
    descriptorBytes: descriptorSectors * SECTOR_BYTES,
    grainOffset: grainSector * SECTOR_BYTES,
  };
}
