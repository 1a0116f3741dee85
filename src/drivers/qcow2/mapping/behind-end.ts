import { alignUp } from '../../../base/align.js';
import { ClusterKind, entryOffset } from '../disk/layout.js';
import type { OpenImage } from '../open-image.js';
import { checkEntries, dropReferences, loadTable, runsOfTable } from '../space/bulk.js';
import { changeEntries, discardEntry } from './zeroing.js';

/**
 * Nothing is mapped from `offset` on, which is a cluster's, and at or behind the disk's end; what is not a snapshot's too
 * is free after the next write-back.
 */
export async function forgetFrom(image: OpenImage, offset: number): Promise<void> {
  const { context, tables } = image;
  const coverage = context.l2.coverageBytes(context.clusterBytes);
  const next = alignUp(offset, coverage);
  if (offset < next)
    await changeEntries(image, offset, next - offset, true, (table, index) => {
      if (context.l2.kind(table.bytes, index) !== ClusterKind.unallocated)
        discardEntry(image, table, index, false);
    });
  for (let l1Index = next / coverage; l1Index < tables.l1.entries; l1Index++)
    if (!tables.isAbsent(l1Index)) await forgetTable(image, l1Index);
}

async function forgetTable(image: OpenImage, l1Index: number): Promise<void> {
  const { context, tables, unlinked, writeBack } = image;
  const table = await loadTable(image, l1Index);
  checkEntries(image, table);
  for (const run of runsOfTable(context, table.bytes)) dropReferences(image, run);
  dropReferences(image, { start: entryOffset(tables.l1.bytes, l1Index) / context.clusterBytes, count: 1 });
  tables.remove(l1Index);
  if (unlinked.needsWriteBack) await writeBack.flush();
}
