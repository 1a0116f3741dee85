import { alignDown } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';
import {
  MAX_BACKING_NAME_BYTES,
  MAX_IMAGE_BYTES,
  MAX_L1_BYTES,
  MAX_REFTABLE_BYTES,
  MiB,
} from '../../../base/limits.js';
import {
  ExtensionType,
  featureNames,
  findExtension,
  type HeaderExtension,
  parseExtensions,
} from './header-extensions.js';
import { L2Layout } from './l2-layout.js';
import { AUTOCLEAR_RAW_DATA, ENTRY_BYTES, Incompatible, MAGIC, readU64, SECTOR_BYTES } from './layout.js';

export const V2_HEADER_BYTES = 72;
export const V3_HEADER_BYTES = 104;
/** The 104 bytes of version 3, then compression_type and its padding. */
export const NEW_HEADER_BYTES = 112;
const MAX_CLUSTER_BITS = 21;
const MIN_CLUSTER_BITS = 9;
/** A subcluster is a sector at least. */
const MIN_EXTENDED_CLUSTER_BITS = 14;
/** QEMU's bound on internal snapshots. */
export const MAX_SNAPSHOTS = 65536;

/** Values of the field that says how guest data is encrypted. */
export const EncryptionMethod = { aes: 1, luks: 2 } as const;
/** Of the extension that says where a LUKS header is. */
const ENCRYPTION_BYTES = 16;
/** More than any cipher's key slots take. */
const MAX_ENCRYPTION_BYTES = 64 * MiB;

/** Where the fields that change in place are. */
export const FieldOffset = {
  backingOffset: 8,
  backingSize: 16,
  size: 24,
  encryption: 32,
  l1Entries: 36,
  l1Offset: 40,
  refcountTableOffset: 48,
  refcountTableClusters: 56,
  snapshotCount: 60,
  snapshotsOffset: 64,
  incompatible: 72,
  compatible: 80,
  autoclear: 88,
  refcountOrder: 96,
  headerBytes: 100,
} as const;

/** A header that was checked; sizes in bytes unless named otherwise. */
export interface Header {
  version: 2 | 3;
  clusterBits: number;
  clusterBytes: number;
  sizeBytes: number;
  l1Entries: number;
  l1Offset: number;
  refcountTableOffset: number;
  refcountTableClusters: number;
  refcountOrder: number;
  snapshotCount: number;
  snapshotsOffset: number;
  incompatible: bigint;
  compatible: bigint;
  autoclear: bigint;
  headerBytes: number;
  compressionType: number;
  backingOffset: number;
  backing: { filename: string; format?: string } | undefined;
  extensions: HeaderExtension[];
  encryption: EncryptionHeader | undefined;
}

/** How guest data is encrypted; of LUKS, where its header and key slots are. */
export type EncryptionHeader = { format: 'aes' } | { format: 'luks'; offset: number; lengthBytes: number };

/** How the entries of its L2 tables lie. */
export function layoutOf({ incompatible }: Pick<Header, 'incompatible'>): L2Layout {
  return new L2Layout({
    isExtended: (incompatible & Incompatible.extendedL2) !== 0n,
    hasDataFile: (incompatible & Incompatible.externalDataFile) !== 0n,
  });
}

/** The file that has the guest's data, as the image names it; undefined: the image has it. */
export function dataFileOf(header: Header): { name: string | undefined; isRaw: boolean } | undefined {
  if ((header.incompatible & Incompatible.externalDataFile) === 0n) return undefined;
  const name = findExtension(header.extensions, ExtensionType.dataFile);
  return {
    name: (name && untilNul(name)) || undefined,
    isRaw: (header.autoclear & AUTOCLEAR_RAW_DATA) !== 0n,
  };
}

export function l1EntriesFor(sizeBytes: number, clusterBytes: number, l2: L2Layout): number {
  return Math.ceil(sizeBytes / l2.coverageBytes(clusterBytes));
}

/** Cluster size that the first bytes of an image name, for how much to read. Errors as parseHeader's. */
export function headerClusterBytes(start: Buffer): number {
  if (start.length < V2_HEADER_BYTES || start.readUInt32BE(0) !== MAGIC)
    throw new BlockError('invalid', 'Image is not in qcow2 format');
  const version = start.readUInt32BE(4);
  if (version !== 2 && version !== 3)
    throw new BlockError('unsupported', `Unsupported qcow2 version ${version}`);
  const clusterBits = start.readUInt32BE(20);
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS)
    throw new BlockError('unsupported', `Unsupported cluster size: 2^${clusterBits}`);
  return 2 ** clusterBits;
}

/**
 * Parses and checks the header in the first cluster of an image (qcow2 specification, "Header"). Tables may lie behind
 * the end of the file, where zeroes are. For a check there may be no refcount table, which is made anew. Errors: invalid (no qcow2), unsupported (named), corrupt, limit; QEMU's words.
 */
