import { alignUp } from '../../../base/align.js';
import type { ChildIo } from '../../../block/driver.js';
import { readPadded } from '../check/held.js';
import { type BitmapsExtension, rawEntries } from '../disk/bitmap-directory.js';
import type { Header } from '../disk/header.js';
import { layoutOf } from '../disk/header.js';
import type { L2Layout } from '../disk/l2-layout.js';
import { ClusterKind, ENTRY_BYTES, entryOffset, writeOffset, writeU64 } from '../disk/layout.js';
import { readSnapshots, type SnapshotTable } from '../disk/snapshots.js';
import { readBitmapDirectory } from '../features/bitmap-directory.js';

/** What an entry of a table names. */
export interface Pointer {
  /** A cluster of the guest's, a cluster of ours, a table of contiguous clusters, or compressed data. */
  kind: 'none' | 'data' | 'metadata' | 'table' | 'compressed';
  hostOffset: number;
  /** Of what it names: a cluster, unless it is compressed or a longer table. */
  lengthBytes: number;
}

/** A table of an image as it is on disk, whose entries say where other parts of the image are. */
export abstract class PointerTable {
  readonly hostOffset: number;
  readonly bytes: Buffer;

  constructor(hostOffset: number, bytes: Buffer) {
    this.hostOffset = hostOffset;
    this.bytes = bytes;
  }

  abstract readonly entries: number;
  abstract read(index: number, into: Pointer): void;
  /** The entry names that place, and says the rest as before. Answers where in the table it lies. */
  abstract write(index: number, hostOffset: number): number;
}

/** An L1 table or a bitmap's. */
class EntryTable extends PointerTable {
  readonly #clusterBytes: number;

  constructor(hostOffset: number, bytes: Buffer, clusterBytes: number) {
    super(hostOffset, bytes);
    this.#clusterBytes = clusterBytes;
  }

  get entries(): number {
    return this.bytes.length / ENTRY_BYTES;
  }

  read(index: number, into: Pointer): void {
    into.hostOffset = entryOffset(this.bytes, index);
    into.kind = into.hostOffset === 0 ? 'none' : 'metadata';
    into.lengthBytes = this.#clusterBytes;
  }

  write(index: number, hostOffset: number): number {
    writeOffset(this.bytes, index * ENTRY_BYTES, hostOffset);
    return index * ENTRY_BYTES;
  }
}

class L2Table extends PointerTable {
  readonly #layout: L2Layout;
  readonly #clusterBits: number;

  constructor(hostOffset: number, bytes: Buffer, layout: L2Layout, clusterBits: number) {
    super(hostOffset, bytes);
    this.#layout = layout;
    this.#clusterBits = clusterBits;
  }

  get entries(): number {
    return this.bytes.length / this.#layout.entryBytes;
  }

