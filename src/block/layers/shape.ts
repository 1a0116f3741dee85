import type { Node } from '../node.js';

/**
 * The images below a node, top first, as far as reads pass by all between them unchanged; the last may be a node that must
 * be asked itself, whatever it is. `isWhole`: nothing is below the last, and it may be looked through.
 */
export function listLayers(top: Node): { layers: Node[]; isWhole: boolean } {
  const layers: Node[] = [];
  for (let edge = top.children.get('backing'); edge;) {
    let at = edge.node;
    while (at.isFilter && at.driver.readsAsChild === true && at.filtered) at = at.filtered.node;
    layers.push(at);
    if (!mayLookThrough(at)) return { layers, isWhole: false };
    edge = at.children.get('backing');
  }
  return { layers, isWhole: true };
}

/** It maps, tells nobody of its reads, and nobody changes it but through it. */
export function mayLookThrough(node: Node): boolean {
  return node.isOpen && node.activity === 'active' && node.io.mayLookThrough;
}
