import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { GiB, KiB, MiB } from '../../base/limits.js';
import type { ChildIo, DriverDescription, NewImage } from '../../block/driver.js';
import type { Host } from '../../host/host.js';
import { VHDX_OPTIONS } from '../../schema/blockdev-options.js';
import { VHDX_CREATE } from '../../schema/create-options.js';
import { FormatNode } from '../tables/format-node.js';
import { randomUuid } from '../tables/new-image.js';
import { loadVhdx } from './image.js';
import {
  encodeHeader,
  encodeRegions,
  HEADER_OFFSETS,
  IDENTIFIER,
  MAX_DISK_BYTES,
  NO_GUID,
  REGION_OFFSETS,
  SECTION_BYTES,
} from './layout.js';
import { encodeMetadata, isBlockSize, MAX_BLOCK_BYTES } from './metadata.js';
import { BlockState, chunkRatio, ENTRY_BYTES, entryCount } from './table.js';

type NewVhdx = NewImage<typeof VHDX_CREATE>;

/** Errors: invalid, in QEMU's words. */
function shapeOf({ sizeBytes, options }: NewVhdx): { blockBytes: number; logBytes: number } {
  if (sizeBytes > MAX_DISK_BYTES) throw new BlockError('invalid', 'Image size too large; max of 64TB');
  const { 'log-size': logSize, 'block-size': blockSize } = options;
  const logBytes = alignUp(Math.max(logSize, MiB), MiB);
  if (logSize > 2 ** 32 - 1) throw new BlockError('invalid', 'Log size must be smaller than 4 GB');
  const blockBytes = Math.min(blockSize === 0 ? usualBlockBytes(sizeBytes) : blockSize, MAX_BLOCK_BYTES);
  if (blockBytes % MiB !== 0) throw new BlockError('invalid', 'Block size must be a multiple of 1 MB');
  if (!isBlockSize(blockBytes)) throw new BlockError('invalid', 'Block size must be a power of two');
  return { blockBytes, logBytes };
}

/** As QEMU chooses. */
function usualBlockBytes(sizeBytes: number): number {
  if (sizeBytes > 32 * 1024 * GiB) return 64 * MiB;
  if (sizeBytes > 100 * GiB) return 32 * MiB;
  return sizeBytes > GiB ? 16 * MiB : 8 * MiB;
}

async function create(file: ChildIo, image: NewVhdx, host: Host): Promise<void> {
  const { blockBytes, logBytes } = shapeOf(image);
  const isFixed = image.options.subformat === 'fixed';
  const disk = { blockBytes, diskBytes: image.sizeBytes, logicalSectorBytes: 512 };
  const tableBytes = alignUp(Math.max(1, entryCount(disk)) * ENTRY_BYTES, MiB);
  const logOffset = SECTION_BYTES;
  const table = { offset: logOffset + logBytes, lengthBytes: tableBytes };
  const metadata = { offset: table.offset + tableBytes, lengthBytes: MiB };
  const dataOffset = metadata.offset + metadata.lengthBytes;
  const totalBytes = dataOffset + (isFixed ? Math.ceil(image.sizeBytes / blockBytes) * blockBytes : 0);
  if (file.lengthBytes > 0) await file.write(0, Buffer.alloc(Math.min(512, file.lengthBytes)), 0);
  await file.extend(totalBytes);
  await file.writeZeroes(0, file.hasFixedLength === true ? totalBytes : dataOffset, 0);
  const guid = (): Buffer => randomUuid(host);
  const header = { fileGuid: guid(), dataGuid: guid(), logGuid: NO_GUID, logBytes, logOffset };
  const [first, second] = HEADER_OFFSETS;
  await file.write(first, encodeHeader({ ...header, sequence: 1n }), 0);
  await file.write(second, encodeHeader({ ...header, sequence: 2n }), 0);
  for (const offset of REGION_OFFSETS) await file.write(offset, encodeRegions({ table, metadata }), 0);
  await file.write(metadata.offset, encodeMetadata(disk, isFixed, guid()), 0);
  const state = isFixed
    ? BlockState.fullyPresent
    : image.options['block-state-zero']
      ? BlockState.zero
      : BlockState.notPresent;
  if (state !== BlockState.notPresent) await writeTable(file, table.offset, disk, state, dataOffset);
  await file.flush();
  await file.write(0, identifier(), 0);
  await file.flush();
}

/** Every entry, those of bitmap blocks zero. */
async function writeTable(
  file: ChildIo,
  offset: number,
  disk: { blockBytes: number; diskBytes: number; logicalSectorBytes: number },
  state: number,
  dataOffset: number,
): Promise<void> {
  const ratio = chunkRatio(disk);
  const count = entryCount(disk);
  const isPresent = state === BlockState.fullyPresent;
  for (let first = 0; first < count; first += 65536) {
    const bytes = Buffer.alloc(Math.min(65536, count - first) * ENTRY_BYTES);
    for (let at = 0; at < bytes.length; at += ENTRY_BYTES) {
      const entry = first + at / ENTRY_BYTES;
      const chunk = Math.floor(entry / (ratio + 1));
      if (entry % (ratio + 1) === ratio) continue;
      const place = isPresent ? dataOffset + (entry - chunk) * disk.blockBytes : 0;
      bytes.writeBigUInt64LE(BigInt(place + state), at);
    }
    await file.write(offset + first * ENTRY_BYTES, bytes, 0);
  }
}

function identifier(): Buffer {
  const bytes = Buffer.alloc(64 * KiB);
  bytes.write(IDENTIFIER, 0, 'latin1');
  bytes.write('livedisk', IDENTIFIER.length, 'utf16le');
  return bytes;
}

/** Hyper-V's VHDX images, dynamic and fixed. */
export const vhdxDriver: DriverDescription<typeof VHDX_OPTIONS, typeof VHDX_CREATE> = {
  name: 'vhdx',
  kind: 'format',
  opensWithoutWriting: true,
  options: VHDX_OPTIONS,
  open: (context, settings) => FormatNode.open(context, settings, loadVhdx),
  probe: (header) => (header.toString('latin1', 0, IDENTIFIER.length) === IDENTIFIER ? 100 : 0),
  createOptions: VHDX_CREATE,
  toolOptions: [
    { name: 'size' },
    { name: 'log_size', member: 'log-size', isAlwaysShown: true },
    { name: 'block_size', member: 'block-size', isAlwaysShown: true },
    { name: 'subformat', member: 'subformat' },
    { name: 'block_state_zero', member: 'block-state-zero' },
  ],
  checkNew: (image) => void shapeOf(image),
  create,
};
