import { divideRoundUp } from '../../../base/align.js';
import { BlockError, errnoError, errnoOf } from '../../../base/error.js';
import type { DirtyBitmap } from '../../../block/dirty-bitmap.js';
import {
  type BitmapEntry,
  decodeTableEntry,
  type TablePart,
  tableEntriesFor,
  unreadableTable,
  writeTableEntry,
} from '../disk/bitmap-directory.js';
import { ENTRY_BYTES } from '../disk/layout.js';
import type { OpenImage } from '../open-image.js';
import type { ClusterRun } from '../space/bulk.js';
import { placeTable } from './placed-table.js';

/** Errors: in QEMU's words, those of reading the table and of entries that cannot be. */
export async function readParts(
  { context }: OpenImage,
  { name, tableOffset }: BitmapEntry,
  count: number,
): Promise<TablePart[]> {
  try {
    const table = Buffer.alloc(count * ENTRY_BYTES);
    if (tableOffset < 0) throw errnoError('EIO');
    if (tableOffset < context.meta.lengthBytes) await context.meta.read(tableOffset, table);
    return Array.from({ length: count }, (_, index) => decodeTableEntry(table, index, context.clusterBytes));
  } catch (error) {
    throw unreadableTable(name, error);
  }
}

/** Adds what the image has of a bitmap (qcow2 specification, "Bitmap table" and "Bitmap data"). Errors: in QEMU's words. */
export async function loadBits(image: OpenImage, entry: BitmapEntry, bitmap: DirtyBitmap): Promise<void> {
  const { clusterBytes, meta } = image.context;
  const needed = divideRoundUp(bitmap.serialisedBytes, clusterBytes);
  const parts = await readParts(image, entry, entry.tableEntries);
  // That of one in use may be of a disk of another size.
  if (!entry.isInUse && parts.length !== needed) throw unreadableBits(entry, errnoError('EINVAL'));
  const bytes = Buffer.alloc(clusterBytes);
  for (const [index, part] of parts.slice(0, needed).entries()) {
    const at = index * clusterBytes;
    if (part === 'zeroes') continue;
    if (part === 'ones') {
      bitmap.deserialiseOnes(at, clusterBytes);
      continue;
    }
    try {
      await meta.read(part.hostOffset, bytes);
    } catch (error) {
      throw unreadableBits(entry, error);
    }
    bitmap.deserialise(at, bytes);
  }
}

function unreadableBits({ name }: BitmapEntry, cause: unknown): BlockError {
  return errnoError(errnoOf(cause), `Could not read bitmap '${name}' from image`, { cause });
}

/** Where a bitmap has been written. */
export interface StoredBits {
  tableOffset: number;
  tableEntries: number;
}

/**
 * Writes a bitmap where nothing is; durable with the next write-back. Each run of clusters that it takes is added to
 * `taken` before it is written. Errors: limit, no-space, those of writing.
 */
export async function storeBits(
  image: OpenImage,
  bitmap: DirtyBitmap,
  taken: ClusterRun[],
): Promise<StoredBits> {
  const { clusterBytes } = image.context;
  const tableEntries = tableEntriesFor(bitmap.sizeBytes, bitmap.granularityBytes, clusterBytes);
  if (tableEntries === undefined) throw tooLarge();
  const table = Buffer.alloc(tableEntries * ENTRY_BYTES);
  const bytes = Buffer.alloc(clusterBytes);
  for (let index = 0; index < tableEntries; index++) {
    if (!bitmap.serialise(index * clusterBytes, bytes)) continue;
    writeTableEntry(table, index, await writeNew(image, 'bitmap', bytes, taken));
  }
  return { tableOffset: await writeNew(image, 'bitmap table', table, taken), tableEntries };
}

export function tooLarge(): BlockError {
  const text = 'Too much space will be occupied by the bitmap. Use larger granularity';
  return new BlockError('limit', text, { errno: 'EINVAL' });
}

/** Puts metadata into clusters of its own, as placeTable; answers where. */
export async function writeNew(
  image: OpenImage,
  what: string,
  content: Buffer,
  taken: ClusterRun[],
): Promise<number> {
  const { hostOffset, start, count } = await placeTable(image, content, what);
  taken.push({ start, count });
  return hostOffset;
}

/** The clusters of a bitmap as its table names them, and of the table itself. One that cannot be read names none. */
export async function clustersOf(image: OpenImage, entry: BitmapEntry): Promise<ClusterRun[]> {
  const { clusterBytes } = image.context;
  if (entry.tableOffset < 0 || !Number.isSafeInteger(entry.tableOffset)) return [];
  const tableClusters = divideRoundUp(entry.tableEntries * ENTRY_BYTES, clusterBytes);
  const runs = [{ start: entry.tableOffset / clusterBytes, count: tableClusters }];
  const parts = await readParts(image, entry, entry.tableEntries).catch(() => []);
  for (const part of parts)
    if (typeof part !== 'string') runs.push({ start: part.hostOffset / clusterBytes, count: 1 });
  return runs;
}
