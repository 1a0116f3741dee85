import { defined } from '../../../base/assert.js';
import { BlockError } from '../../../base/error.js';
import type { L2Layout } from '../disk/l2-layout.js';
import { ClusterKind, entryOffset, hostClustersOf, Incompatible } from '../disk/layout.js';
import type { ImageContext } from '../image.js';
import type { DiscardCause } from '../discards.js';
import type { OpenImage } from '../open-image.js';
import type { CachedTable } from '../tables/cached-table.js';

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
  const { unlinked, writeBack } = image;
  for (const { start, count, from, to } of runs) {
    // One step is left for when it is durably nobody's.
    const now = from > to ? to + 1 : to;
    if (now !== from)
      await forEachBlock(image, { start, count }, (block, cluster) => {
        image.refcounts.set(block, cluster, now);
      });
    if (from > to) dropReferences(image, { start, count });
    if (unlinked.needsWriteBack) await writeBack.flush();
  }
}

/**
 * One more reference to each cluster, a cluster that is in several runs once for each, which is at most as often as it is
 * counted; in memory, for the next write-back. Nothing changes when one of them cannot be counted. Errors: invalid (EINVAL), those of reading blocks.
 */
export async function addReferences(
  image: OpenImage,
  runs: () => AsyncIterable<ClusterRun> | Iterable<ClusterRun>,
): Promise<void> {
  const { refcounts, context } = image;
  const most = 2 ** (2 ** context.header.refcountOrder) - 1;
  const added = new Map<number, number>();
  for await (const run of runs())
    await forEachBlock(image, run, (block, cluster) => {
      const count = refcounts.count(block, cluster);
      // What has room to be counted twice over is not filled.
      if (2 * count <= most) return;
      const more = (added.get(cluster) ?? 0) + 1;
      if (count + more > most) throw tooMany(cluster * context.clusterBytes, count);
      added.set(cluster, more);
    });
  for await (const run of runs())
    await forEachBlock(image, run, (block, cluster) => {
      refcounts.set(block, cluster, refcounts.count(block, cluster) + 1);
    });
}

function tooMany(offset: number, count: number): BlockError {
  const message = `Refcount of the cluster at offset 0x${offset.toString(16)} cannot be more than ${count}`;
  return new BlockError('invalid', message, { errno: 'EINVAL', offset });
}

/** One reference less to each cluster once a write-back has made it so on disk that nothing there needs it. */
export function dropReferences(
  { context, unlinked }: OpenImage,
  { start, count }: ClusterRun,
  cause: DiscardCause = 'request',
): void {
  const { clusterBytes } = context;
  unlinked.add(start * clusterBytes, count * clusterBytes, context.passesDiscard(cause));
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
    if (refcounts.isAbsent(index))
      throw image.context.corrupt('Refcount of a cluster in use is 0', cluster * image.context.clusterBytes);
    while (!refcounts.peek(index)) await refcounts.load(index);
    const block = defined(refcounts.peek(index), 'refcount block');
    const end = Math.min(start + count, (index + 1) * refcounts.blockEntries);
    for (; cluster < end; cluster++) change(block, cluster);
  }
}

/** Everything that the active L1 table refers to: each L2 table, then what its entries name, one run for each user. */
export async function* activeRuns(image: OpenImage): AsyncGenerator<ClusterRun> {
  const { tables, context } = image;
  for (let l1Index = 0; l1Index < tables.l1.entries; l1Index++) {
    if (tables.isAbsent(l1Index)) continue;
    const table = await loadTable(image, l1Index);
    checkEntries(image, table);
    const runs = runsOfTable(context, table.bytes);
    yield { start: entryOffset(tables.l1.bytes, l1Index) / context.clusterBytes, count: 1 };
    yield* runs;
  }
}

/** Errors: kind corrupt when an entry of the table cannot be used. */
export function checkEntries({ tables, context }: OpenImage, table: CachedTable): void {
  if (table.wellFormed) return;
  for (let index = 0; index < context.l2Entries; index++) tables.checkEntry(table, index);
}

