import { assert } from '../../../base/assert.js';
import { alignUp } from '../../../base/align.js';
import { errnoError } from '../../../base/error.js';
import type { NewSnapshot } from '../../../block/driver.js';
import { FieldOffset, l1EntriesFor, MAX_SNAPSHOTS } from '../disk/header.js';
import { ENTRY_BYTES, writeCopied, writeU64 } from '../disk/layout.js';
import {
  decodeSnapshot,
  diskOf,
  encodeSnapshot,
  encodeSnapshotTable,
  type SnapshotEntry,
} from '../disk/snapshots.js';
import type { OpenImage } from '../open-image.js';
import {
  activeRuns,
  addReferences,
  claimOwned,
  clearCopied,
  type ClusterRun,
  dropReferences,
  whileDirty,
} from '../space/bulk.js';
import { giveUpTable, type PlacedTable, placeTable } from './placed-table.js';
import { clearClaims, readL1, runsOfL1 } from './snapshot-tables.js';
import { forgetVmState, readMapped, vmStateOffset, writeVmState } from './vm-state.js';

/** Longest name and id that are given: QEMU's. */
const MAX_NAME_BYTES = 255;

/**
 * Keeps what the disk holds now under a name; durable on return. Nothing is written to the image meanwhile. Everything
 * gets one more reference, and then the header names a longer snapshot table (docs/CRASH-SAFETY.md).
 * Errors: those of allocating, reading and writing; limit (EFBIG), invalid (EINVAL) where a refcount cannot count more.
 */
export async function takeSnapshot(image: OpenImage, wanted: NewSnapshot): Promise<SnapshotEntry> {
  const { context, snapshots } = image;
  checkHasOwnData(image);
  await prepare(image);
  if (snapshots.entries.length >= MAX_SNAPSHOTS) throw errnoError('EFBIG');
  await forgetVmState(image);
  try {
    if (wanted.vmState) await writeVmState(image, wanted.vmState);
    await image.writeBack.flushAll();
    return await keepAll(image, wanted);
  } catch (error) {
    if (context.isSound) await forgetVmState(image).catch(() => undefined);
    throw error;
  }
}

/** The disk as it is, vm state included, is kept. */
async function keepAll(image: OpenImage, wanted: NewSnapshot): Promise<SnapshotEntry> {
  const { snapshots } = image;
  const vmStateBytes = wanted.vmState?.length ?? 0;
  let entry: SnapshotEntry | undefined;
  await undoing(image, async (undo) => {
    await addReferences(image, () => activeRuns(image));
    undo(() => dropAll(image, () => activeRuns(image)));
    await clearCopied(image);
    const { bytes, entries: l1Entries } = image.tables.l1;
    const l1 = Buffer.from(bytes);
    const place = await placeTable(image, l1, 'inactive L1 table');
    undo(async () => giveUpTable(image, place));
    entry = newEntry(image, wanted, { l1Offset: place.hostOffset, l1Entries, vmStateBytes });
    await changeTable(image, [...snapshots.entries, entry], undo);
    // The next snapshot need not copy it.
    if (vmStateBytes > 0) await forgetVmState(image);
  });
  assert(entry, 'a snapshot that was taken has an entry');
  return entry;
}

function newEntry(
  { context, snapshots }: OpenImage,
  wanted: NewSnapshot,
  l1: { l1Offset: number; l1Entries: number; vmStateBytes: number },
): SnapshotEntry {
  const ids = snapshots.entries.map(({ id }) => Number(/^\s*\+?(\d{1,15})/.exec(id)?.[1] ?? 0));
  return decodeSnapshot(
    encodeSnapshot({
      id: String(ids.reduce((most, id) => Math.max(most, id), 0) + 1),
      name: cutName(wanted.name),
      dateSec: wanted.dateSec,
      dateNsec: wanted.dateNsec,
      clockNs: wanted.clockNs,
      icount: wanted.icount,
      sizeBytes: context.header.sizeBytes,
      ...l1,
    }),
  );
}

/** As much of a name as QEMU keeps, in whole characters. */
function cutName(name: string): string {
  const bytes = Buffer.from(name, 'utf8');
  if (bytes.length <= MAX_NAME_BYTES) return name;
  let end = MAX_NAME_BYTES;
  while (((bytes[end] ?? 0) & 0xc0) === 0x80) end--;
  return bytes.toString('utf8', 0, end);
}

/**
 * The disk has nothing of the snapshot any more, nor has the image; durable on return. The header names a shorter table
 * first, and only then goes what the snapshot alone had. Errors: as above.
 */
export async function deleteSnapshot(image: OpenImage, snapshot: SnapshotEntry): Promise<void> {
  const { context, snapshots } = image;
  await prepare(image);
  assert(snapshots.entries.includes(snapshot), 'a snapshot of this image');
  const { l1Offset, l1Entries } = diskOf(snapshot, context.header);
  const l1 = await readL1(image, l1Offset, l1Entries);
  await undoing(image, async (undo) => {
    const rest = snapshots.entries.filter((entry) => entry !== snapshot);
    await changeTable(image, rest, undo);
    await dropAll(image, () => runsOfL1(image, l1));
    dropL1(image, l1Offset, l1Entries);
    await image.writeBack.flushAll();
    await claimOwned(image);
  });
}

/**
 * The disk is what it was at the snapshot, its size too, and the snapshot stays; durable on return. Everything of the
 * snapshot gets one more reference, the header names a copy of its L1 table, and then goes what only the disk had.
 * Errors: as above.
 */
