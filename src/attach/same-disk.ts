import { BlockBackend } from '../block/backend.js';
import type { Node } from '../block/node.js';
import type { NbdTarget } from '../wire/nbd/target.js';

/** Whether two exports or endpoints lead to the same node, filters apart: see LostChanges. */
export function isSameDisk(one: NbdTarget, other: NbdTarget): boolean {
  const node = diskOf(one);
  return one === other || (node !== undefined && node === diskOf(other));
}

function diskOf(target: NbdTarget): Node | undefined {
  if (target instanceof BlockBackend) return target.root?.node.skipFilters();
  const backend: unknown = 'backend' in target ? target.backend : undefined;
  return backend instanceof BlockBackend ? backend.root?.node.skipFilters() : undefined;
}
