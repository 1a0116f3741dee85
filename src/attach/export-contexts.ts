import { BlockError } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { ALLOCATION_DEPTH, DIRTY_BITMAP_PREFIX } from '../wire/nbd/constants.js';
import type { MetaContext } from '../wire/nbd/target.js';

/** A bitmap by name, of the exported node or of an image below it, or of any node. */
export type BitmapReference = string | { node: string; name: string };

/** Errors, in QEMU's words: not-found; those of DirtyBitmap.assertUsable; invalid for one that records below an export that lets nobody write. */
export function findExportedBitmap(
  graph: Graph,
  exported: Node,
  reference: BitmapReference,
  writable: boolean,
): DirtyBitmap {
  const bitmap = lookUp(graph, exported, reference);
  bitmap.assertUsable('read');
  if (typeof reference === 'string' && bitmap.enabled && !writable && !exported.readOnly)
    throw new BlockError('invalid', `Enabled bitmap '${reference}' incompatible with readonly export`);
  return bitmap;
}

function lookUp(graph: Graph, exported: Node, reference: BitmapReference): DirtyBitmap {
  if (typeof reference !== 'string') {
    const node = graph.find(reference.node);
    if (!node) throw new BlockError('not-found', `Node '${reference.node}' not found`);
    const found = node.findBitmap(reference.name);
    if (found) return found;
    throw new BlockError('not-found', `Dirty bitmap '${reference.name}' not found`);
  }
  for (const node of exported.chain()) {
    const found = node.findBitmap(reference);
    if (found) return found;
  }
  throw new BlockError('not-found', `Bitmap '${reference}' is not found`);
}

/** 0: nothing of the chain has it; 1: the image itself; 2: its backing file ... */
export function allocationDepth(backend: BlockBackend): MetaContext {
  return {
    name: ALLOCATION_DEPTH,
    extentAt: async (offset, lengthBytes) => {
      const status = await backend.status(offset, lengthBytes);
      return { lengthBytes: status.lengthBytes, state: status.allocated ? status.depth + 1 : 0 };
    },
  };
}

/** 1: dirty. Beyond a bitmap of a smaller node nothing is. */
export function dirtyBitmap(bitmap: DirtyBitmap): MetaContext {
  return {
    name: `${DIRTY_BITMAP_PREFIX}${bitmap.name ?? ''}`,
    extentAt: (offset, lengthBytes) => {
      const end = Math.min(offset + lengthBytes, bitmap.sizeBytes);
      if (offset >= end) return { lengthBytes, state: 0 };
      if (bitmap.isDirty(offset)) return { lengthBytes: bitmap.nextClean(offset, end) - offset, state: 1 };
      const next = bitmap.nextDirty(offset, end)?.offset ?? end;
      return { lengthBytes: next - offset, state: 0 };
    },
  };
}
