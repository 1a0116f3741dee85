import { divideRoundUp } from '../../../base/align.js';
import type { OpenImage } from '../open-image.js';

/** Where a table was put. */
export interface PlacedTable {
  hostOffset: number;
  /** First of its clusters, and how many. */
  start: number;
  count: number;
}

/**
 * Puts bytes into clusters of their own, which nothing names yet; the next write-back makes them and their refcounts
 * durable. Errors: those of allocating and writing; then nothing is left of it.
 */
export async function placeTable(image: OpenImage, bytes: Buffer, what: string): Promise<PlacedTable> {
  const { context, allocator } = image;
  if (bytes.length === 0) return { hostOffset: 0, start: 0, count: 0 };
  const count = divideRoundUp(bytes.length, context.clusterBytes);
  const run = await allocator.allocateInside(count);
  const place = { hostOffset: run.start * context.clusterBytes, start: run.start, count };
  try {
    await context.meta.write(place.hostOffset, Buffer.concat([bytes], count * context.clusterBytes), 0);
  } catch (error) {
    giveUpTable(image, place);
    throw error;
  }
  context.metadata.add(what, run.start, count);
  return place;
}

/** Its clusters are free once nothing durable names them. */
export function giveUpTable({ context, unlinked }: OpenImage, { hostOffset, count }: PlacedTable): void {
  if (count > 0) unlinked.add(hostOffset, count * context.clusterBytes, context.passesDiscard('other'));
}
