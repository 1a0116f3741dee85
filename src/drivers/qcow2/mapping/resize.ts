import { alignDown, alignUp, divideRoundUp } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';
import { MAX_IMAGE_BYTES, MAX_L1_BYTES } from '../../../base/limits.js';
import { Flag, newMapping } from '../../../block/request.js';
import { FieldOffset, l1EntriesFor } from '../disk/header.js';
import type { OpenImage } from '../open-image.js';
import { ENTRY_BYTES, SECTOR_BYTES, writeU64 } from '../disk/layout.js';
import { forgetFrom } from './behind-end.js';
import { readData, writeData } from './guest-data.js';
import { changeEntries, zeroClusters } from './zeroing.js';

/** The virtual disk gets another size; durable on return. Errors: see growImage; kind unsupported. */
export async function resizeImage(image: OpenImage, sizeBytes: number): Promise<void> {
  const { sizeBytes: oldSize } = image.context.header;
  if (sizeBytes < oldSize) await shrinkImage(image, sizeBytes);
  else await growImage(image, sizeBytes);
}

/**
 * The header names the smaller size first: a crash leaves a smaller disk with space behind its end, which a later growth
 * gives up. Then that space goes.
 */
async function shrinkImage(image: OpenImage, sizeBytes: number): Promise<void> {
  const { context } = image;
  const { header, clusterBytes } = context;
  checkNewSize(image, sizeBytes);
  context.assertMayWrite();
  await context.beginChanges();
  await image.writeBack.flush();
  await context.switchHeader((sector) => void writeU64(sector, FieldOffset.size, sizeBytes));
  header.sizeBytes = sizeBytes;
  await forgetFrom(image, alignUp(sizeBytes, clusterBytes));
  if (context.l2.hasDataFile && context.data.lengthBytes > sizeBytes) await context.data.truncate(sizeBytes);
  while (image.writeBack.isDirty) await image.writeBack.flush();
}

/**
 * Grows the virtual disk; durable on return. New space reads as zeroes, also over a longer backing file: what makes
 * it so is durable before the header names the new size. Errors: unsupported, invalid, limit.
 */
async function growImage(image: OpenImage, sizeBytes: number): Promise<void> {
  const { context } = image;
  const { header } = context;
  const oldSize = header.sizeBytes;
  if (sizeBytes === oldSize) return;
  checkNewSize(image, sizeBytes);
  context.assertMayWrite();
  await context.beginChanges();
  await image.bitmaps.makeRoom(sizeBytes);
  await growL1(image, l1EntriesFor(sizeBytes, header.clusterBytes, context.l2));
  await forgetFrom(image, alignUp(oldSize, header.clusterBytes));
  await zeroTail(image, oldSize, sizeBytes);
  await hideBacking(image, oldSize, sizeBytes);
  await lengthenDataFile(image, oldSize, sizeBytes);
  await image.writeBack.flush();
  await context.switchHeader((sector) => void writeU64(sector, FieldOffset.size, sizeBytes));
  header.sizeBytes = sizeBytes;
}

function checkNewSize(image: OpenImage, sizeBytes: number): void {
  const { header, l2 } = image.context;
  if (sizeBytes % SECTOR_BYTES !== 0)
    throw new BlockError('invalid', `The new size must be a multiple of ${SECTOR_BYTES}`);
  if (header.version < 3 && header.snapshotCount > 0)
    throw new BlockError('unsupported', "Can't resize a v2 image which has snapshots", { errno: 'ENOTSUP' });
  const l1Bytes = l1EntriesFor(sizeBytes, header.clusterBytes, l2) * ENTRY_BYTES;
  if (sizeBytes > MAX_IMAGE_BYTES || l1Bytes > MAX_L1_BYTES)
    throw new BlockError('limit', 'Failed to grow the L1 table: File too large', { errno: 'EFBIG' });
  image.bitmaps.checkNewSize(sizeBytes);
}

/** Makes the L1 table at least that long; written back with the next write-back. */
export async function growL1(image: OpenImage, entries: number): Promise<void> {
  const { l1 } = image.tables;
  if (entries <= l1.entries) return;
  if (l1.moved) await image.writeBack.flush();
  await image.context.announce('l1_grow_alloc_table');
  const { clusterBytes } = image.context;
  const run = await image.allocator.allocateContiguous(divideRoundUp(entries * ENTRY_BYTES, clusterBytes));
  image.context.metadata.add('active L1 table', run.start, run.count);
  l1.grow(entries, run.start * clusterBytes);
}

