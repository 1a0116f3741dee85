import type { FileUse } from '../../../block/driver.js';
import { ClusterKind } from '../disk/layout.js';
import type { OpenImage } from '../open-image.js';
import type { CachedTable } from '../tables/cached-table.js';

/**
 * How an image's file is used, and how the disk's clusters lie in it. Of an image that is written meanwhile, what each table
 * said when it was looked at. Errors: those of reading; kind corrupt.
 */
export async function fileUse(image: OpenImage): Promise<FileUse> {
  const { context } = image;
  const { clusterBytes } = context;
  const counted = await countedClusters(image);
  const lie = await dataLie(image);
  return {
    lengthBytes: context.meta.lengthBytes,
    usedBytes: counted.used * clusterBytes,
    freeBytes: (counted.end - counted.used) * clusterBytes,
    clusterBytes,
    ...lie,
  };
}

/** How many clusters count as in use, and the first one behind the last of them. */
async function countedClusters({ refcounts }: OpenImage): Promise<{ used: number; end: number }> {
  let [used, end] = [0, 0];
  const { blockEntries } = refcounts;
  for (let index = 0; index < refcounts.table.entries; index++) {
    const block = await refcounts.loaded(index);
    const first = index * blockEntries;
    for (let cluster = first; block && cluster < first + blockEntries; cluster++) {
      if (refcounts.count(block, cluster) === 0) continue;
      used++;
      end = cluster + 1;
    }
  }
  return { used, end };
}

type Lie = Pick<
  FileUse,
  'dataClusters' | 'compressedClusters' | 'extents' | 'adjoiningClusters' | 'scatteredClusters'
>;

/** Clusters of the disk, in its order. */
async function dataLie({ context, tables }: OpenImage): Promise<Lie> {
  const { clusterBytes, l2, l2Entries } = context;
  const lie: Lie = {
    ...{ dataClusters: 0, compressedClusters: 0, extents: 0, adjoiningClusters: 0, scatteredClusters: 0 },
  };
  // Where the next one of the disk would lie; undefined: the one before has no data of its own.
  let nextOffset: number | undefined;
  const look = ({ bytes }: CachedTable): void => {
    for (let index = 0; index < l2Entries; index++) {
      const kind = l2.kind(bytes, index);
      if (kind === ClusterKind.compressed) lie.compressedClusters++;
      if (kind !== ClusterKind.data && kind !== ClusterKind.zeroAllocated) {
        nextOffset = undefined;
        continue;
      }
      const hostOffset = l2.hostOffset(bytes, index);
      lie.dataClusters++;
      if (nextOffset !== undefined) lie.adjoiningClusters++;
      if (hostOffset !== nextOffset) lie.extents++;
      if (nextOffset !== undefined && hostOffset !== nextOffset) lie.scatteredClusters++;
      nextOffset = hostOffset + clusterBytes;
    }
  };
  for (let l1Index = 0; l1Index < tables.l1.entries; l1Index++)
    if (tables.isAbsent(l1Index)) nextOffset = undefined;
    else await tables.glance(l1Index, look);
  return lie;
}
