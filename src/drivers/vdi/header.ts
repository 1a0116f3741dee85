import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { uint64 } from '../tables/read-bytes.js';

/** VirtualBox's "VDI 1.1" header; all numbers are little-endian. */
export const HEADER_BYTES = 512;
export const SIGNATURE = 0xbeda107f;
export const BLOCK_BYTES = MiB;
export const SECTOR_BYTES = 512;
/** Entries of a table that QEMU still loads. */
export const MAX_BLOCKS = (2 ** 31 - SECTOR_BYTES) / 4;
export const MAX_DISK_BYTES = MAX_BLOCKS * BLOCK_BYTES;

const VERSION = 0x00010001;
const MAX_VERSION_PART = 0xffff;

export const FieldAt = {
  text: 0,
  signature: 0x40,
  version: 0x44,
  headerBytes: 0x48,
  imageType: 0x4c,
  mapOffset: 0x154,
  dataOffset: 0x158,
  sectorBytes: 0x168,
  diskBytes: 0x170,
  blockBytes: 0x178,
  blocks: 0x180,
  allocatedBlocks: 0x184,
  imageUuid: 0x188,
  snapshotUuid: 0x198,
  linkUuid: 0x1a8,
  parentUuid: 0x1b8,
} as const;

export const ImageType = { dynamic: 1, static: 2 } as const;

export interface VdiHeader {
  readonly isStatic: boolean;
  readonly mapOffset: number;
  readonly dataOffset: number;
  readonly diskBytes: number;
  readonly blocks: number;
  readonly allocatedBlocks: number;
}

/** Errors: invalid where it is no VDI image; unsupported. */
export function parseHeader(bytes: Buffer): VdiHeader {
  const u32 = (at: number): number => bytes.readUInt32LE(at);
  // First of all, as in QEMU.
  const diskBytes = diskBytesOf(bytes);
  const signature = u32(FieldAt.signature);
  if (signature !== SIGNATURE)
    throw new BlockError('invalid', `Image not in VDI format (bad signature ${hex8(signature)})`);
  const version = u32(FieldAt.version);
  if (version !== VERSION)
    throw not(`version ${Math.floor(version / 65536)}.${version % (MAX_VERSION_PART + 1)}`);
  const header: VdiHeader = {
    isStatic: u32(FieldAt.imageType) === ImageType.static,
    mapOffset: u32(FieldAt.mapOffset),
    dataOffset: u32(FieldAt.dataOffset),
    diskBytes,
    blocks: u32(FieldAt.blocks),
    allocatedBlocks: u32(FieldAt.allocatedBlocks),
  };
  const { mapOffset, dataOffset, blocks } = header;
  if (mapOffset % SECTOR_BYTES !== 0) throw not(`unaligned block map offset 0x${mapOffset.toString(16)}`);
  if (dataOffset % SECTOR_BYTES !== 0) throw not(`unaligned data offset 0x${dataOffset.toString(16)}`);
  if (u32(FieldAt.sectorBytes) !== SECTOR_BYTES)
    throw not(`sector size ${u32(FieldAt.sectorBytes)} is not ${SECTOR_BYTES}`);
  if (u32(FieldAt.blockBytes) !== BLOCK_BYTES)
    throw not(`block size ${u32(FieldAt.blockBytes)} is not ${BLOCK_BYTES}`);
  if (diskBytes > blocks * BLOCK_BYTES)
    throw not(`disk size ${diskBytes}, image bitmap has room for ${blocks * BLOCK_BYTES}`);
  if (hasUuid(bytes, FieldAt.linkUuid)) throw not('non-NULL link UUID');
  if (hasUuid(bytes, FieldAt.parentUuid)) throw not('non-NULL parent UUID');
  if (blocks > MAX_BLOCKS) throw not(`too many blocks ${blocks}, max is ${MAX_BLOCKS}`);
  if (mapOffset < HEADER_BYTES) throw not('block map over the header');
  return header;
}

function diskBytesOf(bytes: Buffer): number {
  const diskBytes = alignUp(uint64(bytes, FieldAt.diskBytes), SECTOR_BYTES);
  if (diskBytes <= MAX_DISK_BYTES) return diskBytes;
  const size = `0x${bytes.readBigUInt64LE(FieldAt.diskBytes).toString(16)}`;
  const most = `0x${MAX_DISK_BYTES.toString(16)}`;
  throw new BlockError(
    'unsupported',
    `Unsupported VDI image size (size is ${size}, max supported is ${most})`,
  );
}

function not(what: string): BlockError {
  return new BlockError('unsupported', `unsupported VDI image (${what})`, { errno: 'ENOTSUP' });
}

export function hex8(value: number): string {
  return value.toString(16).padStart(8, '0');
}

function hasUuid(bytes: Buffer, at: number): boolean {
  return bytes.subarray(at, at + 16).some((byte) => byte !== 0);
}

/** Of a new image. `uuid`: a random one, of 16 bytes, each time. */
export function encodeHeader(diskBytes: number, isStatic: boolean, uuid: () => Uint8Array): Buffer {
  const blocks = Math.ceil(diskBytes / BLOCK_BYTES);
  const bytes = Buffer.alloc(HEADER_BYTES);
  const set = (at: number, value: number): void => void bytes.writeUInt32LE(value, at);
  bytes.write('<<< livedisk Virtual Disk Image >>>\n', FieldAt.text, 'latin1');
  set(FieldAt.signature, SIGNATURE);
  set(FieldAt.version, VERSION);
  set(FieldAt.headerBytes, 0x180);
  set(FieldAt.imageType, isStatic ? ImageType.static : ImageType.dynamic);
  set(FieldAt.mapOffset, HEADER_BYTES);
  set(FieldAt.dataOffset, HEADER_BYTES + alignUp(blocks * 4, SECTOR_BYTES));
  set(FieldAt.sectorBytes, SECTOR_BYTES);
  bytes.writeBigUInt64LE(BigInt(diskBytes), FieldAt.diskBytes);
  set(FieldAt.blockBytes, BLOCK_BYTES);
  set(FieldAt.blocks, blocks);
  set(FieldAt.allocatedBlocks, isStatic ? blocks : 0);
  bytes.set(uuid(), FieldAt.imageUuid);
  bytes.set(uuid(), FieldAt.snapshotUuid);
  return bytes;
}
