import { crc32c } from '../../codec/index.js';
import { errnoError } from '../../base/error.js';
import { GiB, KiB, MiB } from '../../base/limits.js';
import { uint64 } from '../tables/read-bytes.js';

/** Microsoft's MS-VHDX, version 1; all numbers are little-endian. */
export const IDENTIFIER = 'vhdxfile';
export const HEADER_OFFSETS = [64 * KiB, 128 * KiB] as const;
export const HEADER_BYTES = 4 * KiB;
export const REGION_OFFSETS = [192 * KiB, 256 * KiB] as const;
export const REGION_TABLE_BYTES = 64 * KiB;
export const METADATA_TABLE_BYTES = 64 * KiB;
export const SECTION_BYTES = MiB;
/** What is written through the log. */
export const LOG_SECTOR_BYTES = 4 * KiB;
export const MAX_DISK_BYTES = 64 * 1024 * GiB;
/** Longer logs are not read: QEMU and Hyper-V make some of 1 MiB. */
export const MAX_LOG_BYTES = 256 * MiB;
export const GUID_BYTES = 16;

export const NO_GUID = Buffer.alloc(GUID_BYTES);

/** A GUID as it is on disk, of its text. */
function guid(text: string): string {
  const [a = '', b = '', c = '', d = '', e = ''] = text.split('-');
  const swapped = [a, b, c].map((part) => Buffer.from(part, 'hex').reverse().toString('hex'));
  return [...swapped, d, e].join('').toLowerCase();
}

export const Region = {
  table: guid('2DC27766-F623-4200-9D64-115E9BFD4A08'),
  metadata: guid('8B7CA206-4790-4B9A-B8FE-575F050F886E'),
} as const;

export const Item = {
  fileParameters: guid('CAA16737-FA36-4D43-B3B6-33F0AA44E76B'),
  diskSize: guid('2FA54224-CD1B-4876-B211-5DBED83BF4B8'),
  page83: guid('BECA12AB-B2E6-4523-93EF-C309E000C746'),
  logicalSector: guid('8141BF1D-A96F-4709-BA47-F233A8FAAB5F'),
  physicalSector: guid('CDA348C7-445D-4471-9CC9-E9885251C556'),
  parentLocator: guid('A8D35F2D-B30B-454D-ABF7-D3D84834AB0C'),
} as const;

/** Of a checksummed structure: the field's own bytes count as zeroes. */
export function checksumOf(bytes: Buffer): number {
  const copy = Buffer.from(bytes);
  copy.writeUInt32LE(0, 4);
  return crc32c(copy);
}

function isSound(bytes: Buffer, signature: string): boolean {
  return bytes.toString('latin1', 0, 4) === signature && bytes.readUInt32LE(4) === checksumOf(bytes);
}

export interface VhdxHeader {
  readonly sequence: bigint;
  readonly fileGuid: Buffer;
  readonly dataGuid: Buffer;
  /** None: the log is empty. */
  readonly logGuid: Buffer;
  readonly logBytes: number;
  readonly logOffset: number;
}

/** Undefined where it is damaged. */
export function parseHeader(bytes: Buffer): VhdxHeader | undefined {
  if (!isSound(bytes, 'head') || bytes.readUInt16LE(66) !== 1) return undefined;
  return {
    sequence: bytes.readBigUInt64LE(8),
    fileGuid: bytes.subarray(16, 32),
    dataGuid: bytes.subarray(32, 48),
    logGuid: bytes.subarray(48, 64),
    logBytes: bytes.readUInt32LE(68),
    logOffset: uint64(bytes, 72),
  };
}

export function encodeHeader(header: VhdxHeader): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.write('head', 0, 'latin1');
  bytes.writeBigUInt64LE(BigInt.asUintN(64, header.sequence), 8);
  header.fileGuid.copy(bytes, 16);
  header.dataGuid.copy(bytes, 32);
  header.logGuid.copy(bytes, 48);
  bytes.writeUInt16LE(0, 64);
  bytes.writeUInt16LE(1, 66);
  bytes.writeUInt32LE(header.logBytes, 68);
  bytes.writeBigUInt64LE(BigInt(header.logOffset), 72);
  bytes.writeUInt32LE(checksumOf(bytes), 4);
  return bytes;
}

export interface Extent {
  readonly offset: number;
  readonly lengthBytes: number;
}

export interface Regions {
  readonly table: Extent;
  readonly metadata: Extent;
}

/** Errors: invalid; unsupported where a region is unknown and required. */
export function parseRegions(bytes: Buffer): Regions {
  if (!isSound(bytes, 'regi')) throw errnoError('EINVAL');
  const count = bytes.readUInt32LE(8);
  if (count > 2047) throw errnoError('EINVAL');
  const found = new Map<string, Extent>();
  for (let at = 16; at < 16 + count * 32; at += 32) {
    const id = bytes.toString('hex', at, at + GUID_BYTES);
    const offset = uint64(bytes, at + 16);
    const lengthBytes = bytes.readUInt32LE(at + 24);
    const isRequired = bytes.readUInt32LE(at + 28) % 2 === 1;
    const isKnown = id === Region.table || id === Region.metadata;
    if (!isKnown && isRequired) throw errnoError('ENOTSUP');
    if (
      found.has(id) ||
      offset < SECTION_BYTES ||
      offset % SECTION_BYTES !== 0 ||
      !Number.isSafeInteger(offset + lengthBytes)
    )
      throw errnoError('EINVAL');
    found.set(id, { offset, lengthBytes });
  }
  const table = found.get(Region.table);
  const metadata = found.get(Region.metadata);
  if (!table || !metadata || table.lengthBytes === 0) throw errnoError('EINVAL');
  return { table, metadata };
}

export function encodeRegions(regions: Regions): Buffer {
  const bytes = Buffer.alloc(REGION_TABLE_BYTES);
  bytes.write('regi', 0, 'latin1');
  bytes.writeUInt32LE(2, 8);
  for (const [i, key] of (['table', 'metadata'] as const).entries()) {
    const at = 16 + i * 32;
    const { offset, lengthBytes } = regions[key];
    bytes.write(Region[key], at, 'hex');
    bytes.writeBigUInt64LE(BigInt(offset), at + 16);
    bytes.writeUInt32LE(lengthBytes, at + 24);
    bytes.writeUInt32LE(1, at + 28);
  }
  bytes.writeUInt32LE(checksumOf(bytes), 4);
  return bytes;
}
