import { alignUp } from '../../base/align.js';
import { BlockError, errnoError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import type { ChildIo, DriverContext, DriverDescription, NewImage } from '../../block/driver.js';
import type { Host } from '../../host/host.js';
import { VPC_OPTIONS } from '../../schema/blockdev-options.js';
import { VPC_CREATE } from '../../schema/create-options.js';
import { BlockMap } from '../tables/block-map.js';
import { EntryCache, Phase } from '../tables/entry-cache.js';
import { FileEnd } from '../tables/file-end.js';
import { FlatMap } from '../tables/flat-map.js';
import { FormatNode, type OpenedFormat } from '../tables/format-node.js';
import { randomUuid } from '../tables/new-image.js';
import { eachUint32, readBytes } from '../tables/read-bytes.js';
import {
  COOKIE,
  DiskType,
  DYNAMIC_HEADER_BYTES,
  type DynamicHeader,
  encodeDynamicHeader,
  encodeFooter,
  type Footer,
  FOOTER_BYTES,
  isFooter,
  MAX_SECTORS,
  parseDynamicHeader,
  parseFooter,
  SECTOR_BYTES,
} from './footer.js';
import { type Geometry, geometryFor, LARGEST, sectorsOf } from './geometry.js';
import { VpcTable } from './table.js';

const NEW_BLOCK_BYTES = 2 * MiB;

async function load(driver: DriverContext, _settings: unknown, mayWrite: boolean): Promise<OpenedFormat> {
  const file = driver.child('file');
  const { footer, isAtEnd } = await findFooter(file);
  if (!footer.isSound) driver.tell(`block-vpc: The header checksum of '${driver.filename}' is incorrect.`);
  if (isAtEnd || footer.type === DiskType.fixed) return loadFixed(file, footer);
  return loadDynamic(file, footer, mayWrite);
}

/** A dynamic disk has a copy at its beginning. */
async function findFooter(file: ChildIo): Promise<{ footer: Footer; isAtEnd: boolean }> {
  const first = await readBytes(file, 0, FOOTER_BYTES);
  if (isFooter(first)) return { footer: parseFooter(first), isAtEnd: false };
  const at = file.lengthBytes - FOOTER_BYTES;
  if (at < 0) throw new BlockError('invalid', 'File too small for a VHD header');
  const last = await readBytes(file, at, FOOTER_BYTES);
  if (!isFooter(last)) throw new BlockError('invalid', 'invalid VPC image');
  return { footer: parseFooter(last), isAtEnd: true };
}

async function loadFixed(file: ChildIo, footer: Footer): Promise<OpenedFormat> {
  const lengthBytes = footer.totalSectors * SECTOR_BYTES;
  if (lengthBytes > file.lengthBytes) throw new BlockError('corrupt', 'The image has been truncated');
  return {
    lengthBytes,
    map: new FlatMap(file),
    flush: () => file.flush(),
    end: () => file.flush(),
    info: () => ({}),
  };
}

async function loadDynamic(file: ChildIo, footer: Footer, mayWrite: boolean): Promise<OpenedFormat> {
  if (footer.type === DiskType.differencing)
    throw new BlockError('unsupported', 'Differencing VHD images are not supported', { errno: 'ENOTSUP' });
  if (footer.dataOffset === Infinity) throw errnoError('EINVAL');
  const bytes = await readBytes(file, footer.dataOffset, DYNAMIC_HEADER_BYTES);
  const header = parseDynamicHeader(bytes, footer.totalSectors);
  const lengthBytes = footer.totalSectors * SECTOR_BYTES;
  // An entry may lie in two sectors then: it would not change as one.
  if (mayWrite && header.tableOffset % 4 !== 0)
    throw new BlockError('unsupported', 'A VHD image whose block table is not aligned is only read', {
      errno: 'ENOTSUP',
    });
  const end = await endOf(file, header, footer.dataOffset + DYNAMIC_HEADER_BYTES);
  if (end > file.lengthBytes) {
    const text =
      'block-vpc: free_data_block_offset points after the end of file. The image has been truncated.';
    throw new BlockError('corrupt', text);
  }
  const { blockBytes, bitmapBytes: headBytes } = header;
  const cache = new EntryCache(file);
  const table = new VpcTable(file, cache, header);
  const space = new FileEnd(file, end, 0);
  if (mayWrite) keepFooter(cache, space, footer.bytes);
  const flush = (): Promise<void> => cache.writeBack();
  return {
    lengthBytes,
    map: new BlockMap({ file, table, space, blockBytes, headBytes, isDirty: () => cache.isDirty }),
    flush,
    end: flush,
    info: () => ({ clusterSizeBytes: blockBytes }),
  };
}

/** Behind the last block. */
async function endOf(file: ChildIo, header: DynamicHeader, from: number): Promise<number> {
  const { tableOffset, tableEntries, bitmapBytes, blockBytes } = header;
  let end = Math.max(from, alignUp(tableOffset + tableEntries * 4, SECTOR_BYTES));
  await eachUint32(file, tableOffset, tableEntries, false, (entry) => {
    if (entry !== 0xffffffff) end = Math.max(end, entry * SECTOR_BYTES + bitmapBytes + blockBytes);
  });
  return end;
}

/** The footer goes along with the end of the file. What overwrites it, until then, is a bitmap that is written again. */
function keepFooter(cache: EntryCache, space: FileEnd, footer: Buffer): void {
  let at = space.end;
  cache.beforeWriteBack = () => {
    if (space.end === at) return;
    at = space.end;
    cache.queue(at, footer, Phase.first);
    space.hasWritten(at + FOOTER_BYTES);
  };
}

interface Size {
  sizeBytes: number;
  geometry: Geometry;
}

/** Errors: limit, in QEMU's words. */
function sizeOf({ sizeBytes, options }: NewImage<typeof VPC_CREATE>): Size {
  const wanted = Math.ceil(sizeBytes / SECTOR_BYTES);
  const geometry = options['force-size'] ? LARGEST : geometryFor(wanted);
  const sectors = geometry === LARGEST ? wanted : sectorsOf(geometry);
  if (sectors > MAX_SECTORS)
    throw new BlockError('limit', "The image size is too large for file format 'vpc'", { errno: 'EFBIG' });
  return { sizeBytes: sectors * SECTOR_BYTES, geometry };
}

async function create(file: ChildIo, image: NewImage<typeof VPC_CREATE>, host: Host): Promise<void> {
  const { sizeBytes, geometry } = sizeOf(image);
  const isFixed = image.options.subformat === 'fixed';
  const footer = encodeFooter({
    sizeBytes,
    geometry,
    isFixed,
    isBySize: image.options['force-size'],
    unixSeconds: host.clock.wallClock().seconds,
    uuid: randomUuid(host),
  });
  if (isFixed) await createFixed(file, sizeBytes, footer);
  else await createDynamic(file, sizeBytes, footer);
}

async function createFixed(file: ChildIo, sizeBytes: number, footer: Buffer): Promise<void> {
  await file.extend(sizeBytes + FOOTER_BYTES);
  if (file.hasFixedLength === true) await file.writeZeroes(0, sizeBytes, 0);
  await file.write(sizeBytes, footer, 0);
  await file.flush();
}

async function createDynamic(file: ChildIo, sizeBytes: number, footer: Buffer): Promise<void> {
  const tableOffset = FOOTER_BYTES + DYNAMIC_HEADER_BYTES;
  const tableEntries = Math.ceil(sizeBytes / NEW_BLOCK_BYTES);
  const header = { blockBytes: NEW_BLOCK_BYTES, bitmapBytes: 512, tableOffset, tableEntries };
  const tableBytes = alignUp(tableEntries * 4, SECTOR_BYTES);
  await file.write(0, Buffer.alloc(FOOTER_BYTES), 0);
  await file.write(FOOTER_BYTES, encodeDynamicHeader(header), 0);
  await file.write(tableOffset, Buffer.alloc(tableBytes, 0xff), 0);
  await file.write(tableOffset + tableBytes, footer, 0);
  await file.flush();
  await file.write(0, footer, 0);
  await file.flush();
}

/** Virtual PC's and Hyper-V's VHD images, dynamic and fixed. */
export const vpcDriver: DriverDescription<typeof VPC_OPTIONS, typeof VPC_CREATE> = {
  name: 'vpc',
  kind: 'format',
  opensWithoutWriting: true,
  options: VPC_OPTIONS,
  open: (context, settings) => FormatNode.open(context, settings, load),
  probe: (header) => (header.toString('latin1', 0, COOKIE.length) === COOKIE ? 100 : 0),
  createOptions: VPC_CREATE,
  toolOptions: [
    { name: 'size' },
    { name: 'subformat', member: 'subformat' },
    { name: 'force_size', member: 'force-size' },
  ],
  checkNew: (image) => void sizeOf(image),
  create,
};
