import { toBlockError } from '../../../base/error.js';
import { ClusterKind, ENTRY_BYTES, entryIsCopied, entryIsCopiedAt, entryOffset } from '../disk/layout.js';
import type { CountsAfterwards } from './compare.js';
import { readPadded } from './held.js';
import { entryText, type Walk } from './walk.js';

/**
 * Looks for entries of the active tables whose copied flag does not say whether the refcount is one, as refcounts will
 * be after the repairs so far (qcow2 specification, "L2 table entry").
 */
export async function checkCopied(walk: Walk, counts: CountsAfterwards): Promise<void> {
  const { header, report, file } = walk;
  const { result, mode } = report;
  const mayRepair =
    mode === 'all' || (mode === 'leaks' && report.isCleanAfterwards && report.result.leaks === 0);
  const mayRepairL1 = isUsedOnce(walk, counts);
  const l1 = Buffer.alloc(header.l1Entries * ENTRY_BYTES);
  await readPadded(file, header.l1Offset, l1);
  const l2 = Buffer.alloc(header.clusterBytes);
  // A table that several entries name is repaired once.
  const repaired = new Set<number>();
  for (let index = 0; index < header.l1Entries; index++) {
    const tableOffset = entryOffset(l1, index);
    if (tableOffset === 0) continue;
    const count = await counts.of(Math.floor(tableOffset / header.clusterBytes));
    const copied = entryIsCopied(l1, index);
    if (count !== undefined && (count === 1) !== copied)
      report.repairable(
        `OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${entryText(l1, index)} refcount=${count}`,
        mayRepair && mayRepairL1,
        { kind: 'l1-copied', index, copied: count === 1 },
      );
    const mayRepairTable = mayRepair && walk.isOnlyTable(tableOffset, counts);
    if (mayRepairTable && repaired.has(tableOffset)) continue;
    repaired.add(tableOffset);
    try {
      await readPadded(file, tableOffset, l2);
    } catch (error) {
      report.line(`ERROR: Could not read L2 table: ${toBlockError(error).message}`);
      result.checkErrors++;
      throw error;
    }
    await checkTable(walk, counts, l2, tableOffset, mayRepairTable);
  }
}

/** What is a guest's data or another table too is not changed. */
function isUsedOnce({ header }: Walk, counts: CountsAfterwards): boolean {
  const { clusterBytes, l1Offset, l1Entries } = header;
  for (let at = l1Offset; at < l1Offset + l1Entries * ENTRY_BYTES; at += clusterBytes)
    if (counts.users(at / clusterBytes) > 1) return false;
  return true;
}

async function checkTable(
  walk: Walk,
  counts: CountsAfterwards,
  l2: Buffer,
  tableOffset: number,
  mayRepair: boolean,
): Promise<void> {
  const { layout } = walk;
  for (let index = 0; index < walk.l2Entries; index++) {
    const kind = layout.kind(l2, index);
    if (kind !== ClusterKind.data && kind !== ClusterKind.zeroAllocated) continue;
    if (walk.isZeroed(tableOffset, index)) continue;
    // All of a data file is the disk's alone.
    const answer = layout.hasDataFile
      ? 1
      : counts.of(Math.floor(layout.hostOffset(l2, index) / walk.header.clusterBytes));
    const count = answer instanceof Promise ? await answer : answer;
    const copied = entryIsCopiedAt(l2, index * layout.entryBytes);
    if (count === undefined || (count === 1) === copied) continue;
    walk.report.repairable(
      `OFLAG_COPIED data cluster: l2_entry=${walk.text(l2, index)} refcount=${count}`,
      mayRepair,
      { kind: 'l2-copied', tableOffset, index, copied: count === 1 },
    );
  }
}
