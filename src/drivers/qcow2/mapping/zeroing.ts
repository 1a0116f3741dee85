import { BlockError } from '../../../base/error.js';
import type { CachedTable } from '../tables/cached-table.js';
import { ClusterKind, ZERO_LOW } from '../disk/layout.js';
import { type ImageParts, tableToChange, unlinkEntry } from '../space/reservation.js';

export type Change = (table: CachedTable, index: number) => void;

/** MapDriver.zeroClusters. */
export async function zeroClusters(
  parts: ImageParts,
  offset: number,
  lengthBytes: number,
  mayUnmap: boolean,
): Promise<void> {
  if (parts.context.header.version < 3) {
    throw new BlockError('unsupported', 'Operation not supported', { errno: 'ENOTSUP' });
  }
  const { l2 } = parts.context;
  await changeEntries(parts, offset, lengthBytes, false, (table, index) => {
    const kind = l2.kind(table.bytes, index);
    const hasHost = kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
    if (hasHost && !mayUnmap && l2.isCopied(table.bytes, index)) {
      if (kind === ClusterKind.zeroAllocated) return;
      setEntry(parts, table, index, l2.hostOffset(table.bytes, index), true, ZERO_LOW);
    } else if (kind !== ClusterKind.zeroPlain) {
      unlink(parts, table, index);
      setEntry(parts, table, index, 0, false, ZERO_LOW);
    }
  });
}

/**
 * MapDriver.discardClusters: what was allocated reads as zeroes afterwards, and what was not never shows a backing
 * file. Version 2 has no zero clusters: there only images without a backing file can let go of clusters.
 */
export async function discardClusters(parts: ImageParts, offset: number, lengthBytes: number): Promise<void> {
  const { context } = parts;
  const hasBacking = context.header.backing !== undefined || context.driver.hasChild('backing');
  const v2 = context.header.version < 3;
  if (v2 && hasBacking) return;
  await changeEntries(parts, offset, lengthBytes, !hasBacking, (table, index) => {
    const kind = context.l2.kind(table.bytes, index);
    if (kind === ClusterKind.zeroPlain || (kind === ClusterKind.unallocated && !hasBacking)) return;
    discardEntry(parts, table, index, v2 ? 0 : ZERO_LOW);
  });
}

/** The entry names no cluster any more; `low` says what it reads as. */
export function discardEntry(parts: ImageParts, table: CachedTable, index: number, low: number): void {
  unlink(parts, table, index);
  setEntry(parts, table, index, 0, false, low);
}

/** Changes the entries of a range, table by table; `skipAbsent` leaves alone what has no L2 table. */
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
      const first = Math.floor((at % coverage) / cluster);
      const last = Math.ceil((next - l1Index * coverage) / cluster);
      for (let index = first; index < last; index++) {
        tables.checkEntry(table, index);
        tables.checkChange(table, index);
        change(table, index);
      }
    }
    at = next;
  }
}

/** The file is to give the space back only where discards reach this image at all. */
function unlink(parts: ImageParts, table: CachedTable, index: number): void {
  unlinkEntry(parts, table.bytes, index, parts.context.driver.modes.discard === 'unmap');
}

function setEntry(
  { context }: ImageParts,
  table: CachedTable,
  index: number,
  offset: number,
  copied: boolean,
  low: number,
): void {
  const { l2 } = context;
  context.unflushedBytes += context.clusterBytes;
  const bytes = table.change(index * l2.entryBytes, (index + 1) * l2.entryBytes);
  l2.write(bytes, index, offset, copied, low);
}
