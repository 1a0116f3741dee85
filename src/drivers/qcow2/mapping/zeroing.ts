import { BlockError } from '../../../base/error.js';
import { Flag, hasFlag } from '../../../block/request.js';
import type { CachedTable } from '../tables/cached-table.js';
import { ClusterKind } from '../disk/layout.js';
import { type ImageParts, tableToChange, unlinkEntry } from '../space/reservation.js';

/** Changes units [from, end) of an entry's cluster; all of them where there is but one. */
export type Change = (table: CachedTable, index: number, units: Units) => void;

interface Units {
  readonly from: number;
  readonly end: number;
}

/** MapDriver.zeroClusters. */
export async function zeroClusters(
  parts: ImageParts,
  offset: number,
  lengthBytes: number,
  flags: number,
): Promise<void> {
  const { context } = parts;
  const mayUnmap = hasFlag(flags, Flag.mayUnmap);
  if (context.header.version < 3) {
    // Version 2 has no zero clusters, and needs none where what is not allocated is zero.
    if (hasBacking(context)) throw unsupported();
    return discardClusters(parts, offset, lengthBytes);
  }
  const { l2 } = context;
  if (context.isDataFileRaw) await zeroRawData(parts, offset, lengthBytes, flags);
  const kept = new KeptClusters(parts);
  await changeEntries(parts, offset, lengthBytes, false, (table, index, units) => {
    const kind = l2.kind(table.bytes, index);
    if (!isWhole(parts, units)) return zeroSome(parts, table, index, units, mayUnmap && kept);
    if (mayUnmap && kept.take(table, index)) return;
    const hasHost = kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
    const mayKeep = hasHost && l2.isCopied(table.bytes, index);
    const isDone =
      l2.unitsPerCluster === 1 && (kind === ClusterKind.zeroPlain || kind === ClusterKind.zeroAllocated);
    if (mayKeep && (!mayUnmap || context.isDataFileRaw)) {
      if (isDone) return;
      const bytes = changed(parts, table, index);
      l2.writeZero(bytes, index, l2.hostOffset(bytes, index), true);
    } else if (!isDone || hasHost) {
      unlink(parts, table, index);
      l2.writeZero(changed(parts, table, index), index, 0, false);
    }
  });
  if (!mayUnmap) return;
  await kept.discard();
  await discardData(parts, offset, lengthBytes);
}

/** Parts of a cluster; with the last of its data it gives up its host cluster, where that may go. */
function zeroSome(
  parts: ImageParts,
  table: CachedTable,
  index: number,
  { from, end }: Units,
  kept: KeptClusters | false,
): void {
  const { l2 } = parts.context;
  // Bytes must be written over it.
  if (l2.kind(table.bytes, index) === ClusterKind.compressed) throw unsupported();
  const bytes = changed(parts, table, index);
  l2.setUnits(bytes, index, from, end, 'zero');
  if (kept === false || l2.kind(bytes, index) !== ClusterKind.zeroAllocated) return;
  if (kept.take(table, index)) return;
  unlink(parts, table, index);
  l2.setHost(bytes, index, 0, false);
}

/**
 * MapDriver.discardClusters: what was allocated reads as zeroes afterwards, and what was not never shows a backing
 * file. Version 2 has no zero clusters: there only images without a backing file can let go of clusters.
 */
export async function discardClusters(parts: ImageParts, offset: number, lengthBytes: number): Promise<void> {
  const { context } = parts;
  const { l2 } = context;
  const showsBacking = hasBacking(context);
  const v2 = context.header.version < 3;
  if (v2 && showsBacking) return;
  if (context.isDataFileRaw) await zeroRawData(parts, offset, lengthBytes, Flag.mayUnmap);
  const kept = new KeptClusters(parts);
  await changeEntries(parts, offset, lengthBytes, !showsBacking, (table, index, units) => {
    if (!isWhole(parts, units)) {
      if (l2.kind(table.bytes, index) !== ClusterKind.compressed) zeroSome(parts, table, index, units, kept);
      return;
    }
    if (kept.take(table, index)) return;
    const kind = l2.kind(table.bytes, index);
    if (kind === ClusterKind.zeroPlain && l2.unitsPerCluster === 1) return;
    if (kind === ClusterKind.unallocated && !showsBacking) return;
    discardEntry(parts, table, index, !v2);
  });
  await kept.discard();
  await discardData(parts, offset, lengthBytes);
}

/** With `discard-no-unref`, clusters that read as zeroes from now on and stay where they are; the file's blocks go. */
class KeptClusters {
  readonly #parts: ImageParts;
  readonly #stretches: Array<{ offset: number; end: number }> = [];

  constructor(parts: ImageParts) {
    this.#parts = parts;
  }

