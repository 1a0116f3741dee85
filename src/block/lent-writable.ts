import type { Graph } from './graph.js';
import type { Node } from './node.js';

/** Whether a node is to be read-only when nobody needs it otherwise. */
export function isMeantReadOnly(node: Node): boolean {
  return node.readOnly || node.isLentWritable;
}

/** It is writable now, for one who ends that with endWritable. */
export function beganWritable(node: Node): void {
  node.isLentWritable = false;
}

/**
 * In a drained section: ends what made a read-only node writable for a while. Errors: those of its last flush; it stays
 * writable then, and is read-only again when the next who needs it writable is done with it.
 */
export async function endWritable(graph: Graph, node: Node): Promise<void> {
  node.isLentWritable = true;
  await graph.transaction((transaction) => transaction.setReadOnly(node, true));
  node.isLentWritable = false;
}
