import { assert } from '../../../base/assert.js';
import { divideRoundUp } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';
import { References } from '../check/references.js';
import { FieldOffset } from '../disk/header.js';
import { writeEntry, writeU64 } from '../disk/layout.js';
import { hex } from '../image.js';
import type { OpenImage } from '../open-image.js';
import { Places, type RefcountPlaces } from './rebuild.js';
import { writeRefcount } from './refcounts.js';

/**
 * Refcounts get 2^order bits each; durable on return. New blocks and a new table are written where nothing is, and count
 * themselves and not the former ones: the step of the header that names them leaves nothing to be freed, and before it
 * the image is what it was. Nothing is written to the image meanwhile, and nothing waits for a write-back.
 * Errors: invalid, in QEMU's words, when a refcount does not fit; limit, no-space, those of reading and writing.
 */
export async function changeRefcountWidth(image: OpenImage, order: number): Promise<void> {
  const { context, refcounts, allocator, writeBack } = image;
  const { clusterBytes } = context;
  assert(!writeBack.isDirty, 'refcounts are on disk before their width changes');
  const former = formerClusters(image);
  const occupied = await occupiedClusters(image, former, order);
  const places = new Places(occupied, former, (clusterBytes * 8) >>> order, clusterBytes).choose();
  for (const cluster of places.clusters) context.checkNoMetadata(cluster * clusterBytes, clusterBytes);
  const table = Buffer.alloc(places.table.count * clusterBytes);
  for (const [index, place] of places.blocks) {
    writeEntry(table, index, place * clusterBytes, false);
    await context.meta.write(
      place * clusterBytes,
      await newBlock(image, { index, order, places, former }),
      0,
    );
  }
  const tableOffset = places.table.start * clusterBytes;
  await context.meta.write(tableOffset, table, 0);
  await context.meta.flush();
  const edit = (sector: Buffer): void => {
    writeU64(sector, FieldOffset.refcountTableOffset, tableOffset);
    sector.writeUInt32BE(places.table.count, FieldOffset.refcountTableClusters);
    sector.writeUInt32BE(order, FieldOffset.refcountOrder);
  };
  await context.switchHeader(edit, { namesFree: true });
  const { header } = context;
  header.refcountTableOffset = tableOffset;
  header.refcountTableClusters = places.table.count;
  header.refcountOrder = order;
  refcounts.adopt(table, tableOffset);
  // Those that were made since the image was opened are known one by one, not by the table.
  for (const cluster of former) context.metadata.forget(cluster);
  context.metadata.tablesChanged();
  allocator.startAnew(context.meta.lengthBytes);
}

/** Where the refcount table and its blocks are. */
function formerClusters({ context, refcounts }: OpenImage): ReadonlySet<number> {
  const { header, clusterBytes } = context;
  const clusters = new Set<number>();
  const start = header.refcountTableOffset / clusterBytes;
  for (let i = 0; i < header.refcountTableClusters; i++) clusters.add(start + i);
  for (let index = 0; index < refcounts.table.entries; index++)
    if (!refcounts.isAbsent(index)) clusters.add(refcounts.blockOffset(index) / clusterBytes);
  return clusters;
}

/**
 * Which clusters are in use, but for those that are to be free. Memory: two bytes a cluster of the file.
 * Errors: invalid when one is used more often than can be counted from now on; limit; those of reading.
 */
async function occupiedClusters(
  { context, refcounts }: OpenImage,
  former: ReadonlySet<number>,
  order: number,
): Promise<References> {
  const { clusterBytes } = context;
  const occupied = new References(divideRoundUp(context.meta.lengthBytes, clusterBytes), order);
  const most = 2 ** (2 ** order) - 1;
  for (let index = 0; index < refcounts.table.entries; index++) {
    const block = await refcounts.loaded(index);
    if (!block) continue;
    const first = index * refcounts.blockEntries;
    for (let cluster = first; cluster < first + refcounts.blockEntries; cluster++) {
      const count = refcounts.count(block, cluster);
      if (count > most) {
        const where = `Cluster at offset ${hex(cluster * clusterBytes)} has a refcount of ${count}`;
        const text = `Cannot decrease refcount entry width to ${2 ** order} bits: ${where}`;
        throw new BlockError('invalid', text, { errno: 'EINVAL' });
      }
      if (count - (former.has(cluster) ? 1 : 0) > 0) occupied.add(cluster);
    }
  }
  return occupied;
}

/** The counts of one new block. */
async function newBlock(
  { context, refcounts }: OpenImage,
  {
    index,
    order,
    places,
    former,
  }: { index: number; order: number; places: RefcountPlaces; former: ReadonlySet<number> },
): Promise<Buffer> {
  const bytes = Buffer.alloc(context.clusterBytes);
  const entries = (context.clusterBytes * 8) >>> order;
  const first = index * entries;
  for (let at = first; at < first + entries;) {
    const end = Math.min(first + entries, at + refcounts.leftInBlock(at));
    const block = await refcounts.loaded(refcounts.blockIndex(at));
    for (; at < end; at++) {
      const count = block ? refcounts.count(block, at) : 0;
      const kept = former.has(at) ? Math.max(0, count - 1) : count;
      writeRefcount(bytes, at - first, order, kept + (places.clusters.has(at) ? 1 : 0));
    }
  }
  return bytes;
}
