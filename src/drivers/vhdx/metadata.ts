import { errnoError } from '../../base/error.js';
import { KiB, MiB } from '../../base/limits.js';
import type { ChildIo } from '../../block/driver.js';
import { readBytes, uint64 } from '../tables/read-bytes.js';
import { type Extent, GUID_BYTES, Item, MAX_DISK_BYTES, METADATA_TABLE_BYTES } from './layout.js';

const SIGNATURE = 'metadata';
const MAX_ITEMS = 2047;
const MAX_ITEM_BYTES = MiB;
const ENTRY_BYTES = 32;
/** Where items begin, in the metadata region. */
const ITEMS_OFFSET = 64 * KiB;

export interface DiskParameters {
  readonly blockBytes: number;
  readonly diskBytes: number;
  readonly logicalSectorBytes: number;
}

const MIN_BLOCK_BYTES = MiB;
export const MAX_BLOCK_BYTES = 256 * MiB;
const HAS_PARENT = 2;

/** Errors: invalid; unsupported for a disk with a parent. */
export async function readParameters(file: ChildIo, region: Extent): Promise<DiskParameters> {
  const items = await readItems(file, region);
  const item = (id: string): Buffer => {
    const bytes = items.get(id);
    if (!bytes) throw errnoError('EINVAL');
    return bytes;
  };
  const parameters = item(Item.fileParameters);
  const blockBytes = parameters.readUInt32LE(0);
  if (Math.floor(parameters.readUInt32LE(4) / HAS_PARENT) % 2 === 1) throw errnoError('ENOTSUP');
  const diskBytes = uint64(item(Item.diskSize), 0);
  const logicalSectorBytes = item(Item.logicalSector).readUInt32LE(0);
  item(Item.physicalSector);
  item(Item.page83);
  const isSound =
    isBlockSize(blockBytes) &&
    diskBytes <= MAX_DISK_BYTES &&
    (logicalSectorBytes === 512 || logicalSectorBytes === 4096) &&
    diskBytes % logicalSectorBytes === 0;
  if (!isSound) throw errnoError('EINVAL');
  return { blockBytes, diskBytes, logicalSectorBytes };
}

export function isBlockSize(bytes: number): boolean {
  return bytes >= MIN_BLOCK_BYTES && bytes <= MAX_BLOCK_BYTES && Number.isInteger(Math.log2(bytes));
}

/** The items that we know, by their GUIDs; each at least as long as its fields. */
async function readItems(file: ChildIo, { offset, lengthBytes }: Extent): Promise<Map<string, Buffer>> {
  const table = await readBytes(file, offset, METADATA_TABLE_BYTES);
  if (table.toString('latin1', 0, 8) !== SIGNATURE) throw errnoError('EINVAL');
  const count = table.readUInt16LE(10);
  if (count > MAX_ITEMS || lengthBytes < METADATA_TABLE_BYTES) throw errnoError('EINVAL');
  const known = new Set<string>(Object.values(Item));
  const items = new Map<string, Buffer>();
  for (let at = ENTRY_BYTES; at < ENTRY_BYTES * (1 + count); at += ENTRY_BYTES) {
    const id = table.toString('hex', at, at + GUID_BYTES);
    const itemOffset = table.readUInt32LE(at + 16);
    const itemBytes = table.readUInt32LE(at + 20);
    const isRequired = Math.floor(table.readUInt32LE(at + 24) / 4) % 2 === 1;
    if (!known.has(id)) {
      if (isRequired) throw errnoError('ENOTSUP');
      continue;
    }
    if (items.has(id) || itemBytes > MAX_ITEM_BYTES || itemOffset < ITEMS_OFFSET) throw errnoError('EINVAL');
    items.set(id, await readBytes(file, offset + itemOffset, Math.max(itemBytes, GUID_BYTES)));
  }
  return items;
}

/** The metadata region of a new image, as far as it is used. */
export function encodeMetadata(disk: DiskParameters, isFixed: boolean, page83: Buffer): Buffer {
  const bytes = Buffer.alloc(METADATA_TABLE_BYTES + 512);
  const parameters = Buffer.alloc(8);
  parameters.writeUInt32LE(disk.blockBytes, 0);
  parameters.writeUInt32LE(isFixed ? 1 : 0, 4);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(disk.diskBytes));
  const sector = (length: number): Buffer => {
    const field = Buffer.alloc(4);
    field.writeUInt32LE(length);
    return field;
  };
  // Required; all but the first describe the disk and not the file.
  const items: Array<[string, Buffer, number]> = [
    [Item.fileParameters, parameters, 4],
    [Item.diskSize, size, 6],
    [Item.page83, page83, 6],
    [Item.logicalSector, sector(disk.logicalSectorBytes), 6],
    [Item.physicalSector, sector(512), 6],
  ];
  bytes.write(SIGNATURE, 0, 'latin1');
  bytes.writeUInt16LE(items.length, 10);
  let offset = ITEMS_OFFSET;
  for (const [i, [id, value, flags]] of items.entries()) {
    const at = ENTRY_BYTES * (i + 1);
    bytes.write(id, at, 'hex');
    bytes.writeUInt32LE(offset, at + 16);
    bytes.writeUInt32LE(value.length, at + 20);
    bytes.writeUInt32LE(flags, at + 24);
    value.copy(bytes, offset);
    offset += value.length;
  }
  return bytes;
}