export function parseHeader(cluster: Buffer, forCheck = false): Header {
  const clusterBytes = headerClusterBytes(cluster);
  const version = cluster.readUInt32BE(4) === 2 ? 2 : 3;
  const v3 = version === 3;
  const headerBytes = v3 ? readHeaderLength(cluster, clusterBytes) : V2_HEADER_BYTES;
  if (cluster.readBigUInt64BE(FieldOffset.size) > MAX_IMAGE_BYTES)
    throw new BlockError('limit', 'Image is too big');
  const exactBytes = readU64(cluster, FieldOffset.size, 'Image size');
  const header: Header = {
    version,
    clusterBits: cluster.readUInt32BE(20),
    clusterBytes,
    // The disk of a foreign image whose size ends within a sector ends before that, as QEMU has it.
    sizeBytes: alignDown(exactBytes, SECTOR_BYTES),
    l1Entries: cluster.readUInt32BE(FieldOffset.l1Entries),
    l1Offset: readU64(cluster, FieldOffset.l1Offset, 'Active L1 table offset'),
    refcountTableOffset: readU64(cluster, FieldOffset.refcountTableOffset, 'Reference count table offset'),
    refcountTableClusters: cluster.readUInt32BE(FieldOffset.refcountTableClusters),
    refcountOrder: v3 ? cluster.readUInt32BE(96) : 4,
    snapshotCount: cluster.readUInt32BE(60),
    snapshotsOffset: readU64(cluster, 64, 'Snapshot table offset'),
    incompatible: v3 ? cluster.readBigUInt64BE(FieldOffset.incompatible) : 0n,
    compatible: v3 ? cluster.readBigUInt64BE(80) : 0n,
    autoclear: v3 ? cluster.readBigUInt64BE(FieldOffset.autoclear) : 0n,
    headerBytes,
    compressionType: headerBytes > V3_HEADER_BYTES ? (cluster[V3_HEADER_BYTES] ?? 0) : 0,
    backingOffset: readU64(cluster, FieldOffset.backingOffset, 'Backing file offset'),
    backing: undefined,
    extensions: [],
    encryption: undefined,
  };
  readVariablePart(cluster, header);
  checkFeatures(header);
  header.encryption = encryptionOf(header, cluster.readUInt32BE(FieldOffset.encryption));
  const { refcountTableOffset, refcountTableClusters } = header;
  const hasRefcounts = refcountTableOffset > 0 && refcountTableClusters > 0;
  // None is shorter than any: what a check counts is all missing there.
  if (forCheck && !hasRefcounts) Object.assign(header, { refcountTableOffset: 0, refcountTableClusters: 0 });
  else checkRefcountTable(header);
  checkTables(header, exactBytes);
  return header;
}

function readHeaderLength(cluster: Buffer, clusterBytes: number): number {
  const length = cluster.length < V3_HEADER_BYTES ? 0 : cluster.readUInt32BE(100);
  if (length < V3_HEADER_BYTES) throw new BlockError('corrupt', 'qcow2 header too short');
  if (length > clusterBytes || length > cluster.length)
    throw new BlockError('corrupt', 'qcow2 header exceeds cluster size');
  if (length % 8 !== 0) throw new BlockError('corrupt', 'qcow2 header length is not a multiple of 8');
  return length;
}

function readVariablePart(cluster: Buffer, header: Header): void {
  const { backingOffset, clusterBytes } = header;
  if (backingOffset > clusterBytes || (backingOffset > 0 && backingOffset < header.headerBytes))
    throw new BlockError('corrupt', 'Invalid backing file offset');
  const extensionsEnd = Math.min(cluster.length, backingOffset > 0 ? backingOffset : clusterBytes);
  // A file cut inside its header cluster reads as zeroes there, which ends the extensions.
  header.extensions = parseExtensions(cluster, header.headerBytes, extensionsEnd);
  if (backingOffset === 0) return;
  const length = cluster.readUInt32BE(FieldOffset.backingSize);
  if (length > Math.min(MAX_BACKING_NAME_BYTES, clusterBytes - backingOffset))
    throw new BlockError('corrupt', 'Backing file name too long');
  if (backingOffset + length > cluster.length)
    throw new BlockError('corrupt', 'Backing file name lies outside the file');
  const filename = untilNul(cluster.subarray(backingOffset, backingOffset + length));
  if (filename === '') return;
  header.backing = { filename };
  const format = findExtension(header.extensions, ExtensionType.backingFormat);
  if (format) header.backing.format = untilNul(format);
}

/** What is behind a NUL is no part of a name, whatever its length says. */
function untilNul(bytes: Buffer): string {
  return bytes.toString('utf8').split('\0', 1)[0] ?? '';
}

