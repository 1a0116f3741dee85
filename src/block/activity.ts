import { BlockError } from '../base/error.js';
import type { PreparedChange } from './driver.js';
import type { Graph } from './graph.js';
import { Node } from './node.js';
import type { GraphTransaction } from './transaction.js';

/**
 * Makes images ours to write that another process owned, each with all below it: all of them, or (when one of them
 * cannot be had) none. Those that are ours already stay as they are.
 * Errors: busy (the other process has it still), those of opening an image for writing.
 */
export function activate(graph: Graph, tops: Iterable<Node>): Promise<void> {
  return graph.transaction((transaction) => setActivity(transaction, tops, 'active'));
}

/**
 * Gives images to another process, each with all below it: everything written is durable and nothing is cached, then
 * the locks go. All of them, or none. The guest of devices on them does not run meanwhile.
 * Errors: permission while somebody may write, busy while a node that goes on uses it; those of a flush.
 */
export async function inactivate(graph: Graph, tops: Iterable<Node>): Promise<void> {
  const given = [...tops];
  await graph.drained(given, () => graph.transaction((transaction) => giveAway(transaction, given)));
}

/** The same as a step of a transaction, in a drained section of the nodes. */
export function giveAway(transaction: GraphTransaction, tops: Iterable<Node>): void {
  const given = subtrees(tops);
  setActivity(transaction, given, 'inactive');
  for (const node of given) assertMayGo(node, given);
}

function setActivity(transaction: GraphTransaction, tops: Iterable<Node>, activity: Node['activity']): void {
  for (const node of subtrees(tops)) transaction.setActivity(node, activity);
}

/** The nodes and all below them. */
export function subtrees(tops: Iterable<Node>): Set<Node> {
  const found = new Set<Node>(tops);
  for (const node of found) for (const edge of node.children.values()) found.add(edge.node);
  return found;
}

/** Users that go on must not lose what they write or stand on; a guest's disk gives up by itself. In QEMU's words. */
function assertMayGo(node: Node, given: ReadonlySet<Node>): void {
  for (const edge of node.parents) {
    const { parent } = edge;
    if (parent instanceof Node) {
      if (given.has(parent) || parent.activity === 'inactive') continue;
      throw new BlockError('busy', 'Node has active parent node', { node: node.name });
    }
    if (edge.isWritable && !parent.isGuest)
      throw new BlockError('permission', 'Failed to inactivate node: Operation not permitted', {
        ...{ node: node.name, errno: 'EPERM' },
      });
  }
}

/** What a node's driver does before its image goes to another process. */
export async function prepareInactivation(node: Node): Promise<PreparedChange | undefined> {
  const { instance, readOnly } = node;
  if (instance.prepareInactivation) return instance.prepareInactivation();
  if (!readOnly) await instance.flush();
  return undefined;
}

/** What a node's driver does before its image becomes ours, and then when it does. */
export async function prepareActivation(node: Node, mayWrite: boolean): Promise<PreparedChange> {
  const { instance, lengthBytes } = node;
  const change = await instance.prepareActivation?.(mayWrite);
  return {
    commit: () => {
      change?.commit();
      node.reopened(lengthBytes);
    },
    abort: () => change?.abort(),
  };
}
