import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { MAX_IMAGE_BYTES } from '../../base/limits.js';
import type { ChildIo, DriverContext, DriverDescription, NewImage } from '../../block/driver.js';
import { PARALLELS_OPTIONS } from '../../schema/blockdev-options.js';
import { PARALLELS_CREATE } from '../../schema/create-options.js';
import { BlockMap } from '../tables/block-map.js';
import { EntryCache } from '../tables/entry-cache.js';
import { FileEnd } from '../tables/file-end.js';
import { FormatNode, type OpenedFormat } from '../tables/format-node.js';
import { eachUint32, readBytes } from '../tables/read-bytes.js';
import { checkParallels } from './check.js';
import {
  encodeHeader,
  HEADER_BYTES,
  isParallels,
  parseHeader,
  type ParallelsHeader,
  SECTOR_BYTES,
} from './header.js';
import { ParallelsTable } from './table.js';

async function load(driver: DriverContext, _settings: unknown, mayWrite: boolean): Promise<OpenedFormat> {
  const file = driver.child('file');
  const header = parseHeader(await readBytes(file, 0, HEADER_BYTES));
  if (header.isInUse && mayWrite && !driver.forCheck) {
    const text = 'parallels: Image was not closed correctly; cannot be opened read/write';
    throw new BlockError('permission', text, { errno: 'EACCES' });
  }
  const { clusterBytes: blockBytes, diskBytes } = header;
  const end = mayWrite ? await endOf(file, header) : 0;
  const cache = new EntryCache(file);
  const table = new ParallelsTable(cache, header);
  const space = new FileEnd(file, end, blockBytes);
  return {
    lengthBytes: diskBytes,
    map: new BlockMap({ file, table, space, blockBytes, isDirty: () => cache.isDirty }),
    flush: () => cache.writeBack(),
    end: () => table.end(),
    info: () => ({ hasNoDirtyFlag: true }),
    check: async (repair, say) =>
      checkParallels(file, parseHeader(await readBytes(file, 0, HEADER_BYTES)), repair, say),
  };
}

/** Behind the last cluster, where the next one may begin. */
async function endOf(file: ChildIo, header: ParallelsHeader): Promise<number> {
  const { clusters, clusterBytes, unitBytes, dataOffset } = header;
  let end = dataOffset;
  await eachUint32(file, HEADER_BYTES, clusters, true, (entry) => {
    if (entry !== 0) end = Math.max(end, entry * unitBytes + clusterBytes);
  });
  if (end > MAX_IMAGE_BYTES)
    throw new BlockError('corrupt', 'Parallels clusters lie outside the image', { errno: 'EIO' });
  return alignUp(end, unitBytes);
}

/** Errors: invalid, limit. */
function checkNew({ sizeBytes, options }: NewImage<typeof PARALLELS_CREATE>): void {
  const clusterBytes = options['cluster-size'];
  if (clusterBytes === 0 || clusterBytes % SECTOR_BYTES !== 0)
    throw new BlockError('invalid', `Cluster size must be a multiple of ${SECTOR_BYTES} bytes`);
  if (sizeBytes >= 2 ** 32 * clusterBytes)
    throw new BlockError('limit', 'Image size is too large for this cluster size', { errno: 'E2BIG' });
}

async function create(file: ChildIo, image: NewImage<typeof PARALLELS_CREATE>): Promise<void> {
  checkNew(image);
  const { header, dataOffset } = encodeHeader(image.sizeBytes, image.options['cluster-size']);
  await file.extend(dataOffset);
  await file.writeZeroes(0, dataOffset, 0);
  await file.flush();
  await file.write(0, header, 0);
  await file.flush();
}

/** Parallels' expandable images. */
export const parallelsDriver: DriverDescription<typeof PARALLELS_OPTIONS, typeof PARALLELS_CREATE> = {
  name: 'parallels',
  kind: 'format',
  opensWithoutWriting: true,
  options: PARALLELS_OPTIONS,
  open: (context, settings) => FormatNode.open(context, settings, load),
  probe: (header) => (isParallels(header) ? 100 : 0),
  createOptions: PARALLELS_CREATE,
  toolOptions: [{ name: 'size' }, { name: 'cluster_size', member: 'cluster-size', isAlwaysShown: true }],
  checkNew,
  create,
};
