import type { Node } from './node.js';

/** Whether a node came with the options of another, or of one that came with them. */
export function isInheritedFrom(node: Node, ancestor: Node): boolean {
  for (let at = node.inheritsFrom; at; at = at.inheritsFrom) if (at === ancestor) return true;
  return false;
}
