import { BlockError } from '../../base/error.js';
import type { ChildIo, DriverDescription, NewImage } from '../../block/driver.js';
import { QED_OPTIONS } from '../../schema/blockdev-options.js';
import { QED_CREATE } from '../../schema/create-options.js';
import { FormatNode } from '../tables/format-node.js';
import {
  encodeHeader,
  Feature,
  HEADER_BYTES,
  isClusterSize,
  isImageSize,
  isQed,
  isTableSize,
  maxSizeBytes,
  type QedHeader,
  SECTOR_BYTES,
} from './header.js';
import { loadQed } from './image.js';

/** Errors: invalid, in QEMU's words. */
function checkNew({ sizeBytes, options, backingFile }: NewImage<typeof QED_CREATE>): void {
  const clusterBytes = options['cluster-size'];
  const tableClusters = options['table-size'];
  if (!isClusterSize(clusterBytes))
    throw new BlockError('invalid', 'QED cluster size must be within range [4096, 67108864] and power of 2');
  if (!isTableSize(tableClusters))
    throw new BlockError('invalid', 'QED table size must be within range [1, 16] and power of 2');
  if (!isImageSize(sizeBytes, clusterBytes, tableClusters)) {
    const most = maxSizeBytes(clusterBytes, tableClusters);
    const text = `QED image size must be a non-zero multiple of cluster size and less than ${most} bytes`;
    throw new BlockError('invalid', text);
  }
  if (HEADER_BYTES + Buffer.byteLength(backingFile ?? '', 'utf8') > SECTOR_BYTES * 8)
    throw new BlockError('invalid', 'Backing file name too long');
}

async function create(file: ChildIo, image: NewImage<typeof QED_CREATE>): Promise<void> {
  checkNew(image);
  const { sizeBytes, options, backingFile, backingFormat } = image;
  const clusterBytes = options['cluster-size'];
  const name = Buffer.from(backingFile ?? '', 'utf8');
  const hasName = name.length > 0;
  const header: QedHeader = {
    clusterBytes,
    tableClusters: options['table-size'],
    headerClusters: 1,
    features:
      (hasName ? Feature.backingFile : 0) + (hasName && backingFormat === 'raw' ? Feature.backingIsRaw : 0),
    compatible: 0n,
    autoclear: 0n,
    l1Offset: clusterBytes,
    sizeBytes,
    nameOffset: hasName ? HEADER_BYTES : 0,
    nameBytes: name.length,
  };
  const totalBytes = clusterBytes * (1 + header.tableClusters);
  await file.extend(totalBytes);
  await file.writeZeroes(0, totalBytes, 0);
  const first = Buffer.concat([encodeHeader(header).subarray(0, HEADER_BYTES), name], 4096);
  await file.write(SECTOR_BYTES, first.subarray(SECTOR_BYTES), 0);
  await file.flush();
  await file.write(0, first.subarray(0, SECTOR_BYTES), 0);
  await file.flush();
}

/** QEMU Enhanced Disk, which qcow2 has followed. */
export const qedDriver: DriverDescription<typeof QED_OPTIONS, typeof QED_CREATE> = {
  name: 'qed',
  kind: 'format',
  opensWithoutWriting: true,
  options: QED_OPTIONS,
  open: (context, settings) => FormatNode.open(context, settings, loadQed),
  probe: (header) => (isQed(header) ? 100 : 0),
  createOptions: QED_CREATE,
  toolOptions: [
    { name: 'size' },
    { name: 'backing_file' },
    { name: 'backing_fmt' },
    { name: 'cluster_size', member: 'cluster-size', isAlwaysShown: true },
    { name: 'table_size', member: 'table-size' },
  ],
  checkNew,
  create,
};
