import { alignUp, divideRoundUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { MAX_L1_BYTES } from '../../base/limits.js';
import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type { MeasuredContent, Measurement } from '../../block/driver.js';
import { encryptionHeaderBytes } from './create.js';
import { checkNewImage, type NewQcow2 } from './create-options.js';
import { entryBytes as bitmapEntryBytes } from './disk/bitmap-directory.js';
import { ENTRY_BYTES } from './disk/layout.js';

/**
 * How large the file of a new image is: header, tables, and refcounts for all of it, as the format lays them out, for a
 * disk that is full; with less data, as much less. Errors: limit; invalid for what no image can have.
 */
export async function measureQcow2(image: NewQcow2, content: MeasuredContent): Promise<Measurement> {
  checkNewImage(image);
  const { sizeBytes, backingFile, options } = image;
  const clusterBytes = options['cluster-size'];
  const entryBytes = options['extended-l2'] ? 2 * ENTRY_BYTES : ENTRY_BYTES;
  const diskBytes = alignUp(sizeBytes, clusterBytes);
  const l2Bytes = alignUp((diskBytes / clusterBytes) * entryBytes, clusterBytes);
  const l1Bytes = alignUp((l2Bytes / clusterBytes) * ENTRY_BYTES, clusterBytes);
  if ((l2Bytes / clusterBytes) * ENTRY_BYTES > MAX_L1_BYTES)
    throw new BlockError('limit', 'The image size is too large (try using a larger cluster size)');
  const { encrypt } = options;
  if (encrypt?.format === 'luks' && encrypt['key-secret'] !== undefined)
    content.secret(encrypt['key-secret']);
  const encryptionBytes = alignUp(encryptionHeaderBytes(options), clusterBytes);
  const clusters = (clusterBytes + l1Bytes + l2Bytes + encryptionBytes + diskBytes) / clusterBytes;
  const fullyAllocatedBytes =
    (clusters + refcountClusters(clusters, clusterBytes, options['refcount-bits'])) * clusterBytes;
  // What a backing file has is not looked at: all of the disk may be written.
  const isFull = backingFile !== undefined || ['falloc', 'full'].includes(options.preallocation);
  const held = isFull ? diskBytes : await content.dataBytes(clusterBytes);
  const requiredBytes = fullyAllocatedBytes - diskBytes + held;
  if (!content.bitmaps || options.version === 'v2') return { requiredBytes, fullyAllocatedBytes };
  return { requiredBytes, fullyAllocatedBytes, bitmapsBytes: bytesOfBitmaps(content.bitmaps, clusterBytes) };
}

/** Clusters of refcount blocks and of their table, which count themselves too. */
function refcountClusters(clusters: number, clusterBytes: number, refcountBits: number): number {
  const perBlock = (clusterBytes * 8) / refcountBits;
  const perTable = clusterBytes / ENTRY_BYTES;
  let total = 0;
  for (;;) {
    const blocks = divideRoundUp(clusters + total, perBlock);
    const needed = blocks + divideRoundUp(blocks, perTable);
    if (needed === total) return total;
    total = needed;
  }
}

/** Their bits and tables, each in whole clusters, and the directory (specification, "Bitmaps extension"). */
function bytesOfBitmaps(bitmaps: readonly DirtyBitmap[], clusterBytes: number): number {
  let total = 0;
  let directory = 0;
  for (const { name = '', serialisedBytes } of bitmaps) {
    const clusters = divideRoundUp(serialisedBytes, clusterBytes);
    total += clusters * clusterBytes + alignUp(clusters * ENTRY_BYTES, clusterBytes);
    directory += bitmapEntryBytes(Buffer.byteLength(name));
  }
  return total + alignUp(directory, clusterBytes);
}