/** What the entries of an L2 table name in the image's own file: nothing where data is in another. */
export function runsOfTable({ l2, l2Entries, header }: ImageContext, bytes: Buffer): ClusterRun[] {
  const { clusterBytes, clusterBits } = header;
  const runs: ClusterRun[] = [];
  if (l2.hasDataFile) return runs;
  for (let index = 0; index < l2Entries; index++) {
    const kind = l2.kind(bytes, index);
    if (kind === ClusterKind.compressed) {
      const range = hostClustersOf(l2.compressedRange(bytes, index, clusterBits), clusterBytes);
      runs.push({ start: range.hostOffset / clusterBytes, count: range.lengthBytes / clusterBytes });
    } else if (kind === ClusterKind.data || kind === ClusterKind.zeroAllocated) {
      const start = l2.hostOffset(bytes, index) / clusterBytes;
      const last = runs.at(-1);
      if (last && last.start + last.count === start) last.count++;
      else runs.push({ start, count: 1 });
    }
  }
  return runs;
}

/**
 * No entry of the active tables claims to be the only one any more: from here on each change copies first. In memory,
 * for the next write-back. Nothing is written to the image meanwhile, and no reservation is open: a table that one
 * holds must not be copied under it.
 */
export async function clearCopied(image: OpenImage): Promise<void> {
  await changeCopied(image, () => false);
}

/** Each entry claims to be the only one where the refcount says so; after references went away. As clearCopied. */
export async function claimOwned(image: OpenImage): Promise<void> {
  const { refcounts, context } = image;
  await changeCopied(image, (offset) => {
    const cluster = offset / context.clusterBytes;
    const index = refcounts.blockIndex(cluster);
    if (refcounts.isAbsent(index)) throw context.corrupt('Refcount of a cluster in use is 0', offset);
    const block = refcounts.peek(index);
    return block ? refcounts.count(block, cluster) === 1 : isOwned(image, cluster);
  });
}

async function isOwned({ refcounts }: OpenImage, cluster: number): Promise<boolean> {
  const index = refcounts.blockIndex(cluster);
  while (!refcounts.peek(index)) await refcounts.load(index);
  return refcounts.count(defined(refcounts.peek(index), 'refcount block'), cluster) === 1;
}

async function changeCopied(
  image: OpenImage,
  isOwned: (offset: number) => boolean | Promise<boolean>,
): Promise<void> {
  const { tables, writeBack, context } = image;
  const { l2 } = context;
  for (let l1Index = 0; l1Index < tables.l1.entries; l1Index++) {
    if (tables.isAbsent(l1Index)) continue;
    if (tables.cache.needsWriteBack) await writeBack.flush();
    const table = await loadTable(image, l1Index);
    table.pins++;
    try {
      checkEntries(image, table);
      for (let index = 0; index < context.l2Entries; index++) {
        const kind = l2.kind(table.bytes, index);
        if (kind !== ClusterKind.data && kind !== ClusterKind.zeroAllocated) continue;
        const answer = isOwned(l2.hostOffset(table.bytes, index));
        const owned = typeof answer === 'boolean' ? answer : await answer;
        if (l2.isCopied(table.bytes, index) !== owned) changeEntry(l2, table, index, owned);
      }
    } finally {
      table.pins--;
    }
    const owned = await isOwned(entryOffset(tables.l1.bytes, l1Index));
    if (tables.isCopied(l1Index) !== owned) tables.l1.setCopied(l1Index, owned);
  }
}

function changeEntry(l2: L2Layout, table: CachedTable, index: number, copied: boolean): void {
  const at = index * l2.entryBytes;
  l2.setCopied(table.change(at, at + l2.entryBytes), index, copied);
}

export async function loadTable({ tables }: OpenImage, l1Index: number): Promise<CachedTable> {
  while (!tables.peek(l1Index)) await tables.load(l1Index);
  return defined(tables.peek(l1Index), 'L2 table');
}

/**
 * Refcounts and claims cannot change at the same moment: meanwhile the image says that they may be wrong (version 3),
 * so that whoever opens it after a crash repairs it. All of it is durable on return. After a failure it stays dirty.
 */
export async function whileDirty(image: OpenImage, change: () => Promise<void>): Promise<void> {
  const { context, writeBack } = image;
  if (context.header.version >= 3) await context.setIncompatible(Incompatible.dirty);
  try {
    await change();
    while (writeBack.isDirty) await writeBack.flush();
  } catch (error) {
    context.staysDirty = true;
    throw error;
  }
  if (!context.staysDirty) await context.clearIncompatible(Incompatible.dirty);
}
