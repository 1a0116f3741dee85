import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { MAX_L1_BYTES, MiB } from '../../base/limits.js';
import type { ChildIo } from '../../block/driver.js';
import type { Header } from './header.js';
import { ENTRY_BYTES, readU64 } from './layout.js';
import type { MetadataRange } from './metadata-map.js';

const SNAPSHOT_HEADER_BYTES = 40;
/** Longest snapshot table that is read: QEMU's bound. */
const MAX_SNAPSHOT_TABLE_BYTES = 64 * MiB;

/**
 * Where internal snapshots have their tables (qcow2 specification, "Snapshots"). Nothing else of them is used: they
 * can neither be read nor made. Errors: kind corrupt.
 */
export async function snapshotRanges(file: ChildIo, header: Header): Promise<MetadataRange[]> {
  const { snapshotCount, snapshotsOffset, clusterBytes } = header;
  const tables = new Map<number, number>();
  let at = snapshotsOffset;
  const entry = Buffer.alloc(SNAPSHOT_HEADER_BYTES);
  for (let i = 0; i < snapshotCount; i++) {
    if (at + entry.length > Math.min(file.lengthBytes, snapshotsOffset + MAX_SNAPSHOT_TABLE_BYTES))
      throw new BlockError('corrupt', 'Could not read snapshots: the table exceeds the end of the file');
    await file.read(at, entry);
    const l1Offset = readU64(entry, 0, 'Snapshot L1 table offset');
    const l1Bytes = entry.readUInt32BE(8) * ENTRY_BYTES;
    if (l1Offset % clusterBytes !== 0) throw new BlockError('corrupt', 'Snapshot L1 table offset invalid');
    if (l1Bytes > MAX_L1_BYTES) throw new BlockError('limit', 'Snapshot L1 table too large');
    tables.set(l1Offset, Math.max(l1Bytes, tables.get(l1Offset) ?? 0));
    const variable = entry.readUInt32BE(36) + entry.readUInt16BE(12) + entry.readUInt16BE(14);
    at += alignUp(SNAPSHOT_HEADER_BYTES + variable, 8);
  }
  if (snapshotCount === 0) return [];
  const ranges = [...tables].map(([offset, lengthBytes]) => ({
    what: 'inactive L1 table',
    offset,
    lengthBytes,
  }));
  return [{ what: 'snapshot table', offset: snapshotsOffset, lengthBytes: at - snapshotsOffset }, ...ranges];
}
