import { alignDown, alignUp } from '../../../base/align.js';
import { assert } from '../../../base/assert.js';
import { BlockError } from '../../../base/error.js';
import { MAX_IMAGE_BYTES, MAX_L1_BYTES, MiB } from '../../../base/limits.js';
import type { ChildIo, Json } from '../../../block/driver.js';
import type { Header } from './header.js';
import { ENTRY_BYTES, readU64, SECTOR_BYTES, writeU64 } from './layout.js';
import type { MetadataRange } from '../tables/metadata-map.js';

export const SNAPSHOT_HEADER_BYTES = 40;
/** Longest snapshot table that is read: QEMU's bound. */
export const MAX_SNAPSHOT_TABLE_BYTES = 64 * MiB;
/** Longest extra data of an entry: QEMU's bound. */
export const MAX_EXTRA_BYTES = 1024;
/** What the specification knows of the extra data: vm state size, disk size, icount. */
const KNOWN_EXTRA_BYTES = 24;
const NS_PER_SECOND = 1_000_000_000n;

/** One internal snapshot (qcow2 specification, "Snapshots"). */
export interface SnapshotEntry {
  readonly id: string;
  readonly name: string;
  readonly l1Offset: number;
  readonly l1Entries: number;
  /** Virtual size of the disk then; undefined: the entry does not say, and it is what it was. */
  readonly sizeBytes: number | undefined;
  readonly vmStateBytes: number;
  /** As it is in the table, without the padding to the next one: whatever it says is kept. */
  readonly raw: Buffer;
}

export interface SnapshotTable {
  readonly entries: readonly SnapshotEntry[];
  /** Length of the table as it is on disk. */
  readonly lengthBytes: number;
}

/** Reads the snapshot table. Errors: corrupt, limit; QEMU's words. */
export async function readSnapshots(file: ChildIo, header: Header): Promise<SnapshotTable> {
  const { snapshotCount, snapshotsOffset } = header;
  const entries: SnapshotEntry[] = [];
  let at = snapshotsOffset;
  for (let i = 0; i < snapshotCount; i++) {
    const raw = await readEntry(file, at, snapshotsOffset + MAX_SNAPSHOT_TABLE_BYTES, i);
    entries.push(decodeSnapshot(raw));
    at += alignUp(raw.length, 8);
  }
  return { entries, lengthBytes: at - snapshotsOffset };
}

