import type { ChildIo } from '../../../block/driver.js';
import type { Mapping } from '../../../block/request.js';
import type { ImageContext } from '../image.js';
import type { L2Tables } from '../tables/l2-cache.js';
import { readCompressed } from './compressed.js';

interface Readable {
  readonly context: ImageContext;
  readonly tables: L2Tables;
}

/** Reads data from `offset` of the guest on, as it was mapped, whatever it is kept as. */
export async function readData(
  image: Readable,
  mapping: Mapping,
  offset: number,
  buffer: Uint8Array,
): Promise<void> {
  const { child, hostOffset, plain } = mapping;
  const { encryption } = image.context;
  if (!child) return readCompressed(image, offset, buffer);
  if (plain || !encryption) return child.read(hostOffset, buffer);
  return encryption.read(child, hostOffset, offset, buffer);
}

/** Writes the guest's bytes of `offset` to where they have their place. */
export async function writeData(
  { encryption }: ImageContext,
  child: ChildIo,
  hostOffset: number,
  offset: number,
  bytes: Uint8Array,
): Promise<void> {
  if (encryption) await encryption.write(child, hostOffset, offset, bytes);
  else await child.write(hostOffset, bytes, 0);
}
