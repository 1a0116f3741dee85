import { BlockError } from '../../base/error.js';
import type { ChildIo, DriverContext, DriverDescription, NewImage } from '../../block/driver.js';
import type { Host } from '../../host/host.js';
import { VDI_OPTIONS } from '../../schema/blockdev-options.js';
import { VDI_CREATE } from '../../schema/create-options.js';
import { BlockMap } from '../tables/block-map.js';
import { EntryCache } from '../tables/entry-cache.js';
import { FileEnd } from '../tables/file-end.js';
import { FormatNode, type OpenedFormat } from '../tables/format-node.js';
import { eachUint32, readBytes } from '../tables/read-bytes.js';
import { randomUuid } from '../tables/new-image.js';
import { checkVdi } from './check.js';
import {
  BLOCK_BYTES,
  encodeHeader,
  HEADER_BYTES,
  MAX_DISK_BYTES,
  parseHeader,
  SIGNATURE,
  type VdiHeader,
} from './header.js';
import { DISCARDED, VdiTable } from './table.js';

async function load(driver: DriverContext, _settings: unknown, mayWrite: boolean): Promise<OpenedFormat> {
  const file = driver.child('file');
  const header = parseHeader(await readBytes(file, 0, HEADER_BYTES));
  if (header.dataOffset + (header.allocatedBlocks - 1) * BLOCK_BYTES >= file.lengthBytes) file.tellCutOff();
  const used = mayWrite ? await usedBlocks(file, header) : 0;
  const cache = new EntryCache(file);
  const table = new VdiTable(cache, header, used);
  const space = new FileEnd(file, header.dataOffset + used * BLOCK_BYTES, BLOCK_BYTES);
  const isDirty = (): boolean => cache.isDirty;
  const flush = (): Promise<void> => cache.writeBack();
  return {
    lengthBytes: header.diskBytes,
    map: new BlockMap({
      ...{ file, table, space, blockBytes: BLOCK_BYTES, isDirty },
      isPreallocated: header.isStatic,
    }),
    flush,
    end: flush,
    info: () => ({ clusterSizeBytes: BLOCK_BYTES }),
    check: async (repair, say) => {
      if (repair !== 'none')
        throw new BlockError('unsupported', 'Operation not supported', { errno: 'ENOTSUP' });
      return checkVdi(file, parseHeader(await readBytes(file, 0, HEADER_BYTES)), say);
    },
  };
}

/** Blocks of the data area from its beginning that are in use. Errors: corrupt where writing would do harm. */
async function usedBlocks(file: ChildIo, header: VdiHeader): Promise<number> {
  const { mapOffset, dataOffset, blocks } = header;
  if (dataOffset < mapOffset + blocks * 4)
    throw new BlockError('corrupt', 'VDI data lies over the block map', { errno: 'EIO' });
  // The header counts those, too, that a crash has left without an entry: there would be no room for the last blocks.
  let used = 0;
  await eachUint32(file, mapOffset, blocks, true, (entry) => {
    if (entry < DISCARDED && entry < blocks && entry >= used) used = entry + 1;
  });
  return used;
}

const MAP_PIECE_BLOCKS = 65536;

/** Errors: unsupported, invalid. */
function checkNew({ sizeBytes, options: { preallocation } }: NewImage<typeof VDI_CREATE>): void {
  if (preallocation !== 'off' && preallocation !== 'metadata')
    throw new BlockError('unsupported', 'Preallocation mode not supported for vdi');
  if (sizeBytes <= MAX_DISK_BYTES) return;
  const [size, most] = [sizeBytes, MAX_DISK_BYTES].map((bytes) => `0x${bytes.toString(16)}`);
  throw new BlockError('invalid', `Unsupported VDI image size (size is ${size}, max supported is ${most})`);
}

async function create(file: ChildIo, image: NewImage<typeof VDI_CREATE>, host: Host): Promise<void> {
  checkNew(image);
  const { sizeBytes, options } = image;
  const isStatic = options.preallocation === 'metadata';
  const header = encodeHeader(sizeBytes, isStatic, () => randomUuid(host));
  const { mapOffset, dataOffset, blocks } = parseHeader(header);
  await file.write(0, Buffer.alloc(HEADER_BYTES), 0);
  await file.extend(dataOffset);
  await file.writeZeroes(mapOffset, dataOffset - mapOffset, 0);
  for (let first = 0; first < blocks; first += MAP_PIECE_BLOCKS) {
    const count = Math.min(MAP_PIECE_BLOCKS, blocks - first);
    const entries = Buffer.alloc(count * 4, 0xff);
    if (isStatic) for (let i = 0; i < count; i++) entries.writeUInt32LE(first + i, i * 4);
    await file.write(mapOffset + first * 4, entries, 0);
  }
  if (isStatic) {
    await file.extend(dataOffset + blocks * BLOCK_BYTES);
    if (file.hasFixedLength === true) await file.writeZeroes(dataOffset, blocks * BLOCK_BYTES, 0);
  }
  await file.flush();
  await file.write(0, header, 0);
  await file.flush();
}

/** VirtualBox's images, dynamic and static. */
export const vdiDriver: DriverDescription<typeof VDI_OPTIONS, typeof VDI_CREATE> = {
  name: 'vdi',
  kind: 'format',
  opensWithoutWriting: true,
  options: VDI_OPTIONS,
  open: (context, settings) => FormatNode.open(context, settings, load),
  probe: (header) => (header.length >= 68 && header.readUInt32LE(64) === SIGNATURE ? 100 : 0),
  createOptions: VDI_CREATE,
  toolOptions: [
    { name: 'size' },
    {
      name: 'static',
      member: 'preallocation',
      switches: ['metadata', 'off'],
      isAlwaysShown: true,
    },
  ],
  checkNew,
  create,
};