  /** False: the entry has no plain cluster of its own that is to stay. */
  take(table: CachedTable, index: number): boolean {
    const { l2, discards, header, clusterBytes } = this.#parts.context;
    if (!discards.keepsClusters || header.version < 3 || l2.hasDataFile) return false;
    const kind = l2.kind(table.bytes, index);
    const isPlain = kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
    if (!isPlain || !l2.isCopied(table.bytes, index)) return false;
    const offset = l2.hostOffset(table.bytes, index);
    if (kind === ClusterKind.data || l2.unitsPerCluster > 1)
      l2.writeZero(changed(this.#parts, table, index), index, offset, true);
    const last = this.#stretches.at(-1);
    if (last?.end === offset) last.end += clusterBytes;
    else this.#stretches.push({ offset, end: offset + clusterBytes });
    return true;
  }

  async discard(): Promise<void> {
    const { context } = this.#parts;
    if (!context.passesDiscard('request')) return;
    // A hint: they read as zeroes in any case.
    for (const { offset, end } of this.#stretches)
      await context.data.discard(offset, end - offset).catch(() => undefined);
  }
}

function hasBacking({ header, driver }: ImageParts['context']): boolean {
  return header.backing !== undefined || driver.hasChild('backing');
}

/** The entry names no cluster any more. */
export function discardEntry(parts: ImageParts, table: CachedTable, index: number, readsZero: boolean): void {
  const { l2 } = parts.context;
  unlink(parts, table, index);
  const bytes = changed(parts, table, index);
  if (readsZero) l2.writeZero(bytes, index, 0, false);
  else l2.writeData(bytes, index, 0, false);
}

/** A data file that holds what the disk holds gets zeroes first: whoever reads it alone sees them. */
async function zeroRawData(
  { context }: ImageParts,
  offset: number,
  lengthBytes: number,
  flags: number,
): Promise<void> {
  context.assertMayWrite();
  const { data } = context;
  const length = Math.min(lengthBytes, data.lengthBytes - offset);
  if (length > 0) await data.writeZeroes(offset, length, flags);
}

/** Of a data file the blocks go at once: nothing else comes there. */
async function discardData({ context }: ImageParts, offset: number, lengthBytes: number): Promise<void> {
  const { data, l2, isDataFileRaw } = context;
  if (!l2.hasDataFile || isDataFileRaw || !context.passesDiscard('request')) return;
  const length = Math.min(lengthBytes, data.lengthBytes - offset);
  // A hint.
  if (length > 0) await data.discard(offset, length).catch(() => undefined);
}

/** Lets go of all that is allocated: the backing file shows again, or zeroes where there is none. */
export function unallocateClusters(parts: ImageParts, offset: number, lengthBytes: number): Promise<void> {
  const { l2 } = parts.context;
  return changeEntries(parts, offset, lengthBytes, true, (table, index, units) => {
    if (isWhole(parts, units)) {
      if (l2.kind(table.bytes, index) !== ClusterKind.unallocated) discardEntry(parts, table, index, false);
    } else if (l2.kind(table.bytes, index) !== ClusterKind.compressed) {
      l2.setUnits(changed(parts, table, index), index, units.from, units.end, 'none');
    }
  });
}

/** Changes the entries of a range of whole units, table by table; `skipAbsent` leaves alone what has no L2 table. */
export async function changeEntries(
  parts: ImageParts,
  offset: number,
  lengthBytes: number,
  skipAbsent: boolean,
  change: Change,
): Promise<void> {
  const { context, tables } = parts;
  const cluster = context.clusterBytes;
  const coverage = context.l2Entries * cluster;
  const end = offset + lengthBytes;
  for (let at = offset; at < end;) {
    const l1Index = Math.floor(at / coverage);
    const next = Math.min(end, (l1Index + 1) * coverage);
    if (!skipAbsent || !tables.isAbsent(l1Index)) {
      // No wait between finding the table and changing it: it might leave memory meanwhile.
      let table = tableToChange(parts, l1Index);
      while (typeof table === 'function') {
        await table();
        table = tableToChange(parts, l1Index);
      }
      const from = at - l1Index * coverage;
      const stop = next - l1Index * coverage;
      for (let index = Math.floor(from / cluster); index * cluster < stop; index++) {
        tables.checkEntry(table, index);
        tables.checkChange(table, index);
        change(table, index, {
          from: Math.max(0, from - index * cluster) / context.unitBytes,
          end: Math.ceil(Math.min(cluster, stop - index * cluster) / context.unitBytes),
        });
      }
    }
    at = next;
  }
}

function isWhole({ context }: ImageParts, { from, end }: Units): boolean {
  return end - from === context.l2.unitsPerCluster;
}

/** The file is to give the space back only where discards reach this image at all. */
function unlink(parts: ImageParts, table: CachedTable, index: number): void {
  unlinkEntry(parts, table.bytes, index, parts.context.passesDiscard('request'));
}

/** The bytes of the table, to change this entry in them. */
function changed({ context }: ImageParts, table: CachedTable, index: number): Buffer {
  const { entryBytes } = context.l2;
  context.unflushedBytes += context.clusterBytes;
  return table.change(index * entryBytes, (index + 1) * entryBytes);
}

function unsupported(): BlockError {
  return new BlockError('unsupported', 'Operation not supported', { errno: 'ENOTSUP' });
}
