import { alignUp } from '../../../base/align.js';
import { MiB } from '../../../base/limits.js';
import type { Preallocated, Reservation } from '../../../block/driver.js';
import { Flag, newMapping } from '../../../block/request.js';
import type { OpenImage } from '../open-image.js';
import { writeData } from './guest-data.js';

/** Clusters that are given at a time; of each the bytes of zeroes that may have to be written. */
const PIECE_BYTES = 2 * MiB;

/**
 * Gives clusters to what reads as zeroes in [from, end), as the guest has it from the first whole cluster on; it reads as
 * zeroes afterwards too. Durable on return. Errors: no-space, limit, those of writing; some of it may have clusters then.
 */
export async function preallocate(
  image: OpenImage,
  from: number,
  end: number,
  mode: Preallocated,
): Promise<void> {
  const { context, mapper, reserver, writeBack } = image;
  const mapping = newMapping();
  for (let at = alignUp(from, context.clusterBytes); at < end;) {
    await mapper.map(at, Math.min(PIECE_BYTES, end - at), mapping);
    if (mapping.kind === 'data') {
      at += mapping.lengthBytes;
      continue;
    }
    const reservation = await reserver.reserve(at, mapping.lengthBytes);
    try {
      await provide(image, reservation, mode);
    } catch (error) {
      reservation.abort();
      throw error;
    }
    reservation.link();
    at = reservation.offset + reservation.lengthBytes;
  }
  await writeBack.flushAll();
}

/** The clusters read as zeroes, and have the space that the mode says. */
async function provide({ context }: OpenImage, reservation: Reservation, mode: Preallocated): Promise<void> {
  const { child, hostOffset, lengthBytes, offset, plain, readsZero } = reservation;
  if (mode === 'full' || !plain) {
    await writeData(context, child, hostOffset, offset, Buffer.alloc(lengthBytes));
    return;
  }
  // Where other data was, or a file that is not ours alone.
  if (!readsZero) {
    if (child.lengthBytes < hostOffset + lengthBytes) await child.truncate(hostOffset + lengthBytes);
    await child.writeZeroes(hostOffset, lengthBytes, mode === 'metadata' ? Flag.mayUnmap : Flag.none);
  } else if (mode === 'metadata' && child.hasSpaceAhead === true)
    await child.writeZeroes(hostOffset, lengthBytes, Flag.mayUnmap);
  else await child.extend(hostOffset + lengthBytes);
  if (mode === 'falloc') await child.allocate(hostOffset, lengthBytes);
}