/** Errors: unsupported, corrupt. */
function encryptionOf({ extensions, clusterBytes }: Header, method: number): EncryptionHeader | undefined {
  if (method === 0) return undefined;
  if (method === EncryptionMethod.aes) return { format: 'aes' };
  if (method !== EncryptionMethod.luks)
    throw new BlockError('unsupported', `Unsupported encryption method ${method}`);
  const place = findExtension(extensions, ExtensionType.encryption);
  if (place?.length !== ENCRYPTION_BYTES)
    throw new BlockError(
      'corrupt',
      `CRYPTO header extension size ${place?.length ?? 0}, but expected size 16`,
    );
  const offset = readU64(place, 0, 'Encryption header offset');
  const lengthBytes = readU64(place, 8, 'Encryption header length');
  if (offset % clusterBytes !== 0)
    throw new BlockError(
      'corrupt',
      `Encryption header offset '${offset}' is not a multiple of cluster size '${clusterBytes}'`,
    );
  if (offset < clusterBytes || lengthBytes > MAX_ENCRYPTION_BYTES)
    throw new BlockError('corrupt', 'Encryption header offset invalid', { offset });
  return { format: 'luks', offset, lengthBytes };
}

function checkFeatures(header: Header): void {
  const unknown = unknownFeatures(header);
  if (unknown.length > 0)
    throw new BlockError('unsupported', `Unsupported qcow2 feature(s): ${unknown.join(', ')}`);
  const isExtended = (header.incompatible & Incompatible.extendedL2) !== 0n;
  if (isExtended && header.clusterBits < MIN_EXTENDED_CLUSTER_BITS)
    throw new BlockError('unsupported', `Unsupported cluster size: 2^${header.clusterBits}`);
  if (header.refcountOrder > 6)
    throw new BlockError('corrupt', 'Reference count entry width too large; may not exceed 64 bits');
  if (header.compressionType > 1)
    throw new BlockError('unsupported', `qcow2: unknown compression type: ${header.compressionType}`);
  const nonDefault = (header.incompatible & Incompatible.compressionType) !== 0n;
  if (nonDefault !== header.compressionType > 0) {
    const must = nonDefault ? 'must not be set' : 'must be set';
    throw new BlockError('corrupt', `qcow2: Compression type incompatible feature bit ${must}`);
  }
  // Only the bit that names the data file can be lost: what the tables say are places in that one.
  const isRaw = (header.autoclear & AUTOCLEAR_RAW_DATA) !== 0n;
  if (isRaw && (header.incompatible & Incompatible.externalDataFile) === 0n)
    throw new BlockError('corrupt', 'data-file-raw requires a data file');
}

/** By the names that the image has for them; those without one together, as a mask. */
function unknownFeatures(header: Header): string[] {
  const names: string[] = [];
  const table = featureNames(findExtension(header.extensions, ExtensionType.featureNames), 0);
  let nameless = 0n;
  for (let bit = 5; bit < 64; bit++) {
    const mask = header.incompatible & (1n << BigInt(bit));
    const name = table.get(bit);
    if (mask !== 0n && name !== undefined) names.push(name);
    else nameless |= mask;
  }
  if (nameless !== 0n) names.push(`Unknown incompatible feature: ${nameless.toString(16)}`);
  return names;
}

/** `exactBytes`: the disk's size as the header has it, for which the L1 table is made. */
function checkTables(header: Header, exactBytes: number): void {
  const { clusterBytes } = header;
  if (header.sizeBytes > MAX_IMAGE_BYTES) throw new BlockError('limit', 'Image is too big');
  const refcountBytes = header.refcountTableClusters * clusterBytes;
  if (header.snapshotCount > 0) checkTable('Snapshot table', header, header.snapshotsOffset);
  const l1Bytes = header.l1Entries * ENTRY_BYTES;
  if (l1Bytes > MAX_L1_BYTES) throw new BlockError('limit', 'Active L1 table too large');
  if (header.l1Entries < l1EntriesFor(exactBytes, clusterBytes, layoutOf(header)))
    throw new BlockError('corrupt', 'L1 table is too small');
  if (l1Bytes === 0) return;
  checkTable('Active L1 table', header, header.l1Offset);
  const apart =
    header.l1Offset + l1Bytes <= header.refcountTableOffset ||
    header.refcountTableOffset + refcountBytes <= header.l1Offset;
  if (!apart) throw new BlockError('corrupt', 'Active L1 table overlaps with the reference count table');
}

export function noRefcountTable(): BlockError {
  return new BlockError('corrupt', 'Image does not contain a reference count table');
}

function checkRefcountTable(header: Header): void {
  const { refcountTableOffset, refcountTableClusters, clusterBytes } = header;
  if (refcountTableClusters === 0) throw noRefcountTable();
  if (refcountTableClusters * clusterBytes > MAX_REFTABLE_BYTES)
    throw new BlockError('limit', 'Reference count table too large');
  checkTable('Reference count table', header, refcountTableOffset);
}

/** A table must be aligned and lie behind the header cluster. */
function checkTable(name: string, header: Header, offset: number): void {
  if (offset % header.clusterBytes !== 0 || offset < header.clusterBytes)
    throw new BlockError('corrupt', `${name} offset invalid`, { offset });
}
