import { alignDown, alignUp } from '../../base/align.js';
import { BlockError, errnoError, errnoOf } from '../../base/error.js';
import type { ChainStatus } from '../../block/chain-status.js';
import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type { DriverDescription, Measurement, NewImage } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import type { ObjectRegistry } from '../../block/objects/object-registry.js';

/**
 * How large a file would be that holds a new image with the content of `source`, or with nothing in it: `image` says its
 * format's options, and its size where there is no source; `objects` have the secrets that they name. Errors: unsupported
 * for a format that cannot tell; those of its options.
 */
export async function measureImage(
  driver: DriverDescription,
  image: NewImage,
  { source, objects }: { source: Node | undefined; objects: ObjectRegistry },
): Promise<Measurement> {
  if (!driver.measure)
    throw new BlockError('unsupported', `Block driver '${driver.name}' does not support size measurement`);
  return driver.measure(image, {
    dataBytes: (unitBytes) => (source ? dataBytes(source, unitBytes) : Promise.resolve(0)),
    bitmaps: keptBitmaps(source?.skipFilters()),
    secret: (id) => objects.secret(id),
  });
}

/** Bytes of the units that hold data, all through the chain. */
async function dataBytes(source: Node, unitBytes: number): Promise<number> {
  const end = source.lengthBytes;
  let bytes = 0;
  for (let at = 0; at < end;) {
    const { lengthBytes, zero, allocated, data } = await statusAt(source, at, end - at);
    let next = at + lengthBytes;
    if (!zero && allocated && data) {
      next = alignUp(next, unitBytes);
      bytes += next - alignDown(at, unitBytes);
    }
    at = next;
  }
  return bytes;
}

async function statusAt(source: Node, offset: number, lengthBytes: number): Promise<ChainStatus> {
  try {
    return await source.statusThroughChain(offset, lengthBytes);
  } catch (error) {
    throw errnoError(errnoOf(error), 'Unable to get block status', { cause: error });
  }
}

/** Those that can be copied. */
function keptBitmaps(source: Node | undefined): readonly DirtyBitmap[] | undefined {
  if (source?.instance.bitmaps?.isSupported !== true) return undefined;
  return source.dirtyBitmaps.filter(({ persistent }) => persistent);
}
