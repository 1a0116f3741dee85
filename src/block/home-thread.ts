import { BlockError } from '../base/error.js';
import type { Graph } from './graph.js';
import { Node } from './node.js';

/** The thread of those who have named none. */
export const MAIN_THREAD = '';

/**
 * Of a graph as it is to be: nodes that are linked are of one thread (an `iothread` by its name), and a guest's device binds
 * what it uses to its own. All is served by one thread here; but who names several is told where QEMU could not do so.
 * Errors: busy where devices of two threads come to use linked nodes.
 */
export function assertOneThread(graph: Graph, touched: Iterable<Node>): void {
  const named = new Set<string>();
  for (const { thread } of graph.backends) if (thread !== undefined) named.add(thread);
  if (named.size < 2) return;
  const seen = new Set<Node>();
  for (const node of touched) {
    if (seen.has(node)) continue;
    if (threadsOf(node, seen).size < 2) continue;
    throw new BlockError('busy', 'Cannot change iothread of active block backend');
  }
}

/** Those that are bound to which a node and all that is linked with it; `seen` gets these nodes. */
function threadsOf(first: Node, seen: Set<Node>): Set<string> {
  const threads = new Set<string>();
  const linked = [first];
  seen.add(first);
  for (const node of linked) {
    const next: Node[] = [...node.children.values()].map((edge) => edge.node);
    for (const { parent } of node.parents) {
      if (parent instanceof Node) next.push(parent);
      else if (parent.thread !== undefined) threads.add(parent.thread);
    }
    for (const other of next) {
      if (seen.has(other)) continue;
      seen.add(other);
      linked.push(other);
    }
  }
  return threads;
}
