import { BlockError } from '../base/error.js';
import { MAX_CHAIN_DEPTH } from '../base/limits.js';
import type { Edge } from './edge.js';
import { Node } from './node.js';

/** Refuses an overlay on `node` that could not be opened again. Errors: limit. */
export function assertOverlayFits(node: Node): void {
  if (depthOf(node) + 1 > MAX_CHAIN_DEPTH) throw tooLong();
}

/** Refuses a link that makes such a chain, of all images above it. Errors: limit. */
export function assertChainFits({ parent, role, node }: Edge): void {
  if (role !== 'backing' || !(parent instanceof Node)) return;
  if (depthOf(node) + 1 + heightOf(parent) > MAX_CHAIN_DEPTH) throw tooLong();
}

export function tooLong(): BlockError {
  const text = `Backing chains of more than ${MAX_CHAIN_DEPTH} images below the first are not supported`;
  return new BlockError('limit', text);
}

/** Images below. */
function depthOf(node: Node): number {
  let depth = 0;
  for (let below = node.backingNode(); below; below = below.backingNode()) depth++;
  return depth;
}

/** Most images in a chain above. */
function heightOf(node: Node): number {
  let height = 0;
  let level = new Set([node]);
  for (;;) {
    const above = new Set<Node>();
    for (const at of level) for (const overlay of overlaysOf(at)) above.add(overlay);
    if (above.size === 0) return height;
    height++;
    level = above;
  }
}

/** Images whose backing file a node is, also through filters. */
function* overlaysOf(node: Node): Generator<Node> {
  for (const { parent, role } of node.parents) {
    if (!(parent instanceof Node)) continue;
    if (role === 'backing') yield parent;
    else if (parent.isFilter) yield* overlaysOf(parent);
  }
}
