import { divideRoundUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { MAX_L1_BYTES } from '../../base/limits.js';
import type { ChildIo } from '../../block/driver.js';
import { checkNewImage, type NewQcow2, notAssigned } from './create-options.js';
import {
  defaultFeatureNames,
  encodeExtensions,
  ExtensionType,
  type HeaderExtension,
} from './disk/header-extensions.js';
import { FieldOffset, l1EntriesFor, NEW_HEADER_BYTES, V2_HEADER_BYTES } from './disk/header.js';
import { STANDARD_L2 } from './disk/l2-layout.js';
import {
  COMPATIBLE_LAZY_REFCOUNTS,
  ENTRY_BYTES,
  MAGIC,
  SECTOR_BYTES,
  writeEntry,
  writeU64,
} from './disk/layout.js';
import { writeRefcount } from './space/refcounts.js';

/** What the header and the tables of an empty image depend on. */
interface Shape {
  sizeBytes: number;
  version: 2 | 3;
  clusterBytes: number;
  refcountBits: number;
  lazyRefcounts: boolean;
  backingFile: string | undefined;
  backingFormat: string | undefined;
}

function shapeOf({ sizeBytes, backingFile, backingFormat, options }: NewQcow2): Shape {
  return {
    sizeBytes,
    version: options.version === 'v2' ? 2 : 3,
    clusterBytes: options['cluster-size'],
    refcountBits: options['refcount-bits'],
    lazyRefcounts: options['lazy-refcounts'],
    backingFile,
    backingFormat,
  };
}

/** Where the parts of an empty image are, in clusters: header, refcount table, refcount blocks, L1 table. */
interface Layout {
  refcountTableClusters: number;
  refcountBlocks: number;
  l1Clusters: number;
  l1Entries: number;
  totalClusters: number;
}

/**
 * Writes an empty image into a file; durable on return. Until the last step the file is no qcow2 image, so that a
 * crash leaves either the new image or none. Errors: invalid, unsupported, limit.
 */
export async function createQcow2(file: ChildIo, image: NewQcow2): Promise<void> {
  checkNewImage(image);
  const o = shapeOf(image);
  const layout = planLayout(o);
  const header = encodeHeader(o, layout);
  const { clusterBytes } = o;
  if (file.lengthBytes > 0) {
    // Formatting over an older image: its header must not point at tables that are about to change.
    await file.write(0, Buffer.alloc(Math.min(SECTOR_BYTES, file.lengthBytes)), 0);
    await file.flush();
  }
  const totalBytes = layout.totalClusters * clusterBytes;
  await file.writeZeroes(0, totalBytes, 0);
  await file.write(clusterBytes, encodeRefcountTable(o, layout), 0);
  await writeRefcountBlocks(file, o, layout);
  if (header.length > SECTOR_BYTES) await file.write(SECTOR_BYTES, header.subarray(SECTOR_BYTES), 0);
  await file.flush();
  await file.write(0, header.subarray(0, SECTOR_BYTES), 0);
  await file.flush();
}

function planLayout(o: Shape): Layout {
  const l1Entries = l1EntriesFor(o.sizeBytes, o.clusterBytes, STANDARD_L2);
  if (l1Entries * ENTRY_BYTES > MAX_L1_BYTES)
    throw new BlockError('limit', 'Image is too big for this cluster size', { errno: 'EFBIG' });
  const l1Clusters = divideRoundUp(l1Entries * ENTRY_BYTES, o.clusterBytes);
  const perBlock = (o.clusterBytes * 8) / o.refcountBits;
  const perTable = o.clusterBytes / ENTRY_BYTES;
  let refcountBlocks = 1;
  for (;;) {
    const refcountTableClusters = divideRoundUp(refcountBlocks, perTable);
    const totalClusters = 1 + refcountTableClusters + refcountBlocks + l1Clusters;
    const needed = divideRoundUp(totalClusters, perBlock);
    if (needed <= refcountBlocks)
      return { refcountTableClusters, refcountBlocks, l1Clusters, l1Entries, totalClusters };
    refcountBlocks = needed;
  }
}

function encodeHeader(o: Shape, layout: Layout): Buffer {
  const headerBytes = o.version === 2 ? V2_HEADER_BYTES : NEW_HEADER_BYTES;
  const extensions = chooseExtensions(o, headerBytes);
  const area = encodeExtensions(extensions);
  const name = Buffer.from(o.backingFile ?? '', 'utf8');
  const nameAt = headerBytes + area.length;
  const total = nameAt + name.length;
  if (total > o.clusterBytes) throw notAssigned(o, 'ENOSPC');
  const header = Buffer.alloc(Math.max(total, SECTOR_BYTES));
  area.copy(header, headerBytes);
  name.copy(header, nameAt);
  header.writeUInt32BE(MAGIC, 0);
  header.writeUInt32BE(o.version, 4);
  if (name.length > 0) {
    writeU64(header, FieldOffset.backingOffset, nameAt);
    header.writeUInt32BE(name.length, FieldOffset.backingSize);
  }
  header.writeUInt32BE(Math.log2(o.clusterBytes), 20);
  writeU64(header, FieldOffset.size, o.sizeBytes);
  header.writeUInt32BE(layout.l1Entries, FieldOffset.l1Entries);
  const l1Cluster = 1 + layout.refcountTableClusters + layout.refcountBlocks;
  writeU64(header, FieldOffset.l1Offset, l1Cluster * o.clusterBytes);
  writeU64(header, FieldOffset.refcountTableOffset, o.clusterBytes);
  header.writeUInt32BE(layout.refcountTableClusters, FieldOffset.refcountTableClusters);
  if (o.version === 2) return header;
  header.writeBigUInt64BE(o.lazyRefcounts ? COMPATIBLE_LAZY_REFCOUNTS : 0n, 80);
  header.writeUInt32BE(Math.log2(o.refcountBits), 96);
  header.writeUInt32BE(NEW_HEADER_BYTES, 100);
  return header;
}

/** The backing format, and feature names where they leave the extensions inside the first sector. */
function chooseExtensions(o: Shape, headerBytes: number): HeaderExtension[] {
  const extensions: HeaderExtension[] = [];
  if (o.backingFile !== undefined && o.backingFormat !== undefined)
    extensions.push({ type: ExtensionType.backingFormat, data: Buffer.from(o.backingFormat, 'utf8') });
  const withNames = [...extensions, defaultFeatureNames()];
  const room =
    o.clusterBytes === SECTOR_BYTES
      ? SECTOR_BYTES - Buffer.byteLength(o.backingFile ?? '', 'utf8')
      : SECTOR_BYTES;
  const fits = headerBytes + encodeExtensions(withNames).length <= room;
  return o.version === 3 && fits ? withNames : extensions;
}

function encodeRefcountTable(o: Shape, layout: Layout): Buffer {
  const table = Buffer.alloc(layout.refcountTableClusters * o.clusterBytes);
  for (let i = 0; i < layout.refcountBlocks; i++) {
    writeEntry(table, i, (1 + layout.refcountTableClusters + i) * o.clusterBytes, false);
  }
  return table;
}

async function writeRefcountBlocks(file: ChildIo, o: Shape, layout: Layout): Promise<void> {
  const perBlock = (o.clusterBytes * 8) / o.refcountBits;
  const order = Math.log2(o.refcountBits);
  for (let index = 0; index < layout.refcountBlocks; index++) {
    const block = Buffer.alloc(o.clusterBytes);
    const used = Math.min(perBlock, layout.totalClusters - index * perBlock);
    for (let i = 0; i < used; i++) writeRefcount(block, i, order, 1);
    await file.write((1 + layout.refcountTableClusters + index) * o.clusterBytes, block, 0);
  }
}
