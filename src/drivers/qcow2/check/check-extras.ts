import { alignUp } from '../../../base/align.js';
import { MiB } from '../../../base/limits.js';
import type { Checker } from './check.js';
import { ExtensionType, findExtension } from '../disk/header-extensions.js';
import { AUTOCLEAR_BITMAPS, ENTRY_BYTES, entryOffset, readU64 } from '../disk/layout.js';

const SNAPSHOT_HEADER_BYTES = 40;
const BITMAP_HEADER_BYTES = 24;
/** Longest snapshot table or bitmap directory that is read (QEMU: 64 MiB). */
const MAX_DIRECTORY_BYTES = 64 * MiB;
/** Longest bitmap table, in entries: QEMU's bound. */
const MAX_BITMAP_TABLE_ENTRIES = 0x8000000 / ENTRY_BYTES;

/** Counts what internal snapshots refer to (qcow2 specification, "Snapshots"). */
export async function walkSnapshots(checker: Checker): Promise<void> {
  const { header, file } = checker;
  let at = header.snapshotsOffset;
  for (let i = 0; i < header.snapshotCount; i++) {
    const entry = Buffer.alloc(SNAPSHOT_HEADER_BYTES);
    if (at + entry.length > Math.min(file.lengthBytes, header.snapshotsOffset + MAX_DIRECTORY_BYTES)) {
      checker.corruption('snapshot table exceeds the end of the file');
      return;
    }
    await file.read(at, entry);
    const l1Offset = readU64(entry, 0, 'Snapshot L1 table offset');
    await checker.walkL1(`snapshot L1 table`, l1Offset, entry.readUInt32BE(8), false);
    const variable = entry.readUInt32BE(36) + entry.readUInt16BE(12) + entry.readUInt16BE(14);
    at += alignUp(SNAPSHOT_HEADER_BYTES + variable, 8);
  }
  if (header.snapshotCount > 0)
    checker.reference('snapshot table', header.snapshotsOffset, at - header.snapshotsOffset);
}

/** Counts what persistent bitmaps refer to, while the image says that they are consistent ("Bitmaps"). */
export async function walkBitmaps(checker: Checker): Promise<void> {
  const { header } = checker;
  const extension = findExtension(header.extensions, ExtensionType.bitmaps);
  if ((header.autoclear & AUTOCLEAR_BITMAPS) === 0n || !extension) return;
  if (extension.length < 24) return checker.corruption('bitmaps extension is too short');
  const lengthBytes = readU64(extension, 8, 'Bitmap directory size');
  const offset = readU64(extension, 16, 'Bitmap directory offset');
  if (lengthBytes > MAX_DIRECTORY_BYTES) return checker.corruption('bitmap directory is too large');
  const directory = await checker.read('bitmap directory', offset, lengthBytes);
  if (!directory) return;
  for (let at = 0; at + BITMAP_HEADER_BYTES <= directory.length;) {
    await walkBitmap(checker, readU64(directory, at, 'Bitmap table offset'), directory.readUInt32BE(at + 8));
    const variable = directory.readUInt16BE(at + 18) + directory.readUInt32BE(at + 20);
    at += alignUp(BITMAP_HEADER_BYTES + variable, 8);
  }
}

async function walkBitmap(checker: Checker, offset: number, entries: number): Promise<void> {
  if (entries > MAX_BITMAP_TABLE_ENTRIES) return checker.corruption('bitmap table is too large');
  const table = await checker.read('bitmap table', offset, entries * ENTRY_BYTES);
  if (!table) return;
  for (let index = 0; index < entries; index++) {
    const cluster = entryOffset(table, index);
    if (cluster !== 0) checker.reference('bitmap data', cluster, checker.header.clusterBytes);
  }
}
