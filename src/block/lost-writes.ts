import type { Node } from './node.js';

/** Something of what was written to a node, by itself or by what holds its bytes, is gone: see DriverInstance. */
export function hasLostWrites(node: Node): boolean {
  if (node.instance.hasLostWrites === true) return true;
  for (const [role, edge] of node.children) if (role !== 'backing' && hasLostWrites(edge.node)) return true;
  return false;
}
