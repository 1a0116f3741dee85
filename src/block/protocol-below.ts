import type { IoDriver } from './driver.js';
import type { Node } from './node.js';

/** Where requests to a node arrive, formats having mapped them: a protocol, or a filter above it, which copies nothing. */
export function protocolOf(node: Node): IoDriver | undefined {
  let at = node;
  for (let edge = at.filtered; !at.instance.io && edge; edge = at.filtered) at = edge.node;
  return at.instance.io;
}
