import { alignUp, divideRoundUp } from '../../../base/align.js';
import { newMapping } from '../../../block/request.js';
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
export async function writeVmState(image: OpenImage, bytes: Uint8Array): Promise<void> {
  const { context, reserver } = image;
  const start = vmStateOffset(context);
  const end = start + bytes.length;
  await growL1(image, divideRoundUp(end, context.l2.coverageBytes(context.clusterBytes)));
  for (let at = start; at < end;) {
    const reservation = await reserver.reserve(at, end - at);
    const length = Math.min(reservation.lengthBytes, end - at);
    const piece = Buffer.alloc(reservation.lengthBytes);
    piece.set(bytes.subarray(at - start, at - start + length));
    try {
      await writeData(context, reservation.child, reservation.hostOffset, reservation.offset, piece);
    } catch (error) {
      reservation.abort();
      throw error;
    }
    reservation.link();
    at += length;
  }
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
