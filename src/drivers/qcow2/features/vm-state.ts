import { alignDown, alignUp, divideRoundUp } from '../../../base/align.js';
import { errnoError } from '../../../base/error.js';
import { MAX_L1_BYTES } from '../../../base/limits.js';
import { newMapping } from '../../../block/request.js';
import { ENTRY_BYTES } from '../disk/layout.js';
import type { ImageContext } from '../image.js';
import { forgetFrom } from '../mapping/behind-end.js';
import { readData, writeData } from '../mapping/guest-data.js';
import { growL1 } from '../mapping/resize.js';
import type { OpenImage } from '../open-image.js';

/** Where a machine's state is, behind the disk, mapped by L2 tables of its own (qcow2 specification, "VM state"). */
export function vmStateOffset({ header, l2, clusterBytes }: ImageContext): number {
  return alignUp(header.sizeBytes, l2.coverageBytes(clusterBytes));
}

/** Puts a machine's state where there is none; it waits for the next write-back. Errors: those of allocating and writing. */
export function writeVmState(image: OpenImage, bytes: Uint8Array): Promise<void> {
  return changeVmState(image, 0, bytes);
}

/**
 * Writes `bytes` at `offset` of the machine's state that the disk has now, which grows as far as that; it waits for the
 * next write-back. Errors: unsupported where data is in another file, limit; those of allocating and writing.
 */
export async function changeVmState(image: OpenImage, offset: number, bytes: Uint8Array): Promise<void> {
  const { context, reserver } = image;
  const { clusterBytes, l2 } = context;
  const start = checkedStart(context, offset, bytes.length);
  const end = start + bytes.length;
  await growL1(image, divideRoundUp(end, l2.coverageBytes(clusterBytes)));
  for (let at = start; at < end;) {
    const from = alignDown(at, clusterBytes);
    const reservation = await reserver.reserve(from, alignUp(end, clusterBytes) - from);
    const reached = Math.min(end, reservation.offset + reservation.lengthBytes);
    try {
      const piece = Buffer.alloc(reservation.lengthBytes);
      await readMapped(image, reservation.offset, piece);
      piece.set(bytes.subarray(at - start, reached - start), at - reservation.offset);
      await writeData(context, reservation.child, reservation.hostOffset, reservation.offset, piece);
    } catch (error) {
      reservation.abort();
      throw error;
    }
    reservation.link();
    at = reached;
  }
}

/** What the machine's state holds at `offset` that the disk has now; zeroes where it has none. Errors: those of above. */
export async function readVmState(image: OpenImage, offset: number, buffer: Uint8Array): Promise<void> {
  const { context, tables } = image;
  const start = checkedStart(context, offset, buffer.length);
  const mapped = tables.l1.entries * context.l2.coverageBytes(context.clusterBytes);
  const lengthBytes = Math.min(buffer.length, Math.max(0, mapped - start));
  buffer.fill(0, lengthBytes);
  await readMapped(image, start, buffer.subarray(0, lengthBytes));
}

/** Where that part of the state lies. Errors: unsupported, limit. */
function checkedStart(context: ImageContext, offset: number, lengthBytes: number): number {
  if (context.l2.hasDataFile) throw errnoError('ENOTSUP');
  const start = vmStateOffset(context) + offset;
  const tables = divideRoundUp(start + lengthBytes, context.l2.coverageBytes(context.clusterBytes));
  if (tables * ENTRY_BYTES > MAX_L1_BYTES) throw errnoError('EFBIG');
  return start;
}

/** The disk has no machine's state any more. */
export async function forgetVmState(image: OpenImage): Promise<void> {
  await forgetFrom(image, vmStateOffset(image.context));
}

/** Reads what is mapped at `offset`, in front of the disk's end or behind it; zeroes where nothing is. */
export async function readMapped(image: OpenImage, offset: number, buffer: Uint8Array): Promise<void> {
  const mapping = newMapping();
  for (let done = 0; done < buffer.length; done += mapping.lengthBytes) {
    await image.mapper.map(offset + done, buffer.length - done, mapping);
    const piece = buffer.subarray(done, done + mapping.lengthBytes);
    if (mapping.kind !== 'data') piece.fill(0);
    else await readData(image, mapping, offset + done, piece);
  }
}
