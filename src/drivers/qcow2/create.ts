import { alignUp, divideRoundUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { MAX_L1_BYTES, MAX_REFTABLE_BYTES } from '../../base/limits.js';
import type { ChildIo, NewImageContext } from '../../block/driver.js';
import { takeFileSpace } from '../../block/new-space.js';
import type { Host } from '../../host/host.js';
import { LUKS_CREATE_MEMBERS, type NewLuks } from '../../schema/encryption-options.js';
import { struct } from '../../schema/types.js';
import { layoutOf } from '../encryption/luks-header.js';
import { cipherOf, createVolume } from '../encryption/luks-volume.js';
import { randomUuid, uuidText } from '../tables/new-image.js';
import { encryptionStorage, noSecret } from './features/encryption.js';
import { checkNewImage, type NewQcow2, notAssigned } from './create-options.js';
import {
  defaultFeatureNames,
  encodeExtensions,
  ExtensionType,
  type HeaderExtension,
  namesThatFit,
} from './disk/header-extensions.js';
import {
  EncryptionMethod,
  FieldOffset,
  l1EntriesFor,
  NEW_HEADER_BYTES,
  V2_HEADER_BYTES,
  V3_HEADER_BYTES,
} from './disk/header.js';
import { L2Layout } from './disk/l2-layout.js';
import {
  AUTOCLEAR_RAW_DATA,
  COMPATIBLE_LAZY_REFCOUNTS,
  ENTRY_BYTES,
  Incompatible,
  MAGIC,
  SECTOR_BYTES,
  writeEntry,
  writeU64,
} from './disk/layout.js';
import { writeRefcount } from './space/refcounts.js';

/** What the header and the tables of a new image depend on. */
interface Shape {
  sizeBytes: number;
  version: 2 | 3;
  clusterBytes: number;
  refcountBits: number;
  lazyRefcounts: boolean;
  isZstd: boolean;
  l2: L2Layout;
  dataFile: { name: string; isRaw: boolean } | undefined;
  preallocation: NewQcow2['options']['preallocation'];
  backingFile: string | undefined;
  backingFormat: string | undefined;
  /** Of LUKS, with the bytes of its header and key slots. */
  encryption: { format: 'aes' } | { format: 'luks'; options: NewLuks; lengthBytes: number } | undefined;
}

export const TOO_LARGE_TEXT = 'Failed to grow the L1 table: File too large';

function shapeOf({ sizeBytes, backingFile, backingFormat, dataFile, options }: NewQcow2): Shape {
  const isRaw = options['data-file-raw'];
  const { preallocation } = options;
  return {
    sizeBytes,
    version: options.version === 'v2' ? 2 : 3,
    clusterBytes: options['cluster-size'],
    refcountBits: options['refcount-bits'],
    lazyRefcounts: options['lazy-refcounts'],
    isZstd: options['compression-type'] === 'zstd',
    l2: new L2Layout({ isExtended: options['extended-l2'], hasDataFile: dataFile !== undefined }),
    dataFile: dataFile && { name: dataFile.filename, isRaw },
    // What the data file holds is the disk's from the beginning.
    preallocation: isRaw && preallocation === 'off' ? 'metadata' : preallocation,
    backingFile,
    backingFormat,
    encryption: encryptionOf(options),
  };
}

function encryptionOf({ encrypt }: NewQcow2['options']): Shape['encryption'] {
  if (!encrypt) return undefined;
  if (encrypt.format === 'qcow') return { format: 'aes' };
  const options = struct('', LUKS_CREATE_MEMBERS).fill(encrypt);
  return { format: 'luks', options, lengthBytes: layoutOf(cipherOf(options)).payloadOffset };
}

/** Of LUKS, header and key slots. */
export function encryptionHeaderBytes(options: NewQcow2['options']): number {
  const encryption = encryptionOf(options);
  return encryption?.format === 'luks' ? encryption.lengthBytes : 0;
}

/** Where the parts of a new image are, in clusters: header, refcount table, refcount blocks, L1 table, L2 tables, encryption header, data. */
interface Layout {
  refcountTableClusters: number;
  refcountBlocks: number;
  l1Clusters: number;
  l1Entries: number;
  l2Tables: number;
  encryptionClusters: number;
  /** First cluster of data; all before it is metadata. */
  dataStart: number;
  totalClusters: number;
}

/** What an encrypted image is made with. */
interface Maker extends Pick<NewImageContext, 'secret'> {
  readonly host: Host;
}

/**
 * Writes a new image into a file; durable on return. Until the last step the file is no qcow2 image, so that a
 * crash leaves either the new image or none. Errors: invalid, unsupported, limit.
 */
export async function createQcow2(file: ChildIo, image: NewQcow2, maker?: Maker): Promise<void> {
  checkNewImage(image);
  // Before anything of an older image is gone.
  const secret = image.options.encrypt?.['key-secret'];
  const password = secret === undefined ? undefined : maker?.secret(secret);
  const o = shapeOf(image);
  const layout = planLayout(o);
  const header = encodeHeader(o, layout);
  const { clusterBytes } = o;
  if (file.lengthBytes > 0) {
    // Formatting over an older image: its header must not point at tables that are about to change.
    await file.write(0, Buffer.alloc(Math.min(SECTOR_BYTES, file.lengthBytes)), 0);
    await file.flush();
  }
  // Of an older image, the rest of the last cluster too.
  const tablesEnd = layout.dataStart * clusterBytes;
  await file.writeZeroes(0, Math.max(endOfTables(o, layout), Math.min(file.lengthBytes, tablesEnd)), 0);
  await file.write(clusterBytes, encodeRefcountTable(o, layout), 0);
  await writeRefcountBlocks(file, o, layout);
  if (layout.l2Tables > 0) await writeL2Tables(file, o, layout);
  await provideData(file, image.dataFile?.io, o, layout);
  if (o.encryption?.format === 'luks') {
    const storage = encryptionStorage(file, encryptionPlace(o.encryption, o, layout));
    if (!maker || !password) throw noSecret();
    const { host } = maker;
    await createVolume(host, storage, o.encryption.options, { password, uuid: uuidText(randomUuid(host)) });
  }
  if (header.length > SECTOR_BYTES) await file.write(SECTOR_BYTES, header.subarray(SECTOR_BYTES), 0);
  await image.dataFile?.io.flush();
  await file.flush();
  await file.write(0, header.subarray(0, SECTOR_BYTES), 0);
  await file.flush();
}

/** How long a file without data is: as QEMU makes it, whose L1 table comes last, in whole sectors. */
function endOfTables(
  o: Shape,
  { dataStart, l1Clusters, l1Entries, encryptionClusters, l2Tables }: Layout,
): number {
  if (encryptionClusters > 0 || l2Tables > 0) return dataStart * o.clusterBytes;
  return (dataStart - l1Clusters) * o.clusterBytes + alignUp(l1Entries * ENTRY_BYTES, SECTOR_BYTES);
}

function planLayout(o: Shape): Layout {
  const l1Entries = l1EntriesFor(o.sizeBytes, o.clusterBytes, o.l2);
  if (l1Entries * ENTRY_BYTES > MAX_L1_BYTES) throw tooLarge();
  const l1Clusters = divideRoundUp(l1Entries * ENTRY_BYTES, o.clusterBytes);
  const l2Tables = o.preallocation === 'off' ? 0 : l1Entries;
  const dataClusters = l2Tables > 0 && !o.dataFile ? divideRoundUp(o.sizeBytes, o.clusterBytes) : 0;
  const encryptionBytes = o.encryption?.format === 'luks' ? o.encryption.lengthBytes : 0;
  const encryptionClusters = divideRoundUp(encryptionBytes, o.clusterBytes);
  const perBlock = (o.clusterBytes * 8) / o.refcountBits;
  const perTable = o.clusterBytes / ENTRY_BYTES;
  let refcountBlocks = 1;
  for (;;) {
    const refcountTableClusters = divideRoundUp(refcountBlocks, perTable);
    if (refcountTableClusters * o.clusterBytes > MAX_REFTABLE_BYTES) throw tooLarge();
    const tables = refcountTableClusters + refcountBlocks + l1Clusters + l2Tables;
    const dataStart = 1 + tables + encryptionClusters;
    const totalClusters = dataStart + dataClusters;
    const needed = divideRoundUp(totalClusters, perBlock);
    if (needed <= refcountBlocks)
      return {
        refcountTableClusters,
        refcountBlocks,
        l1Clusters,
        l1Entries,
        l2Tables,
        encryptionClusters,
        dataStart,
        totalClusters,
      };
    refcountBlocks = needed;
  }
}

function tooLarge(): BlockError {
  return new BlockError('limit', `Could not resize image: ${TOO_LARGE_TEXT}`, { errno: 'EFBIG' });
}

/** The L1 table, and L2 tables in which every cluster of the disk has its place. */
async function writeL2Tables(file: ChildIo, o: Shape, layout: Layout): Promise<void> {
  const { clusterBytes, l2 } = o;
  const l1 = Buffer.alloc(layout.l1Entries * ENTRY_BYTES);
  const first = layout.dataStart - layout.encryptionClusters - layout.l2Tables;
  const clusters = divideRoundUp(o.sizeBytes, clusterBytes);
  const perTable = l2.entriesIn(clusterBytes);
  // What has a place but no data shows the backing file.
  const isEmpty = o.backingFile !== undefined;
  for (let i = 0; i < layout.l2Tables; i++) {
    writeEntry(l1, i, (first + i) * clusterBytes, true);
    const table = Buffer.alloc(clusterBytes);
    const count = Math.min(perTable, clusters - i * perTable);
    for (let index = 0; index < count; index++) {
      const cluster = i * perTable + index;
      const host = (o.dataFile ? cluster : layout.dataStart + cluster) * clusterBytes;
      l2.writeData(table, index, host, true);
      if (isEmpty) l2.setUnits(table, index, 0, l2.unitsPerCluster, 'none');
    }
    await file.write((first + i) * clusterBytes, table, 0);
  }
  await file.write((first - layout.l1Clusters) * clusterBytes, l1, 0);
}

/** Makes the file that has the data as long as it is to be, with what space was asked for. */
async function provideData(
  file: ChildIo,
  dataFile: ChildIo | undefined,
  o: Shape,
  layout: Layout,
): Promise<void> {
  const start = dataFile ? 0 : layout.dataStart * o.clusterBytes;
  const end = dataFile ? o.sizeBytes : layout.totalClusters * o.clusterBytes;
  const target = dataFile ?? file;
  // A file of tables alone ends with them.
  if (target === file && o.preallocation === 'off') return;
  if (end > target.lengthBytes) await target.truncate(end);
  // Tables have been made for what has them.
  if (o.preallocation !== 'metadata') await takeFileSpace(target, start, end, o.preallocation);
}

function encryptionPlace(
  { lengthBytes }: { lengthBytes: number },
  { clusterBytes }: Shape,
  { dataStart, encryptionClusters }: Layout,
): { offset: number; lengthBytes: number } {
  return { offset: (dataStart - encryptionClusters) * clusterBytes, lengthBytes };
}

function encodeHeader(o: Shape, layout: Layout): Buffer {
  const headerBytes = o.version === 2 ? V2_HEADER_BYTES : NEW_HEADER_BYTES;
  const extensions = chooseExtensions(o, layout, headerBytes);
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
  if (o.encryption) header.writeUInt32BE(EncryptionMethod[o.encryption.format], FieldOffset.encryption);
  header.writeUInt32BE(layout.l1Entries, FieldOffset.l1Entries);
  const l1Cluster = 1 + layout.refcountTableClusters + layout.refcountBlocks;
  writeU64(header, FieldOffset.l1Offset, l1Cluster * o.clusterBytes);
  writeU64(header, FieldOffset.refcountTableOffset, o.clusterBytes);
  header.writeUInt32BE(layout.refcountTableClusters, FieldOffset.refcountTableClusters);
  if (o.version === 2) return header;
  header.writeBigUInt64BE(incompatibleOf(o), FieldOffset.incompatible);
  header.writeBigUInt64BE(o.dataFile?.isRaw === true ? AUTOCLEAR_RAW_DATA : 0n, FieldOffset.autoclear);
  header.writeBigUInt64BE(o.lazyRefcounts ? COMPATIBLE_LAZY_REFCOUNTS : 0n, 80);
  header.writeUInt32BE(Math.log2(o.refcountBits), 96);
  header.writeUInt32BE(NEW_HEADER_BYTES, 100);
  header[V3_HEADER_BYTES] = o.isZstd ? 1 : 0;
  return header;
}

function incompatibleOf({ l2, isZstd }: Shape): bigint {
  return (
    (l2.hasDataFile ? Incompatible.externalDataFile : 0n) +
    (isZstd ? Incompatible.compressionType : 0n) +
    (l2.unitsPerCluster > 1 ? Incompatible.extendedL2 : 0n)
  );
}

/** The backing format, and as many feature names as leave the extensions inside the first sector. */
function chooseExtensions(o: Shape, layout: Layout, headerBytes: number): HeaderExtension[] {
  const extensions: HeaderExtension[] = [];
  if (o.backingFile !== undefined && o.backingFormat !== undefined)
    extensions.push({ type: ExtensionType.backingFormat, data: Buffer.from(o.backingFormat, 'utf8') });
  if (o.dataFile)
    extensions.push({ type: ExtensionType.dataFile, data: Buffer.from(o.dataFile.name, 'utf8') });
  if (o.encryption?.format === 'luks') {
    const { offset, lengthBytes } = encryptionPlace(o.encryption, o, layout);
    const data = Buffer.alloc(16);
    writeU64(data, 0, offset);
    writeU64(data, 8, lengthBytes);
    extensions.push({ type: ExtensionType.encryption, data });
  }
  const room =
    o.clusterBytes === SECTOR_BYTES
      ? SECTOR_BYTES - Buffer.byteLength(o.backingFile ?? '', 'utf8')
      : SECTOR_BYTES;
  if (o.version === 2) return extensions;
  const free = room - headerBytes - encodeExtensions(extensions).length;
  return [...extensions, ...namesThatFit(defaultFeatureNames(), free)];
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
