import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import type { DriverContext, DriverDescription } from '../../block/driver.js';
import type { Mapping } from '../../block/request.js';
import { BOCHS_OPTIONS } from '../../schema/blockdev-options.js';
import { EntryCache } from '../tables/entry-cache.js';
import { readBytes, uint64 } from '../tables/read-bytes.js';
import { readingPermissions, ReadOnlyImage, ReadOnlyMap } from '../tables/read-only-node.js';

/** A redolog as the Bochs user manual's appendix "Hard disk images" and its developers' guide have it; little-endian. */
const HEADER_BYTES = 512;
const SECTOR_BYTES = 512;
const VERSION_1 = 0x10000;
const VERSION_2 = 0x20000;
const UNALLOCATED = 0xffffffff;
/** Entries; as QEMU. */
const MAX_CATALOG = 0x100000;
const MAX_EXTENT_BYTES = 8 * MiB;

const FieldAt = {
  version: 64,
  headerBytes: 68,
  catalog: 72,
  bitmapBytes: 76,
  extentBytes: 80,
  diskBytesV1: 84,
  diskBytes: 88,
} as const;

interface BochsHeader {
  readonly catalogOffset: number;
  readonly extentBytes: number;
  /** Of the bitmap before an extent's data, which fills whole sectors. */
  readonly bitmapBytes: number;
  readonly diskBytes: number;
  /** Behind the catalog: the extents. */
  readonly dataOffset: number;
}

/** Texts are in fields of 32, 16 and 16 bytes. */
function isBochs(bytes: Buffer): boolean {
  if (bytes.length < FieldAt.diskBytesV1) return false;
  const field = (from: number, to: number): string => bytes.toString('latin1', from, to).split('\0')[0] ?? '';
  const version = bytes.readUInt32LE(FieldAt.version);
  return (
    field(0, 32) === 'Bochs Virtual HD Image' &&
    field(32, 48) === 'Redolog' &&
    field(48, 64) === 'Growing' &&
    (version === VERSION_1 || version === VERSION_2)
  );
}

/** Errors: invalid, in QEMU's words. */
function parseHeader(bytes: Buffer): BochsHeader {
  if (!isBochs(bytes)) throw invalid('Image not in Bochs format');
  const u32 = (at: number): number => bytes.readUInt32LE(at);
  const isFirst = u32(FieldAt.version) === VERSION_1;
  const size = uint64(bytes, isFirst ? FieldAt.diskBytesV1 : FieldAt.diskBytes);
  const diskBytes = size - (size % SECTOR_BYTES);
  const [catalogOffset, catalog, extentBytes] = [
    u32(FieldAt.headerBytes),
    u32(FieldAt.catalog),
    u32(FieldAt.extentBytes),
  ];
  if (catalog > MAX_CATALOG) throw invalid('Catalog size is too large');
  if (extentBytes < SECTOR_BYTES) throw invalid(`Extent size must be at least ${SECTOR_BYTES}`);
  if (!Number.isInteger(Math.log2(extentBytes)))
    throw invalid(`Extent size ${extentBytes} is not a power of two`);
  if (extentBytes > MAX_EXTENT_BYTES) throw invalid(`Extent size ${extentBytes} is too large`);
  if (!(size <= catalog * extentBytes)) throw invalid('Catalog size is too small for this disk size');
  const bitmapBytes = Math.ceil(u32(FieldAt.bitmapBytes) / SECTOR_BYTES) * SECTOR_BYTES;
  if (bitmapBytes * 8 < extentBytes / SECTOR_BYTES)
    throw invalid('Bitmap size is too small for this extent size');
  return { catalogOffset, extentBytes, bitmapBytes, diskBytes, dataOffset: catalogOffset + catalog * 4 };
}

function invalid(text: string): BlockError {
  return new BlockError('invalid', text, { errno: 'EINVAL' });
}

/** The catalog says where an extent is, the bitmap before its data which sectors were written. */
class BochsMap extends ReadOnlyMap {
  readonly #header: BochsHeader;
  readonly #cache: EntryCache;

  constructor(cache: EntryCache, header: BochsHeader) {
    super(cache.file, SECTOR_BYTES);
    this.#header = header;
    this.#cache = cache;
  }

  #catalogEntryAt(offset: number): number {
    return this.#header.catalogOffset + 4 * Math.floor(offset / this.#header.extentBytes);
  }

  #extentAt(entry: number): number {
    const { dataOffset, bitmapBytes, extentBytes } = this.#header;
    return dataOffset + entry * (bitmapBytes + extentBytes);
  }

  /** Of a sector of an extent; undefined: its bitmap is not in memory. */
  #isWritten(extentAt: number, sector: number): boolean | undefined {
    const word = this.#cache.tryUint32(extentAt + 4 * Math.floor(sector / 32), true);
    return word === -1 ? undefined : Math.floor(word / 2 ** (sector % 32)) % 2 === 1;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const { extentBytes, bitmapBytes } = this.#header;
    const entry = this.#cache.tryUint32(this.#catalogEntryAt(offset), true);
    if (entry === -1) return false;
    const from = offset % extentBytes;
    const most = Math.min(lengthBytes, extentBytes - from);
    const place = this.#extentAt(entry);
    let isData = false;
    let length = most;
    if (entry !== UNALLOCATED) {
      let sector = Math.floor(from / SECTOR_BYTES);
      const written = this.#isWritten(place, sector);
      if (written === undefined) return false;
      isData = written;
      while (++sector * SECTOR_BYTES < from + most && this.#isWritten(place, sector) === written);
      length = Math.min(most, sector * SECTOR_BYTES - from);
    }
    out.kind = isData ? 'data' : 'zero';
    out.lengthBytes = length;
    out.child = isData ? this.events : undefined;
    out.hostOffset = isData ? place + bitmapBytes + from : -1;
    out.plain = isData;
    out.writable = false;
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    const at = this.#catalogEntryAt(offset);
    const sector = Math.floor((offset % this.#header.extentBytes) / SECTOR_BYTES);
    while (!this.tryMap(offset, lengthBytes, out)) {
      await this.#cache.load(at);
      const entry = this.#cache.tryUint32(at, true);
      if (entry !== UNALLOCATED) await this.#cache.load(this.#extentAt(entry) + 4 * Math.floor(sector / 32));
    }
  }
}

async function load(driver: DriverContext) {
  const file = driver.child('file');
  const header = parseHeader(await readBytes(file, 0, HEADER_BYTES));
  return { lengthBytes: header.diskBytes, map: new BochsMap(new EntryCache(file), header) };
}

/** Growing images of the Bochs emulator, to be read. */
export const bochsDriver: DriverDescription<typeof BOCHS_OPTIONS> = {
  name: 'bochs',
  kind: 'format',
  options: BOCHS_OPTIONS,
  childPermissions: readingPermissions,
  probe: (header) => (isBochs(header) ? 100 : 0),
  open: (context, settings) => ReadOnlyImage.open('bochs', context, settings, () => load(context)),
};
