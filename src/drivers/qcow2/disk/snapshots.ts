import { alignUp } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';
import { MiB } from '../../../base/limits.js';
import type { ChildIo, Json } from '../../../block/driver.js';
import type { Header } from './header.js';
import { ENTRY_BYTES, readU64 } from './layout.js';
import type { MetadataRange } from '../tables/metadata-map.js';

export const SNAPSHOT_HEADER_BYTES = 40;
/** Longest snapshot table that is read: QEMU's bound. */
const MAX_SNAPSHOT_TABLE_BYTES = 64 * MiB;
/** What the specification knows of the extra data. */
const KNOWN_EXTRA_BYTES = 24;
const NS_PER_SECOND = 1_000_000_000n;

/** The internal snapshots of an image: they are told of and kept, but can neither be read nor made. */
export interface SnapshotTable {
  /** Where they have their tables. */
  ranges: MetadataRange[];
  /** QAPI's SnapshotInfo of each. */
  infos: Json[];
}

/** Reads the snapshot table (qcow2 specification, "Snapshots"). Errors: kind corrupt. */
export async function readSnapshots(file: ChildIo, header: Header): Promise<SnapshotTable> {
  const { snapshotCount, snapshotsOffset } = header;
  const tables = new Map<number, number>();
  const infos: Json[] = [];
  let at = snapshotsOffset;
  for (let i = 0; i < snapshotCount; i++) {
    const entry = await readEntry(file, at, snapshotsOffset + MAX_SNAPSHOT_TABLE_BYTES);
    const l1Offset = readU64(entry, 0, 'Snapshot L1 table offset');
    const l1Bytes = entry.readUInt32BE(8) * ENTRY_BYTES;
    tables.set(l1Offset, Math.max(l1Bytes, tables.get(l1Offset) ?? 0));
    infos.push(snapshotInfo(entry));
    at += alignUp(entry.length, 8);
  }
  if (snapshotCount === 0) return { ranges: [], infos };
  const inactive = [...tables].map(([offset, lengthBytes]) => ({
    what: 'inactive L1 table',
    offset,
    lengthBytes,
  }));
  const table = { what: 'snapshot table', offset: snapshotsOffset, lengthBytes: at - snapshotsOffset };
  return { ranges: [table, ...inactive], infos };
}

/** Behind the end of the file there are zeroes. */
async function readEntry(file: ChildIo, at: number, limit: number): Promise<Buffer> {
  const head = Buffer.alloc(SNAPSHOT_HEADER_BYTES);
  if (at < file.lengthBytes) await file.read(at, head);
  const lengthBytes = snapshotEntryBytes(head);
  if (at + lengthBytes > limit) throw new BlockError('limit', 'Snapshot table is too big');
  const entry = Buffer.alloc(lengthBytes);
  if (at < file.lengthBytes) await file.read(at, entry);
  return entry;
}

/** Length of an entry, without the padding to the next one. */
export function snapshotEntryBytes(head: Buffer): number {
  return SNAPSHOT_HEADER_BYTES + head.readUInt32BE(36) + head.readUInt16BE(12) + head.readUInt16BE(14);
}

function snapshotInfo(entry: Buffer): Json {
  const [idBytes, nameBytes, extraBytes] = [
    entry.readUInt16BE(12),
    entry.readUInt16BE(14),
    entry.readUInt32BE(36),
  ];
  const clockNs = entry.readBigUInt64BE(24);
  const idAt = SNAPSHOT_HEADER_BYTES + extraBytes;
  const icount = extraBytes >= KNOWN_EXTRA_BYTES ? Number(entry.readBigInt64BE(56)) : -1;
  return {
    ...(icount !== -1 && { icount }),
    'vm-clock-nsec': Number(clockNs % NS_PER_SECOND),
    name: entry.toString('utf8', idAt + idBytes, idAt + idBytes + nameBytes),
    'date-sec': entry.readUInt32BE(16),
    'date-nsec': entry.readUInt32BE(20),
    'vm-clock-sec': Number(clockNs / NS_PER_SECOND),
    id: entry.toString('utf8', idAt, idAt + idBytes),
    // The 64 bits of the extra data replace the older 32.
    'vm-state-size': extraBytes >= 8 ? Number(entry.readBigUInt64BE(40)) : entry.readUInt32BE(32),
  };
}
