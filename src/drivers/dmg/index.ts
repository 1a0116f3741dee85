import { BlockError, errnoError } from '../../base/error.js';
import { MAX_IMAGE_BYTES, MiB } from '../../base/limits.js';
import { bunzip2, expandAdc, inflateZlib } from '../../codec/index.js';
import type { ChildIo, DriverContext, DriverDescription } from '../../block/driver.js';
import { DMG_OPTIONS } from '../../schema/blockdev-options.js';
import { type Chunk, ChunkedMap, type ChunkTable } from '../tables/chunked-map.js';
import { readBytes, uint64 } from '../tables/read-bytes.js';
import { readingPermissions, ReadOnlyImage } from '../tables/read-only-node.js';
import {
  ChunkKind,
  entriesOf,
  SECTOR_BYTES,
  type TableEntry,
  tablesOfList,
  tablesOfResources,
} from './block-tables.js';

const TRAILER_BYTES = 512;
/** Of what names the block tables; as QEMU. */
const MAX_TABLES_BYTES = 16 * MiB;

const FieldAt = {
  dataFork: 0x18,
  resources: 0x28,
  list: 0xd8,
  sectors: 0x1ec,
} as const;

/** Named, where an image that has them is refused. */
const LACKING = new Map<number, string>([
  [ChunkKind.lzfse, 'LZFSE'],
  [ChunkKind.lzma, 'LZMA'],
]);

const CONTENT = new Map<number, Chunk['content']>([
  [ChunkKind.zero, 'zero'],
  [ChunkKind.ignored, 'zero'],
  [ChunkKind.raw, 'plain'],
  [ChunkKind.adc, expandAdc],
  [ChunkKind.zlib, inflateZlib],
  [ChunkKind.bzip2, bunzip2],
]);

interface Trailer {
  readonly diskBytes: number;
  readonly dataFork: Region;
  /** Either may be empty. */
  readonly resources: Region;
  readonly list: Region;
}

/** A part of the file. */
interface Region {
  readonly offset: number;
  readonly lengthBytes: number;
}

/**
 * What the last sector of the file says; a node may be longer than its file, by zeroes up to a sector. Errors: invalid, in
 * QEMU's words.
 */
async function readTrailer(file: ChildIo): Promise<Trailer> {
  if (file.lengthBytes < TRAILER_BYTES)
    throw new BlockError('invalid', 'dmg file must be at least 512 bytes long', { errno: 'EINVAL' });
  const from = Math.max(0, file.lengthBytes - (2 * TRAILER_BYTES - 1));
  const last = await readBytes(file, from, file.lengthBytes - from);
  const at = last.lastIndexOf('koly', last.length - TRAILER_BYTES, 'latin1');
  if (at < 0 || last.subarray(at + TRAILER_BYTES).some((byte) => byte !== 0))
    throw new BlockError('invalid', 'Could not locate UDIF trailer in dmg file', { errno: 'EINVAL' });
  const u64 = (field: number): number => uint64(last, at + field, false);
  const region = (field: number): Region => {
    const [offset, lengthBytes] = [u64(field), u64(field + 8)];
    if (!(offset + lengthBytes <= from + at)) throw errnoError('EINVAL');
    return { offset, lengthBytes };
  };
  const diskBytes = u64(FieldAt.sectors) * SECTOR_BYTES;
  if (!(diskBytes <= MAX_IMAGE_BYTES)) throw errnoError('EFBIG');
  return {
    diskBytes,
    dataFork: region(FieldAt.dataFork),
    resources: region(FieldAt.resources),
    list: region(FieldAt.list),
  };
}

/** Errors: invalid where there are none. */
async function readTables(file: ChildIo, { resources, list }: Trailer): Promise<Buffer[]> {
  const isList = resources.lengthBytes === 0;
  const { offset, lengthBytes } = isList ? list : resources;
  if (lengthBytes === 0 || lengthBytes > MAX_TABLES_BYTES) throw errnoError('EINVAL');
  const bytes = await readBytes(file, offset, lengthBytes);
  return isList ? tablesOfList(bytes.toString('latin1')) : tablesOfResources(bytes);
}

/** Chunks in order, in memory; between them is what no table knows. */
class DmgTable implements ChunkTable {
  readonly #entries: readonly TableEntry[];
  readonly #dataOffset: number;
  readonly #diskBytes: number;

  constructor(entries: TableEntry[], dataOffset: number, diskBytes: number) {
    this.#entries = entries.sort((a, b) => a.offset - b.offset);
    this.#dataOffset = dataOffset;
    this.#diskBytes = diskBytes;
  }

  find(offset: number): Chunk {
    const after = this.#countUpTo(offset);
    const entry = this.#entries[after - 1];
    const end = this.#entries[after]?.offset ?? this.#diskBytes;
    if (!entry || entry.offset + entry.lengthBytes <= offset)
      return { offset, lengthBytes: end - offset, content: 'unknown', place: 0, storedBytes: 0 };
    return {
      offset: entry.offset,
      lengthBytes: entry.lengthBytes,
      content: CONTENT.get(entry.kind) ?? 'unknown',
      place: this.#dataOffset + entry.place,
      storedBytes: entry.storedBytes,
    };
  }

  /** Of entries that begin there or before. */
  #countUpTo(offset: number): number {
    let [low, high] = [0, this.#entries.length];
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#entries[middle] as TableEntry).offset <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  async load(): Promise<void> {}
}

async function load(driver: DriverContext) {
  const file = driver.child('file');
  const trailer = await readTrailer(file);
  const entries = (await readTables(file, trailer)).flatMap(entriesOf);
  const lacking = entries.map(({ kind }) => LACKING.get(kind)).find((name) => name !== undefined);
  if (lacking !== undefined && !driver.onlyLook)
    throw new BlockError('unsupported', `The image is compressed by ${lacking}, which livedisk lacks`);
  const { diskBytes, dataFork } = trailer;
  const table = new DmgTable(entries, dataFork.offset, diskBytes);
  return { lengthBytes: diskBytes, map: new ChunkedMap(file, SECTOR_BYTES, table, driver.host.compute) };
}

/** Apple's disk images, to be read. */
export const dmgDriver: DriverDescription<typeof DMG_OPTIONS> = {
  name: 'dmg',
  kind: 'format',
  options: DMG_OPTIONS,
  childPermissions: readingPermissions,
  /** What tells it is at its end. */
  probe: (_header, filename) => (filename.length > 4 && filename.endsWith('.dmg') ? 2 : 0),
  open: (context, settings) => ReadOnlyImage.open('dmg', context, settings, () => load(context)),
};
