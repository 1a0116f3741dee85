import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import type { ChildIo, DriverContext, MapDriver } from '../../block/driver.js';
import { BlockMap } from '../tables/block-map.js';
import { EntryCache } from '../tables/entry-cache.js';
import { FileEnd } from '../tables/file-end.js';
import { FlatMap } from '../tables/flat-map.js';
import { readBytes } from '../tables/read-bytes.js';
import { CompressedGrains } from './compressed-grains.js';
import type { ExtentLine } from './descriptor.js';
import {
  ESX_MAGIC,
  hasMagic,
  HEADER_BYTES,
  isDirectoryAtEnd,
  MAGIC,
  parseEsxHeader,
  parseSparseHeader,
  SECTOR_BYTES,
  type SparseHeader,
} from './sparse-header.js';
import { SparseTable } from './sparse-table.js';

/** A part of the disk, in a file of its own. */
export interface Extent {
  readonly lengthBytes: number;
  /** Of its grains; 512: flat. */
  readonly unitBytes: number;
  readonly file: ChildIo;
  readonly filename: string;
  /** As the descriptor calls it; empty for one that is its own descriptor. */
  readonly type: string;
  readonly map: MapDriver | undefined;
  readonly header?: SparseHeader;
  flush(): Promise<void>;
}

/** Footer marker, a copy of the header, end-of-stream marker. */
const FOOTER_BYTES = 3 * SECTOR_BYTES;
const FOOTER_MARKER = 3;

/** The header that counts. Errors: invalid, unsupported, in QEMU's words. */
export async function readSparseHeader(file: ChildIo): Promise<SparseHeader> {
  const bytes = await readBytes(file, 0, HEADER_BYTES);
  if (hasMagic(bytes, ESX_MAGIC)) return parseEsxHeader(bytes);
  if (!hasMagic(bytes, MAGIC))
    throw new BlockError('invalid', 'Image not in VMDK format', { errno: 'EINVAL' });
  const hasFooter = isDirectoryAtEnd(bytes);
  const header = { ...parseSparseHeader(hasFooter ? await readFooter(file) : bytes), hasFooter };
  const least = header.grainSector * SECTOR_BYTES;
  if (file.lengthBytes < least)
    throw new BlockError('corrupt', `File truncated, expecting at least ${least} bytes`, { errno: 'EINVAL' });
  return header;
}

async function readFooter(file: ChildIo): Promise<Buffer> {
  const bytes = await readBytes(file, Math.max(0, file.lengthBytes - FOOTER_BYTES), FOOTER_BYTES);
  const marker = (at: number, type: number): boolean =>
    bytes.readUInt32LE(at + 8) === 0 && bytes.readUInt32LE(at + 12) === type;
  const header = bytes.subarray(SECTOR_BYTES, 2 * SECTOR_BYTES);
  const isSound =
    hasMagic(header, MAGIC) &&
    marker(0, FOOTER_MARKER) &&
    bytes.readBigUInt64LE(2 * SECTOR_BYTES) === 0n &&
    marker(2 * SECTOR_BYTES, 0);
  if (!isSound) throw new BlockError('invalid', 'Invalid VMDK footer', { errno: 'EINVAL' });
  return header;
}

/** `type`: as its descriptor calls it. */
export function sparseExtent(
  driver: DriverContext,
  file: ChildIo,
  header: SparseHeader,
  { filename, type }: { filename: string; type: string },
): Extent {
  const grainBytes = header.grainSectors * SECTOR_BYTES;
  const cache = new EntryCache(file);
  const space = new FileEnd(file, alignUp(file.lengthBytes, grainBytes), grainBytes);
  const table = new SparseTable(cache, space, header);
  const isDirty = (): boolean => cache.isDirty;
  const { isCompressed, hasMarkers, hasZeroGrains: hasZeroes } = header;
  const map = isCompressed
    ? new CompressedGrains({
        ...{ file, cache, table, grainBytes, hasMarkers },
        compute: driver.host.compute,
        end: file.lengthBytes,
      })
    : new BlockMap({
        ...{ file, table, space, hasZeroes, isDirty },
        blockBytes: grainBytes,
        hasBacking: () => driver.hasChild('backing'),
      });
  return {
    lengthBytes: header.sectors * SECTOR_BYTES,
    unitBytes: grainBytes,
    file,
    filename,
    type,
    map,
    header,
    flush: () => cache.writeBack(),
  };
}

/** One whose length and place the descriptor tells. */
export function flatExtent(file: ChildIo, { sectors, offset, filename, type }: ExtentLine): Extent {
  const lengthBytes = sectors * SECTOR_BYTES;
  if (offset + lengthBytes > file.lengthBytes) file.tellCutOff();
  return {
    lengthBytes,
    unitBytes: SECTOR_BYTES,
    file,
    filename,
    type,
    map: new FlatMap(file, offset),
    flush: () => file.flush(),
  };
}
