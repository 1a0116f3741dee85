import { alignUp } from '../../../base/align.js';
import { BlockError, errnoError } from '../../../base/error.js';
import { MAX_SNAPSHOTS } from '../disk/header.js';
import {
  completeSnapshot,
  decodeSnapshot,
  MAX_EXTRA_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  SNAPSHOT_HEADER_BYTES,
  type SnapshotEntry,
  snapshotEntryBytes,
  withExtra,
} from '../disk/snapshots.js';
import { readPadded } from './held.js';
import type { Walk } from './walk.js';

/** What every snapshot of a version 3 image says beyond version 2. */
const VERSION_3_EXTRA_BYTES = 16;

/** The snapshot table as far as it can be read. */
export interface SnapshotList {
  entries: SnapshotEntry[];
  /** Of what was read of it. */
  lengthBytes: number;
}

/**
 * Reads the snapshot table (qcow2 specification, "Snapshots"); tells of entries that lack something, or are too much, and
 * plans another table where that may be repaired. Errors: limit, where there is too much of it otherwise.
 */
export async function readSnapshotList(walk: Walk): Promise<SnapshotList> {
  const { header, report } = walk;
  const mayRepair = report.mode === 'all';
  const raws: Buffer[] = [];
  let isOther = false;
  const discard = (count: number): void => {
    report.fixed(count, `Discarding ${count} overhanging snapshots`);
    isOther = true;
  };
  if (header.snapshotCount > MAX_SNAPSHOTS) {
    const count = header.snapshotCount - MAX_SNAPSHOTS;
    if (!mayRepair) throw tooMuch('snapshot table too large', `all ${count} overhanging snapshots`);
    discard(count);
  }
  let at = header.snapshotsOffset;
  for (let i = 0; i < Math.min(header.snapshotCount, MAX_SNAPSHOTS); i++) {
    const head = Buffer.alloc(SNAPSHOT_HEADER_BYTES);
    await readPadded(walk.file, at, head);
    const lengthBytes = snapshotEntryBytes(head);
    const extraBytes = head.readUInt32BE(36);
    const failed = 'failed to read the snapshot table: ';
    if (extraBytes > MAX_EXTRA_BYTES) {
      const where = `too much extra metadata in snapshot table entry ${i}`;
      if (!mayRepair) throw tooMuch(`${failed}T${where.slice(1)}`, 'this extra metadata');
      report.fixed(1, `Discarding ${where} (${extraBytes} > ${MAX_EXTRA_BYTES})`);
      isOther = true;
    }
    if (at + lengthBytes > header.snapshotsOffset + MAX_SNAPSHOT_TABLE_BYTES) {
      const count = header.snapshotCount - i;
      if (!mayRepair)
        throw tooMuch(`${failed}Snapshot table is too big`, `all ${count} overhanging snapshots`);
      discard(count);
      break;
    }
    raws.push(await readEntry(walk, at, head));
    at += alignUp(lengthBytes, 8);
  }
  const list = { entries: raws.map(decodeSnapshot), lengthBytes: at - header.snapshotsOffset };
  for (const [i, raw] of raws.entries()) {
    if (header.version < 3 || raw.readUInt32BE(36) >= VERSION_3_EXTRA_BYTES) continue;
    const text = `snapshot table entry ${i} is incomplete`;
    if (mayRepair) report.fixed(1, `Repairing ${text}`);
    else report.corruption(`ERROR ${text}`);
    isOther ||= mayRepair;
  }
  if (isOther) {
    const complete = raws.map((raw) => completeSnapshot(raw, header.sizeBytes));
    report.repairs.push({ kind: 'snapshot-table', entries: complete, formerBytes: list.lengthBytes });
  }
  return list;
}

/** An entry with as much of its extra data as is kept. */
async function readEntry({ file }: Walk, at: number, head: Buffer): Promise<Buffer> {
  const extra = Buffer.alloc(Math.min(head.readUInt32BE(36), MAX_EXTRA_BYTES));
  const names = Buffer.alloc(head.readUInt16BE(12) + head.readUInt16BE(14));
  await readPadded(file, at + SNAPSHOT_HEADER_BYTES, extra);
  await readPadded(file, at + SNAPSHOT_HEADER_BYTES + head.readUInt32BE(36), names);
  return withExtra(Buffer.concat([head, names]), 0, extra);
}

/** The check ends; its cause says why. */
function tooMuch(why: string, what: string): BlockError {
  const hint = `You can force-remove ${what} with qemu-img check -r all`;
  return errnoError('EFBIG', undefined, { cause: new BlockError('limit', `ERROR ${why}\n${hint}`) });
}