export async function goToSnapshot(image: OpenImage, snapshot: SnapshotEntry): Promise<void> {
  const { context, tables } = image;
  checkHasOwnData(image);
  await prepare(image);
  const { header, l2, clusterBytes } = context;
  const disk = diskOf(snapshot, header);
  // Its vm state stays behind: nobody asks the disk for it.
  const entries = l1EntriesFor(disk.sizeBytes, clusterBytes, l2);
  const l1 = Buffer.alloc(entries * ENTRY_BYTES);
  (await readL1(image, disk.l1Offset, Math.min(entries, disk.l1Entries))).copy(l1);
  for (let index = 0; index < entries; index++) writeCopied(l1, index, false);
  const former = { offset: header.l1Offset, l1: Buffer.from(tables.l1.bytes) };
  await undoing(image, async (undo) => {
    await clearClaims(image, l1);
    await addReferences(image, () => runsOfL1(image, l1));
    undo(() => dropAll(image, () => runsOfL1(image, l1)));
    const place = await placeTable(image, l1, 'active L1 table');
    undo(async () => giveUpTable(image, place));
    await image.writeBack.flushAll();
    await context.switchHeader((sector) => {
      writeU64(sector, FieldOffset.l1Offset, place.hostOffset);
      sector.writeUInt32BE(entries, FieldOffset.l1Entries);
      writeU64(sector, FieldOffset.size, disk.sizeBytes);
    });
    undo();
    Object.assign(header, { l1Offset: place.hostOffset, l1Entries: entries, sizeBytes: disk.sizeBytes });
    tables.adopt(l1, place.hostOffset);
    await dropAll(image, () => runsOfL1(image, former.l1));
    dropL1(image, former.offset, former.l1.length / ENTRY_BYTES);
    await image.writeBack.flushAll();
    await claimOwned(image);
  });
}

/** Of a snapshot: what takeSnapshot() was given. Errors: those of reading. */
export async function readSnapshotVmState(
  shown: OpenImage,
  { vmStateBytes }: SnapshotEntry,
  offset: number,
  buffer: Uint8Array,
): Promise<void> {
  assert(offset + buffer.length <= vmStateBytes, 'a part of the vm state');
  await readMapped(shown, vmStateOffset(shown.context) + offset, buffer);
}

/** What lies in a data file is counted nowhere, so nothing of it is kept. */
function checkHasOwnData({ context }: OpenImage): void {
  if (context.l2.hasDataFile) throw errnoError('ENOTSUP');
}

/** Before a change of snapshots: everything is on disk, so that it can be walked through there. */
async function prepare(image: OpenImage): Promise<void> {
  image.context.assertMayWrite();
  await image.context.beginChanges();
  await image.writeBack.flushAll();
}

type Undo = (step?: () => Promise<void>) => void;

/**
 * Makes a change while the image says that its refcounts may be wrong. After a failure, what `undo` was told is done, last
 * first; undo() without a step forgets them: from there on it cannot be taken back. Where taking back fails too, or
 * cannot be, the image stays dirty and is repaired when it is opened next.
 */
async function undoing(image: OpenImage, change: (undo: Undo) => Promise<void>): Promise<void> {
  let failure: { error: unknown } | undefined;
  await whileDirty(image, async () => {
    const steps: Array<() => Promise<void>> = [];
    let isDone = false;
    try {
      await change((step) => {
        if (step) steps.push(step);
        else isDone = true;
      });
    } catch (error) {
      if (isDone || !image.context.isSound) throw error;
      failure = { error };
      for (const step of steps.reverse()) await step();
      await image.writeBack.flushAll();
      await claimOwned(image);
    }
  });
  if (failure) throw failure.error;
}

async function dropAll(image: OpenImage, runs: () => AsyncIterable<ClusterRun>): Promise<void> {
  for await (const run of runs()) {
    dropReferences(image, run, 'snapshot');
    if (image.unlinked.needsWriteBack) await image.writeBack.flush();
  }
}

function dropL1(image: OpenImage, l1Offset: number, l1Entries: number): void {
  const { clusterBytes } = image.context;
  const count = alignUp(l1Entries * ENTRY_BYTES, clusterBytes) / clusterBytes;
  if (count > 0) dropReferences(image, { start: l1Offset / clusterBytes, count }, 'snapshot');
}

/** The header names another snapshot table; durable on return, with everything that was changed before. */
async function changeTable(image: OpenImage, entries: readonly SnapshotEntry[], undo: Undo): Promise<void> {
  const { context, snapshots } = image;
  const { header } = context;
  const bytes = encodeSnapshotTable(entries);
  const place: PlacedTable = await placeTable(image, bytes, 'snapshot table');
  undo(async () => giveUpTable(image, place));
  await image.writeBack.flushAll();
  await context.switchHeader((sector) => {
    sector.writeUInt32BE(entries.length, FieldOffset.snapshotCount);
    writeU64(sector, FieldOffset.snapshotsOffset, place.hostOffset);
  });
  undo();
  const former = { offset: header.snapshotsOffset, lengthBytes: snapshots.lengthBytes };
  image.setSnapshots({ entries, lengthBytes: bytes.length }, place.hostOffset);
  const count = alignUp(former.lengthBytes, context.clusterBytes) / context.clusterBytes;
  if (count > 0) dropReferences(image, { start: former.offset / context.clusterBytes, count }, 'snapshot');
  await image.lookAtInactive();
}
