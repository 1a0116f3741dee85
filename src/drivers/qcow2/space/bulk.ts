import { defined } from '../../../base/assert.js';
import type { CachedTable } from '../tables/cached-table.js';
import type { OpenImage } from '../open-image.js';

/** Host clusters [start, start + count). */
export interface ClusterRun {
  start: number;
  count: number;
}

/**
 * Makes refcounts of many clusters what they ought to be; in memory, for the next write-back. What goes down does so
 * after that, when no entry on disk can need it any more; space that gets free is given back to the host where discards
 * are to do so. The blocks of the clusters exist. Errors: those of reading blocks.
 */
export async function setRefcounts(
  image: OpenImage,
  runs: ReadonlyArray<ClusterRun & { from: number; to: number }>,
): Promise<void> {
  const { unlinked, writeBack, context } = image;
  const { clusterBytes } = context;
  const discard = context.driver.modes.discard === 'unmap';
  for (const { start, count, from, to } of runs) {
    // One step is left for when it is durably nobody's.
    const now = from > to ? to + 1 : to;
    if (now !== from)
      await forEachBlock(image, { start, count }, (block, cluster) => {
        image.refcounts.set(block, cluster, now);
      });
    if (from > to) unlinked.add(start * clusterBytes, count * clusterBytes, discard);
    if (unlinked.needsWriteBack) await writeBack.flush();
  }
}

/** Calls `change` for each cluster with its refcount block in memory; brings what changed to disk in between. */
async function forEachBlock(
  image: OpenImage,
  { start, count }: ClusterRun,
  change: (block: CachedTable, cluster: number) => void,
): Promise<void> {
  const { refcounts, writeBack } = image;
  for (let cluster = start; cluster < start + count;) {
    if (refcounts.cache.needsWriteBack) await writeBack.flush();
    const index = refcounts.blockIndex(cluster);
    while (!refcounts.peek(index)) await refcounts.load(index);
    const block = defined(refcounts.peek(index), 'refcount block');
    const end = Math.min(start + count, (index + 1) * refcounts.blockEntries);
    for (; cluster < end; cluster++) change(block, cluster);
  }
}