/** Behind the end of the file there are zeroes. */
async function readEntry(file: ChildIo, at: number, limit: number, index: number): Promise<Buffer> {
  const head = Buffer.alloc(SNAPSHOT_HEADER_BYTES);
  if (at < file.lengthBytes) await file.read(at, head);
  if (head.readUInt32BE(36) > MAX_EXTRA_BYTES)
    throw new BlockError('limit', `Too much extra metadata in snapshot table entry ${index}`, {
      hint: 'You can force-remove this extra metadata with qemu-img check -r all',
    });
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

/** Errors: kind corrupt. */
export function decodeSnapshot(raw: Buffer): SnapshotEntry {
  const extraBytes = raw.readUInt32BE(36);
  const idAt = SNAPSHOT_HEADER_BYTES + extraBytes;
  const nameAt = idAt + raw.readUInt16BE(12);
  return {
    id: raw.toString('utf8', idAt, nameAt),
    name: raw.toString('utf8', nameAt, nameAt + raw.readUInt16BE(14)),
    l1Offset: readU64(raw, 0, 'Snapshot L1 table offset'),
    l1Entries: raw.readUInt32BE(8),
    sizeBytes: extraBytes >= 16 ? Number(raw.readBigUInt64BE(48)) : undefined,
    // The 64 bits of the extra data replace the older 32.
    vmStateBytes: extraBytes >= 8 ? Number(raw.readBigUInt64BE(40)) : raw.readUInt32BE(32),
    raw,
  };
}

/** What a new entry says. */
export interface NewEntry {
  id: string;
  name: string;
  l1Offset: number;
  l1Entries: number;
  sizeBytes: number;
  vmStateBytes: number;
  dateSec: number;
  dateNsec: number;
  clockNs: bigint;
  /** -1: none. */
  icount: bigint;
}

export function encodeSnapshot(entry: NewEntry): Buffer {
  const [id, name] = [Buffer.from(entry.id, 'utf8'), Buffer.from(entry.name, 'utf8')];
  assert(id.length < 2 ** 16 && name.length < 2 ** 16, 'lengths of id and name have 16 bits');
  const raw = Buffer.alloc(SNAPSHOT_HEADER_BYTES + KNOWN_EXTRA_BYTES + id.length + name.length);
  writeU64(raw, 0, entry.l1Offset);
  raw.writeUInt32BE(entry.l1Entries, 8);
  raw.writeUInt16BE(id.length, 12);
  raw.writeUInt16BE(name.length, 14);
  raw.writeUInt32BE(entry.dateSec, 16);
  raw.writeUInt32BE(entry.dateNsec, 20);
  raw.writeBigUInt64BE(entry.clockNs, 24);
  // Where the size has no room in 32 bits, readers of the extra data find it there.
  raw.writeUInt32BE(entry.vmStateBytes < 2 ** 32 ? entry.vmStateBytes : 0, 32);
  raw.writeUInt32BE(KNOWN_EXTRA_BYTES, 36);
  writeU64(raw, 40, entry.vmStateBytes);
  writeU64(raw, 48, entry.sizeBytes);
  raw.writeBigInt64BE(entry.icount, 56);
  id.copy(raw, SNAPSHOT_HEADER_BYTES + KNOWN_EXTRA_BYTES);
  name.copy(raw, raw.length - name.length);
  return raw;
}

/** The same entry with other extra data in place of the first `formerBytes` behind its head. */
export function withExtra(raw: Buffer, formerBytes: number, extra: Buffer): Buffer {
  const head = Buffer.from(raw.subarray(0, SNAPSHOT_HEADER_BYTES));
  head.writeUInt32BE(extra.length, 36);
  return Buffer.concat([head, extra, raw.subarray(SNAPSHOT_HEADER_BYTES + formerBytes)]);
}

/** The same entry with all extra data that the specification knows; what it did not say is as of now. */
export function completeSnapshot(raw: Buffer, sizeBytes: number): Buffer {
  const extraBytes = raw.readUInt32BE(36);
  if (extraBytes >= KNOWN_EXTRA_BYTES) return raw;
  const known = decodeSnapshot(raw);
  const extra = Buffer.alloc(KNOWN_EXTRA_BYTES);
  writeU64(extra, 0, known.vmStateBytes);
  writeU64(extra, 8, known.sizeBytes ?? sizeBytes);
  extra.writeBigInt64BE(-1n, 16);
  return withExtra(raw, extraBytes, extra);
}

/** The table of these entries. Errors: limit, when it would be longer than is read. */
export function encodeSnapshotTable(entries: ReadonlyArray<Pick<SnapshotEntry, 'raw'>>): Buffer {
  const parts = entries.map(({ raw }) => Buffer.concat([raw], alignUp(raw.length, 8)));
  const table = Buffer.concat(parts);
  if (table.length > MAX_SNAPSHOT_TABLE_BYTES)
    throw new BlockError('limit', 'Snapshot table is too big', { errno: 'EFBIG' });
  return table;
}

/** Where snapshots have their tables, of a table that lies at `offset`. */
export function snapshotRanges({ entries, lengthBytes }: SnapshotTable, offset: number): MetadataRange[] {
  if (entries.length === 0) return [];
  const tables = new Map<number, number>();
  for (const { l1Offset, l1Entries } of entries)
    tables.set(l1Offset, Math.max(l1Entries * ENTRY_BYTES, tables.get(l1Offset) ?? 0));
  const inactive = [...tables].map(([l1Offset, l1Bytes]) => ({
    what: 'inactive L1 table',
    offset: l1Offset,
    lengthBytes: l1Bytes,
  }));
  return [{ what: 'snapshot table', offset, lengthBytes }, ...inactive];
}

/**
 * The disk as it was then, in a header's terms. Errors: limit, corrupt when its L1 table cannot be where the entry says;
 * QEMU's words.
 */
export function diskOf(
  { l1Offset, l1Entries, sizeBytes }: SnapshotEntry,
  header: Header,
): Pick<Header, 'l1Offset' | 'l1Entries' | 'sizeBytes'> {
  const bytes = l1Entries * ENTRY_BYTES;
  if (bytes > MAX_L1_BYTES) throw new BlockError('limit', 'Snapshot L1 table too large', { errno: 'EFBIG' });
  if (l1Offset % header.clusterBytes !== 0 || !Number.isSafeInteger(l1Offset + bytes))
    throw new BlockError('corrupt', 'Snapshot L1 table offset invalid', { errno: 'EINVAL' });
  const size = diskBytesOf({ sizeBytes }, header);
  if (size > MAX_IMAGE_BYTES) throw new BlockError('limit', 'Image is too big', { errno: 'EFBIG' });
  return { l1Offset, l1Entries, sizeBytes: size };
}

/** How long the disk was then, as far as the entry is to be believed. */
export function diskBytesOf({ sizeBytes }: Pick<SnapshotEntry, 'sizeBytes'>, header: Header): number {
  return alignDown(sizeBytes ?? header.sizeBytes, SECTOR_BYTES);
}

/** QAPI's SnapshotInfo. */
export function snapshotInfo({ raw, id, name, vmStateBytes }: SnapshotEntry): { [key: string]: Json } {
  const clockNs = raw.readBigUInt64BE(24);
  const icount = raw.readUInt32BE(36) >= KNOWN_EXTRA_BYTES ? Number(raw.readBigInt64BE(56)) : -1;
  return {
    ...(icount !== -1 && { icount }),
    'vm-clock-nsec': Number(clockNs % NS_PER_SECOND),
    name,
    'date-sec': raw.readUInt32BE(16),
    'date-nsec': raw.readUInt32BE(20),
    'vm-clock-sec': Number(clockNs / NS_PER_SECOND),
    id,
    'vm-state-size': vmStateBytes,
  };
}
