import { BlockError } from '../../../base/error.js';
import { MAX_L1_BYTES } from '../../../base/limits.js';
import { MAX_DIRECTORY_BYTES, rawEntries } from '../disk/bitmap-directory.js';
import { ExtensionType, findExtension } from '../disk/header-extensions.js';
import { AUTOCLEAR_BITMAPS, ENTRY_BYTES, entryOffset, readU64 } from '../disk/layout.js';
import type { SnapshotList } from './snapshot-list.js';
import type { Walk } from './walk.js';

/** Longest bitmap table, in entries: QEMU's bound. */
const MAX_BITMAP_TABLE_ENTRIES = 0x8000000 / ENTRY_BYTES;
/** Counts what internal snapshots refer to. */
export async function walkSnapshots(walk: Walk, snapshots: SnapshotList): Promise<void> {
  const { header, report } = walk;
  for (const { id, name, l1Offset, l1Entries } of snapshots.entries) {
    const which = `ERROR snapshot ${id} (${name})`;
    if (l1Offset % header.clusterBytes !== 0) {
      report.corruption(
        `${which} l1_offset=0x${l1Offset.toString(16)}: L1 table is not cluster aligned; snapshot table entry corrupted`,
      );
    } else if (l1Entries * ENTRY_BYTES > MAX_L1_BYTES) {
      report.corruption(
        `${which} l1_size=0x${l1Entries.toString(16)}: L1 table is too large; snapshot table entry corrupted`,
      );
    } else {
      await walk.l1(l1Offset, l1Entries, false);
    }
  }
  if (header.snapshotCount > 0) walk.reference(header.snapshotsOffset, snapshots.lengthBytes);
}

/** Counts what persistent bitmaps refer to, while the image says that they are consistent ("Bitmaps"). */
export async function walkBitmaps(walk: Walk): Promise<void> {
  const { header, report } = walk;
  const extension = findExtension(header.extensions, ExtensionType.bitmaps);
  if ((header.autoclear & AUTOCLEAR_BITMAPS) === 0n || !extension) return;
  const lengthBytes = readU64(extension, 8, 'Bitmap directory size');
  const offset = readU64(extension, 16, 'Bitmap directory offset');
  if (lengthBytes > MAX_DIRECTORY_BYTES) return report.corruption('ERROR bitmap directory is too large');
  const directory = await readCounted(walk, 'bitmap directory', offset, lengthBytes);
  if (!directory) return;
  try {
    for (const { tableOffset, tableEntries } of rawEntries(directory)) {
      if (tableOffset > Number.MAX_SAFE_INTEGER)
        throw new BlockError('corrupt', 'Bitmap table offset is too large');
      await walkBitmap(walk, Number(tableOffset), tableEntries);
    }
  } catch (error) {
    if (!(error instanceof BlockError) || error.kind !== 'corrupt') throw error;
    report.corruption(`ERROR ${error.message}`);
  }
}

async function walkBitmap(walk: Walk, offset: number, entries: number): Promise<void> {
  if (entries > MAX_BITMAP_TABLE_ENTRIES) return walk.report.corruption('ERROR bitmap table is too large');
  const table = await readCounted(walk, 'bitmap table', offset, entries * ENTRY_BYTES);
  if (!table) return;
  for (let index = 0; index < entries; index++) {
    const cluster = entryOffset(table, index);
    if (cluster !== 0) walk.reference(cluster, walk.header.clusterBytes);
  }
}

/** Undefined, and told, when it is not where it can be. */
async function readCounted(
  walk: Walk,
  what: string,
  offset: number,
  lengthBytes: number,
): Promise<Buffer | undefined> {
  if (offset % walk.header.clusterBytes !== 0) {
    walk.report.corruption(`ERROR ${what} is not cluster aligned; 0x${offset.toString(16)}`);
    return undefined;
  }
  if (!walk.reference(offset, lengthBytes)) return undefined;
  return walk.read(offset, lengthBytes, 'check_bitmaps_refcounts');
}
