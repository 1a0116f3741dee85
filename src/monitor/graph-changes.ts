import { BlockError } from '../base/error.js';
import type { Edge } from '../block/edge.js';
import { findDevice } from '../block/find-node.js';
import type { Graph } from '../block/graph.js';
import { Node } from '../block/node.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';

export function registerGraphChanges(engine: Parts<'command' | 'graph'>): void {
  engine.command('x-blockdev-change', (args) => changeChildren(engine, args));
  engine.command('x-blockdev-set-iothread', (args) => setIoThread(engine, args));
}

/** Errors: in QEMU's words; those of drivers whose children may not change so. */
async function changeChildren(
  { graph }: Parts<'graph'>,
  args: CommandArguments<'x-blockdev-change'>,
): Promise<void> {
  const { parent, child, node } = args;
  const changed = findDevice(graph, parent);
  if (child !== undefined && node !== undefined)
    throw new BlockError('invalid', 'The parameters child and node are in conflict');
  if (child !== undefined) {
    const edge = changed.children.get(child);
    if (!edge) throw new BlockError('not-found', `Node '${parent}' does not have child '${child}'`);
    return removeChild(graph, changed, edge);
  }
  if (node === undefined) throw new BlockError('invalid', 'Either child or node must be specified');
  const added = graph.find(node);
  if (!added) throw new BlockError('not-found', `Node '${node}' not found`);
  return addChild(graph, changed, added);
}

async function addChild(graph: Graph, parent: Node, node: Node): Promise<void> {
  const { changingChildren } = parent.instance;
  if (!changingChildren)
    throw new BlockError('unsupported', `The node ${parent.label} does not support adding a child`);
  if (node.parents.size > 0) throw new BlockError('busy', `The node ${node.label} already has a parent`);
  await graph.drained([parent], async () => {
    const role = changingChildren.roleOfNext(node);
    await graph.transaction((transaction) => void transaction.attach(parent, role, node));
    changingChildren.added(role);
  });
}

async function removeChild(graph: Graph, parent: Node, edge: Edge): Promise<void> {
  const { changingChildren } = parent.instance;
  if (!changingChildren)
    throw new BlockError('unsupported', `The node ${parent.label} does not support removing a child`);
  const { node, role } = edge;
  await graph.drained([parent], async () => {
    changingChildren.checkRemoval(role);
    await graph.transaction((transaction) => transaction.detach(edge));
    changingChildren.removed(role);
  });
  if (node.inheritsFrom === parent) node.inheritsFrom = undefined;
  await graph.release([node]);
}

/** All nodes are in one thread, whatever object stands for another; who asks is told what QEMU would tell. */
function setIoThread({ graph }: Parts<'graph'>, args: CommandArguments<'x-blockdev-set-iothread'>): void {
  const { 'node-name': name, iothread, force = false } = args;
  const node = graph.find(name);
  if (!node) throw new BlockError('not-found', `Failed to find node with node-name='${name}'`);
  // Nodes that jobs hold by other roles are theirs to move along.
  const isUsed = [...node.parents].some(({ parent, role }) => !(parent instanceof Node) && role === 'root');
  if (isUsed && !force) {
    const text = `Node ${name} is associated with a BlockBackend and could be in use`;
    throw new BlockError('busy', `${text} (use force=true to override this check)`);
  }
  const isThere = graph.objects.list().some(({ id, type }) => id === iothread && type.name === 'iothread');
  if (iothread !== null && !isThere) throw new BlockError('not-found', `Cannot find iothread ${iothread}`);
}