/** Length of what a reader may see below this image; Infinity when the image names a file that is not open. */
function backingBytes(image: OpenImage): number {
  const { driver, header } = image.context;
  if (driver.hasChild('backing')) return driver.child('backing').lengthBytes;
  return header.backing ? Infinity : 0;
}

/** Zeroes what lies beyond the old end in the last unit; the units behind it hold nothing. */
async function zeroTail(image: OpenImage, oldSize: number, sizeBytes: number): Promise<void> {
  const { context } = image;
  const { clusterBytes } = context;
  const isCompressed = await lastIsCompressed(image, oldSize);
  const unit = isCompressed ? clusterBytes : context.unitBytes;
  const from = alignUp(oldSize, unit);
  const end = alignUp(oldSize, clusterBytes);
  if (from < end)
    await changeEntries(image, from, end - from, true, (table, index, units) => {
      const at = index * context.l2.entryBytes;
      context.l2.setUnits(table.change(at, at + context.l2.entryBytes), index, units.from, units.end, 'none');
    });
  if (oldSize % unit !== 0) await zeroRestOfUnit(image, oldSize, Math.min(from, sizeBytes), unit);
}

async function lastIsCompressed({ mapper }: OpenImage, sizeBytes: number): Promise<boolean> {
  if (sizeBytes === 0) return false;
  const mapping = newMapping();
  await mapper.map(sizeBytes - 1, 1, mapping);
  return mapping.kind === 'data' && !mapping.child;
}

/** What a data file that shows the disk has behind its end is part of the disk from now on. */
async function lengthenDataFile({ context }: OpenImage, oldSize: number, sizeBytes: number): Promise<void> {
  const { data } = context;
  if (!context.l2.hasDataFile) return;
  const stale = Math.min(data.lengthBytes, sizeBytes) - oldSize;
  if (stale > 0 && context.isDataFileRaw) await data.writeZeroes(oldSize, stale, 0);
  if (data.lengthBytes < sizeBytes) await data.truncate(sizeBytes);
}

async function zeroRestOfUnit(image: OpenImage, oldSize: number, end: number, unit: number): Promise<void> {
  const { context, reserver } = image;
  const start = alignDown(oldSize, unit);
  const mapping = newMapping();
  await image.mapper.map(start, unit, mapping);
  if (mapping.kind === 'zero' || (mapping.kind === 'backing' && backingBytes(image) <= oldSize)) return;
  if (mapping.kind === 'data' && mapping.writable) {
    const within = oldSize - start;
    const zeroes = Buffer.alloc(end - oldSize);
    await writeData(context, context.data, mapping.hostOffset + within, oldSize, zeroes);
    return;
  }
  const reservation = await reserver.reserve(start, unit);
  try {
    const bytes = Buffer.alloc(reservation.lengthBytes);
    await readOld(image, reservation.offset, bytes.subarray(0, oldSize - reservation.offset));
    await writeData(context, reservation.child, reservation.hostOffset, reservation.offset, bytes);
  } catch (error) {
    reservation.abort();
    throw error;
  }
  reservation.link();
}

/** What the disk holds; the backing file must be open where it shows. */
async function readOld(image: OpenImage, offset: number, buffer: Buffer): Promise<void> {
  const { driver } = image.context;
  const mapping = newMapping();
  for (let done = 0; done < buffer.length; done += mapping.lengthBytes) {
    await image.mapper.map(offset + done, buffer.length - done, mapping);
    const piece = buffer.subarray(done, done + mapping.lengthBytes);
    if (mapping.kind === 'zero') piece.fill(0);
    else if (mapping.kind === 'backing') {
      if (!driver.hasChild('backing')) {
        const message = 'Cannot grow the image: its last cluster is in a backing file that is not open';
        throw new BlockError('unsupported', message, { errno: 'ENOTSUP' });
      }
      await driver.child('backing').read(offset + done, piece);
    } else await readData(image, mapping, offset + done, piece);
  }
}

/** Zero clusters where a longer backing file would show through. */
async function hideBacking(image: OpenImage, oldSize: number, sizeBytes: number): Promise<void> {
  const { unitBytes: unit } = image.context;
  const from = alignUp(oldSize, unit);
  const end = alignUp(Math.min(sizeBytes, backingBytes(image)), unit);
  if (end <= from) return;
  if (image.context.header.version < 3)
    throw new BlockError('unsupported', 'Failed to zero out new clusters: Operation not supported', {
      errno: 'ENOTSUP',
    });
  await zeroClusters(image, from, end - from, Flag.mayUnmap);
}
