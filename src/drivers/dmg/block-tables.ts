import { BlockError, errnoError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { uint64 } from '../tables/read-bytes.js';

/** Universal Disk Image Format as libyal's "Mac OS disk image types" describes it; all numbers are big-endian. */
export const SECTOR_BYTES = 512;

const TABLE_HEADER_BYTES = 204;
const ENTRY_BYTES = 40;
const MAX_STORED_BYTES = 64 * MiB;
/** Of a chunk that is not zeroes. */
const MAX_SECTORS = (64 * MiB) / SECTOR_BYTES;
const RESOURCES_AT = 256;

/** What a block table says of a chunk. */
export const ChunkKind = {
  zero: 0,
  raw: 1,
  ignored: 2,
  adc: 0x80000004,
  zlib: 0x80000005,
  bzip2: 0x80000006,
  lzfse: 0x80000007,
  lzma: 0x80000008,
  comment: 0x7ffffffe,
  end: 0xffffffff,
} as const;

export interface TableEntry {
  readonly kind: number;
  /** On the disk. */
  readonly offset: number;
  readonly lengthBytes: number;
  /** In the data fork. */
  readonly place: number;
  readonly storedBytes: number;
}

/** The block tables in a property list: data elements that begin with "mish". */
export function tablesOfList(text: string): Buffer[] {
  return [...text.matchAll(/<data>([^<]*)<\/data>/g)]
    .map(([, data = '']) => Buffer.from(data, 'base64'))
    .filter(isTable);
}

/** The same in a resource fork, whose resources lie behind one another, each behind its length. */
export function tablesOfResources(fork: Buffer): Buffer[] {
  const tables: Buffer[] = [];
  const end = fork.length >= 12 ? RESOURCES_AT + fork.readUInt32BE(8) : 0;
  for (let at = RESOURCES_AT; at + 4 <= Math.min(end, fork.length);) {
    const length = fork.readUInt32BE(at);
    const resource = fork.subarray(at + 4, at + 4 + length);
    if (resource.length < length) throw errnoError('EINVAL');
    if (isTable(resource)) tables.push(resource);
    at += 4 + length;
  }
  return tables;
}

function isTable(bytes: Buffer): boolean {
  return bytes.toString('latin1', 0, 4) === 'mish' && bytes.length >= TABLE_HEADER_BYTES;
}

/** Errors: invalid. */
export function entriesOf(table: Buffer): TableEntry[] {
  const first = uint64(table, 8, false);
  const base = uint64(table, 24, false);
  const count = Math.floor((table.length - TABLE_HEADER_BYTES) / ENTRY_BYTES);
  const entries: TableEntry[] = [];
  for (let index = 0; index < count; index++) {
    const at = TABLE_HEADER_BYTES + index * ENTRY_BYTES;
    const kind = table.readUInt32BE(at);
    if (kind === ChunkKind.comment || kind === ChunkKind.end) continue;
    const [sector = 0, sectors = 0, place = 0, storedBytes = 0] = [8, 16, 24, 32].map((field) =>
      uint64(table, at + field, false),
    );
    const isZero = kind === ChunkKind.zero || kind === ChunkKind.ignored;
    const entry = {
      kind,
      offset: (first + sector) * SECTOR_BYTES,
      lengthBytes: sectors * SECTOR_BYTES,
      place: isZero ? 0 : base + place,
      storedBytes: isZero ? 0 : storedBytes,
    };
    if (storedBytes > MAX_STORED_BYTES) throw tooLarge('length', storedBytes, index, MAX_STORED_BYTES);
    if (!isZero && sectors > MAX_SECTORS) throw tooLarge('sector count', sectors, index, MAX_SECTORS);
    const ends = [entry.offset + entry.lengthBytes, entry.place + entry.storedBytes];
    if (!ends.every(Number.isSafeInteger)) throw errnoError('EINVAL');
    if (entry.lengthBytes > 0) entries.push(entry);
  }
  return entries;
}

function tooLarge(what: string, value: number, chunk: number, most: number): BlockError {
  const text = `${what} ${value} for chunk ${chunk} is larger than max (${most})`;
  return new BlockError('invalid', text, { errno: 'EINVAL' });
}
