import { DirtyBitmap } from '../../src/block/dirty-bitmap.js';
import type { Node } from '../../src/block/node.js';

/** A new bitmap that the node's image is to keep. */
export function addKept(node: Node, name: string, granularityBytes = 512): DirtyBitmap {
  node.instance.bitmaps?.checkNew(name, granularityBytes);
  const bitmap = new DirtyBitmap(node.lengthBytes, granularityBytes, name);
  bitmap.persistent = true;
  node.dirtyBitmaps.push(bitmap);
  return bitmap;
}

/** Starts of the dirty granules. */
export function dirtyOffsets(bitmap: DirtyBitmap): number[] {
  const offsets: number[] = [];
  for (let at = 0; at < bitmap.sizeBytes; at += bitmap.granularityBytes)
    if (bitmap.isDirty(at)) offsets.push(at);
  return offsets;
}

/** What is to be known of each bitmap of a node, in order. */
export function bitmapStates(node: Node): string[] {
  return node.dirtyBitmaps.map((bitmap) =>
    [
      `${bitmap.name} of ${bitmap.granularityBytes}:`,
      bitmap.persistent ? 'persistent' : 'passing',
      bitmap.inconsistent ? 'inconsistent' : `${dirtyOffsets(bitmap).join(' ')}`,
      ...(bitmap.enabled ? ['on'] : []),
      ...(bitmap.readOnly ? ['read-only'] : []),
    ].join(', '),
  );
}

/** The same, which a crash is to leave right. No change is in flight. */
export async function addDurable(node: Node, name: string, granularityBytes = 512): Promise<DirtyBitmap> {
  const bitmap = addKept(node, name, granularityBytes);
  await node.instance.bitmaps?.makeDurable?.(bitmap, { id: '0123456789abcdef', sinceMs: 1 });
  return bitmap;
}
