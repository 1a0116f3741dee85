import { BlockError } from '../base/error.js';
import type { Edge } from './edge.js';
import type { Node } from './node.js';

/** The links from a filter down to a node, which stay as they are until release(). */
export interface FrozenChain {
  readonly bottom: Node;
  release(): void;
}

/** For a driver of `top`. Errors: invalid where `bottom` is a filter or is not below it. */
export function freezeChain(top: Node, bottom: Node): FrozenChain {
  if (bottom.isFilter) throw new BlockError('invalid', `Bottom node '${bottom.name}' is a filter`);
  const links: Edge[] = [];
  for (let at = top; at !== bottom;) {
    const edge = at.below;
    if (!edge) throw new BlockError('invalid', `Bottom node '${bottom.name}' is not below '${top.name}'`);
    links.push(edge);
    at = edge.node;
  }
  const add = (by: 1 | -1): void => {
    for (const edge of links) {
      edge.frozen += by;
      if (edge.parent === top) edge.frozenByParent += by;
    }
  };
  add(1);
  return { bottom, release: () => add(-1) };
}
