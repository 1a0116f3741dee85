import { alignDown, alignUp, divideRoundUp } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';
import { MAX_IMAGE_BYTES, MAX_L1_BYTES } from '../../../base/limits.js';
import { newMapping } from '../../../block/request.js';
import { FieldOffset, l1EntriesFor } from '../disk/header.js';
import type { OpenImage } from '../open-image.js';
import { ENTRY_BYTES, SECTOR_BYTES, writeU64 } from '../disk/layout.js';
import { readCompressed } from './compressed.js';
import { zeroClusters } from './zeroing.js';

/**
 * Grows the virtual disk; durable on return. New space reads as zeroes, also over a longer backing file: what makes
 * it so is durable before the header names the new size. Errors: unsupported (shrinking), invalid, limit.
 */
export async function growImage(image: OpenImage, sizeBytes: number): Promise<void> {
  const { context } = image;
  const { header } = context;
  const oldSize = header.sizeBytes;
  if (sizeBytes === oldSize) return;
  checkNewSize(image, sizeBytes);
  context.assertMayWrite();
  await context.beginChanges();
  await growL1(image, l1EntriesFor(sizeBytes, header.clusterBytes, context.l2));
  await zeroTail(image, oldSize, sizeBytes);
  await hideBacking(image, oldSize, sizeBytes);
  await image.writeBack.flush();
  await context.headerLock.run(async () => {
    await context.writeHeader((sector) => void writeU64(sector, FieldOffset.size, sizeBytes));
    await context.meta.flush();
  });
  header.sizeBytes = sizeBytes;
}

function checkNewSize(image: OpenImage, sizeBytes: number): void {
  const { header, l2 } = image.context;
  if (sizeBytes % SECTOR_BYTES !== 0)
    throw new BlockError('invalid', `The new size must be a multiple of ${SECTOR_BYTES}`);
  if (sizeBytes < header.sizeBytes)
    throw new BlockError('unsupported', 'qcow2: shrinking an image is not supported', { errno: 'ENOTSUP' });
  if (header.version < 3 && header.snapshotCount > 0)
    throw new BlockError('unsupported', "Can't resize a v2 image which has snapshots", { errno: 'ENOTSUP' });
  const l1Bytes = l1EntriesFor(sizeBytes, header.clusterBytes, l2) * ENTRY_BYTES;
  if (sizeBytes > MAX_IMAGE_BYTES || l1Bytes > MAX_L1_BYTES)
    throw new BlockError('limit', 'Failed to grow the L1 table: File too large', { errno: 'EFBIG' });
  image.bitmaps.checkNewSize(sizeBytes);
}

/** Makes the L1 table at least that long; written back with the next write-back. */
export async function growL1(image: OpenImage, entries: number): Promise<void> {
  const { l1 } = image.tables;
  if (entries <= l1.entries) return;
  if (l1.moved) await image.writeBack.flush();
  await image.context.announce('l1_grow_alloc_table');
  const { clusterBytes } = image.context;
  const run = await image.allocator.allocateContiguous(divideRoundUp(entries * ENTRY_BYTES, clusterBytes));
  image.context.metadata.add('active L1 table', run.start, run.count);
  l1.grow(entries, run.start * clusterBytes);
}

/** Length of what a reader may see below this image; Infinity when the image names a file that is not open. */
function backingBytes(image: OpenImage): number {
  const { driver, header } = image.context;
  if (driver.hasChild('backing')) return driver.child('backing').lengthBytes;
  return header.backing ? Infinity : 0;
}

/** Zeroes what lies beyond the old end in the last cluster. */
async function zeroTail(image: OpenImage, oldSize: number, sizeBytes: number): Promise<void> {
  const { context, reserver } = image;
  const cluster = context.clusterBytes;
  const within = oldSize % cluster;
  if (within === 0) return;
  const start = alignDown(oldSize, cluster);
  const mapping = newMapping();
  await image.mapper.map(start, cluster, mapping);
  if (mapping.kind === 'zero' || (mapping.kind === 'backing' && backingBytes(image) <= oldSize)) return;
  const bytes = Buffer.alloc(cluster);
  if (mapping.kind === 'data' && mapping.writable) {
    const length = Math.min(cluster - within, sizeBytes - oldSize);
    await context.data.write(mapping.hostOffset + within, bytes.subarray(0, length), 0);
    return;
  }
  const head = bytes.subarray(0, within);
  if (mapping.kind === 'data' && !mapping.plain) {
    await readCompressed(image, start, head);
  } else if (mapping.kind === 'data') {
    await context.data.read(mapping.hostOffset, head);
  } else {
    if (!context.driver.hasChild('backing')) {
      const message = 'Cannot grow the image: its last cluster is in a backing file that is not open';
      throw new BlockError('unsupported', message, { errno: 'ENOTSUP' });
    }
    await context.driver.child('backing').read(start, head);
  }
  const reservation = await reserver.reserve(start, cluster);
  try {
    await context.data.write(reservation.hostOffset, bytes, 0);
  } catch (error) {
    reservation.abort();
    throw error;
  }
  reservation.link();
}

/** Zero clusters where a longer backing file would show through. */
async function hideBacking(image: OpenImage, oldSize: number, sizeBytes: number): Promise<void> {
  const cluster = image.context.clusterBytes;
  const from = alignUp(oldSize, cluster);
  const end = alignUp(Math.min(sizeBytes, backingBytes(image)), cluster);
  if (end <= from) return;
  if (image.context.header.version < 3)
    throw new BlockError('unsupported', 'Failed to zero out new clusters: Operation not supported', {
      errno: 'ENOTSUP',
    });
  await zeroClusters(image, from, end - from, true);
}
