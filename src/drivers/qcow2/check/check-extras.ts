import { alignUp } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';
import { MAX_L1_BYTES, MiB } from '../../../base/limits.js';
import { MAX_DIRECTORY_BYTES, rawEntries } from '../disk/bitmap-directory.js';
import { ExtensionType, findExtension } from '../disk/header-extensions.js';
import { AUTOCLEAR_BITMAPS, ENTRY_BYTES, entryOffset, readU64 } from '../disk/layout.js';
import { SNAPSHOT_HEADER_BYTES, snapshotEntryBytes } from '../disk/snapshots.js';
import { readPadded } from './held.js';
import type { Walk } from './walk.js';

/** Longest snapshot table that is read (QEMU: 64 MiB). */
const MAX_SNAPSHOT_TABLE_BYTES = 64 * MiB;
/** Longest bitmap table, in entries: QEMU's bound. */
const MAX_BITMAP_TABLE_ENTRIES = 0x8000000 / ENTRY_BYTES;
/** What every snapshot of a version 3 image says beyond version 2. */
const VERSION_3_EXTRA_BYTES = 16;

export interface SnapshotEntry {
  id: string;
  name: string;
  l1Offset: number;
  l1Entries: number;
}

/** The snapshot table as far as it can be read. */
export interface SnapshotList {
  entries: SnapshotEntry[];
  lengthBytes: number;
}

/** Reads the snapshot table (qcow2 specification, "Snapshots"); tells of entries that lack something. */
export async function readSnapshotList(walk: Walk): Promise<SnapshotList> {
  const { header, file, report } = walk;
  const entries: SnapshotEntry[] = [];
  let at = header.snapshotsOffset;
  for (let i = 0; i < header.snapshotCount; i++) {
    const head = Buffer.alloc(SNAPSHOT_HEADER_BYTES);
    await readPadded(file, at, head);
    const entry = Buffer.alloc(snapshotEntryBytes(head));
    if (at + entry.length > header.snapshotsOffset + MAX_SNAPSHOT_TABLE_BYTES) {
      report.corruption('ERROR snapshot table is too big');
      break;
    }
    await readPadded(file, at, entry);
    const extraBytes = entry.readUInt32BE(36);
    if (header.version >= 3 && extraBytes < VERSION_3_EXTRA_BYTES)
      report.corruption(`ERROR snapshot table entry ${i} is incomplete`);
    const idAt = SNAPSHOT_HEADER_BYTES + extraBytes;
    const nameAt = idAt + entry.readUInt16BE(12);
    entries.push({
      id: entry.toString('utf8', idAt, nameAt),
      name: entry.toString('utf8', nameAt, nameAt + entry.readUInt16BE(14)),
      l1Offset: readU64(entry, 0, 'Snapshot L1 table offset'),
      l1Entries: entry.readUInt32BE(8),
    });
    at += alignUp(entry.length, 8);
  }
  return { entries, lengthBytes: at - header.snapshotsOffset };
}

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
