import { BlockError } from '../base/error.js';
import { findDevice } from '../block/find-node.js';
import { Node } from '../block/node.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';

export function registerGraphChanges(engine: Parts<'command' | 'graph'>): void {
  engine.command('x-blockdev-change', (args) => changeChildren(engine, args));
  engine.command('x-blockdev-set-iothread', (args) => setIoThread(engine, args));
}

/** No driver here has children that come and go. Errors: those, after what is wrong in what is asked. */
function changeChildren({ graph }: Parts<'graph'>, args: CommandArguments<'x-blockdev-change'>): never {
  const { parent, child, node } = args;
  const changed = findDevice(graph, parent);
  if (child !== undefined && node !== undefined)
    throw new BlockError('invalid', 'The parameters child and node are in conflict');
  if (child === undefined && node === undefined)
    throw new BlockError('invalid', 'Either child or node must be specified');
  if (child !== undefined && !changed.children.has(child))
    throw new BlockError('not-found', `Node '${parent}' does not have child '${child}'`);
  if (node !== undefined && !graph.nodes.has(node))
    throw new BlockError('not-found', `Node '${node}' not found`);
  const what = child === undefined ? 'adding' : 'removing';
  throw new BlockError('unsupported', `The node ${parent} does not support ${what} a child`);
}

/** All nodes are in one thread, whatever object stands for another; who asks is told what QEMU would tell. */
function setIoThread({ graph }: Parts<'graph'>, args: CommandArguments<'x-blockdev-set-iothread'>): void {
  const { 'node-name': name, iothread, force = false } = args;
  const node = graph.nodes.get(name);
  if (!node) throw new BlockError('not-found', `Failed to find node with node-name='${name}'`);
  const isUsed = [...node.parents].some(({ parent }) => !(parent instanceof Node));
  if (isUsed && !force) {
    const text = `Node ${name} is associated with a BlockBackend and could be in use`;
    throw new BlockError('busy', `${text} (use force=true to override this check)`);
  }
  const isThere = graph.objects.list().some(({ id, type }) => id === iothread && type.name === 'iothread');
  if (iothread !== null && !isThere) throw new BlockError('not-found', `Cannot find iothread ${iothread}`);
}