  read(index: number, into: Pointer): void {
    const layout = this.#layout;
    const kind = layout.kind(this.bytes, index);
    into.kind = 'none';
    if (kind === ClusterKind.compressed) {
      const range = layout.compressedRange(this.bytes, index, this.#clusterBits);
      into.kind = 'compressed';
      into.hostOffset = range.hostOffset;
      into.lengthBytes = range.lengthBytes;
    } else if (kind === ClusterKind.data || kind === ClusterKind.zeroAllocated) {
      into.kind = 'data';
      into.hostOffset = layout.hostOffset(this.bytes, index);
      into.lengthBytes = this.bytes.length;
    }
  }

  write(index: number, hostOffset: number): number {
    const layout = this.#layout;
    const at = index * layout.entryBytes;
    if (layout.kind(this.bytes, index) === ClusterKind.compressed) {
      const { lengthBytes } = layout.compressedRange(this.bytes, index, this.#clusterBits);
      layout.writeCompressed(this.bytes, index, { hostOffset, lengthBytes }, this.#clusterBits);
    } else writeOffset(this.bytes, at, hostOffset);
    return at;
  }
}

/** Entries of any length, each of which begins with the place of a table: of snapshots, or of bitmaps. */
class Directory extends PointerTable {
  readonly #tables: ReadonlyArray<{ at: number; lengthBytes: number }>;

  /** Where its entries begin, and how long the tables are that they name. */
  constructor(hostOffset: number, bytes: Buffer, tables: ReadonlyArray<{ at: number; lengthBytes: number }>) {
    super(hostOffset, bytes);
    this.#tables = tables;
  }

  get entries(): number {
    return this.#tables.length;
  }

  read(index: number, into: Pointer): void {
    const { at = 0, lengthBytes = 0 } = this.#tables[index] ?? {};
    into.kind = lengthBytes === 0 ? 'none' : 'table';
    into.hostOffset = entryOffset(this.bytes, at / ENTRY_BYTES);
    into.lengthBytes = lengthBytes;
  }

  write(index: number, hostOffset: number): number {
    const at = this.#tables[index]?.at ?? 0;
    writeU64(this.bytes, at, hostOffset);
    return at;
  }
}

/** All that an image's header names, beside its refcounts. */
export interface Structure {
  readonly header: Header;
  readonly snapshots: SnapshotTable;
  readonly bitmaps: BitmapsExtension | undefined;
}

/** Errors: those of reading; kind corrupt, limit. */
export async function readStructure(file: ChildIo, header: Header): Promise<Structure> {
  const snapshots = await readSnapshots(file, header);
  const { extension: bitmaps } = await readBitmapDirectory(file, header);
  return { header, snapshots, bitmaps };
}

/** Contiguous tables that the header itself names. */
export function tablesOfHeader({
  header,
  snapshots,
  bitmaps,
}: Structure): Array<{ hostOffset: number; lengthBytes: number }> {
  return [
    { hostOffset: header.l1Offset, lengthBytes: header.l1Entries * ENTRY_BYTES },
    { hostOffset: header.snapshotsOffset, lengthBytes: snapshots.lengthBytes },
    { hostOffset: bitmaps?.directoryOffset ?? 0, lengthBytes: bitmaps?.directoryBytes ?? 0 },
  ].filter(({ lengthBytes }) => lengthBytes > 0);
}

/**
 * Each table of a sound image once, with what it says when it is given: those that name tables before those that they
 * name. Errors: those of reading.
 */
export async function* pointerTables(file: ChildIo, structure: Structure): AsyncGenerator<PointerTable> {
  const { header, snapshots } = structure;
  const read = async (hostOffset: number, lengthBytes: number): Promise<Buffer> => {
    const bytes = Buffer.alloc(lengthBytes);
    await readPadded(file, hostOffset, bytes);
    return bytes;
  };
  if (snapshots.entries.length > 0)
    yield snapshotDirectory(structure, await read(header.snapshotsOffset, snapshots.lengthBytes));
  yield* bitmapTables(structure, read);
  const l1Tables = [
    { l1Offset: header.l1Offset, l1Entries: header.l1Entries },
    ...snapshots.entries.filter(({ l1Entries }) => l1Entries > 0),
  ];
  const layout = layoutOf(header);
  const seen = new Set<number>();
  for (const { l1Offset, l1Entries } of l1Tables) {
    const l1 = await read(l1Offset, l1Entries * ENTRY_BYTES);
    const places = Array.from({ length: l1Entries }, (_, index) => entryOffset(l1, index));
    if (!seen.has(l1Offset)) yield new EntryTable(l1Offset, l1, header.clusterBytes);
    seen.add(l1Offset);
    for (const place of places) {
      if (place === 0 || seen.has(place)) continue;
      seen.add(place);
      yield new L2Table(place, await read(place, header.clusterBytes), layout, header.clusterBits);
    }
  }
}

function snapshotDirectory({ header, snapshots }: Structure, bytes: Buffer): PointerTable {
  let at = 0;
  const tables = snapshots.entries.map(({ raw, l1Entries }) => {
    const table = { at, lengthBytes: l1Entries * ENTRY_BYTES };
    at += alignUp(raw.length, 8);
    return table;
  });
  return new Directory(header.snapshotsOffset, bytes, tables);
}

async function* bitmapTables(
  { header, bitmaps }: Structure,
  read: (hostOffset: number, lengthBytes: number) => Promise<Buffer>,
): AsyncGenerator<PointerTable> {
  if (!bitmaps) return;
  const { directoryOffset, directoryBytes } = bitmaps;
  const bytes = await read(directoryOffset, directoryBytes);
  const tables = [...rawEntries(bytes)].map(({ at, tableOffset, tableEntries }) => ({
    at,
    hostOffset: Number(tableOffset),
    lengthBytes: tableEntries * ENTRY_BYTES,
  }));
  yield new Directory(directoryOffset, bytes, tables);
  for (const table of tables)
    yield new EntryTable(
      table.hostOffset,
      await read(table.hostOffset, table.lengthBytes),
      header.clusterBytes,
    );
}
