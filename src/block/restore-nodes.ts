import { BlockError, toBlockError } from '../base/error.js';
import { NodeContext } from './driver-context.js';
import type { DriverDescription, Json, NodeOptions } from './driver.js';
import { hasProtocol } from './filename.js';
import { attachNamedFiles } from './named-files.js';
import type { NodeState } from './node-state.js';
import { Node } from './node.js';
import { type Opener, settingsOf } from './open.js';

/**
 * Makes the nodes of a graph again, in a graph without nodes: with their names, in their order. Errors: not-found, which
 * names all files that are missing, before anything is opened; corrupt; those of opening, with the node's name.
 */
export async function restoreNodes(opener: Opener, states: readonly NodeState[]): Promise<void> {
  await assertFilesThere(opener, states);
  const { graph } = opener;
  const byName = new Map(states.map((state) => [state.name, state]));
  if (byName.size < states.length) throw broken('two nodes have one name');
  const begun = new Set<string>();
  const make = async (name: string): Promise<void> => {
    const state = byName.get(name);
    if (!state) throw broken(`there is no node '${name}'`);
    if (graph.nodes.has(name)) return;
    if (begun.has(name)) throw broken(`node '${name}' is below itself`);
    begun.add(name);
    for (const child of Object.values(state.children)) await make(child);
    await restoreNode(opener, state);
  };
  for (const { name } of states) await make(name);
  for (const { name, inheritsFrom } of states)
    if (inheritsFrom !== undefined) graph.node(name).inheritsFrom = graph.nodes.get(inheritsFrom);
  for (const { name } of states) {
    const node = graph.node(name);
    graph.nodes.delete(name);
    graph.nodes.set(name, node);
  }
}

function broken(what: string): BlockError {
  return new BlockError('corrupt', `The state is broken: ${what}`);
}

const DESCRIPTOR_SET = /^\/dev\/fdset\/\d+$/;

async function assertFilesThere({ host, drivers }: Opener, states: readonly NodeState[]): Promise<void> {
  const missing: string[] = [];
  for (const { name, driver, options } of states) {
    const { filename } = options as { filename?: Json };
    if (drivers.find(driver)?.kind !== 'protocol' || typeof filename !== 'string') continue;
    if (host.passing?.files.has(name) || hasProtocol(filename)) continue;
    if (await host.files.stat(filename)) continue;
    const what = DESCRIPTOR_SET.test(filename)
      ? `the descriptors of ${filename}, which a client has passed`
      : filename;
    missing.push(`${what} (node '${name}')`);
  }
  if (missing.length === 0) return;
  throw new BlockError('not-found', `What the state is about is not there: ${missing.join(', ')}`);
}

async function restoreNode(opener: Opener, state: NodeState): Promise<void> {
  try {
    await open(opener, state);
  } catch (error) {
    const { kind, message, errno } = toBlockError(error);
    const text = `Node '${state.name}' cannot be opened again: ${message}`;
    throw new BlockError(kind, text, { cause: error, ...(errno !== undefined && { errno }) });
  }
}

async function open(opener: Opener, state: NodeState): Promise<void> {
  const { graph } = opener;
  const plan = opener.drivers.gate.plan(optionsOf(opener.drivers.find(state.driver), state));
  const { driver, options } = plan;
  const { cache, forceShare, readOnly, discard, detectZeroes, isInactive } = state;
  const settings = settingsOf(driver, options, { cache, forceShare });
  driver.checkOptions?.(settings, [...plan.children.keys()]);
  const node = new Node({
    ...{ name: state.name, driver, options, settings, readOnly, modes: { discard, detectZeroes } },
    ...{ monitorOwned: state.isOwned, inactive: isInactive },
    ...(state.isGuessed && driver.isFallback && { guard: opener.newGuard() }),
  });
  const { backing, ...storage } = state.children;
  await graph.transaction((transaction) => {
    transaction.add(node);
    for (const [role, child] of Object.entries(storage)) transaction.attach(node, role, graph.node(child));
  });
  const ofDriver = new NodeContext(node, graph, { forCheck: false, warn: (text) => opener.onWarning(text) });
  const context = { readOnly, inactive: isInactive, forceShare, cache };
  if (driver.namedFiles)
    await attachNamedFiles(opener, node, await driver.namedFiles(ofDriver, settings), context);
  node.opened(await driver.open(ofDriver, settings));
  node.io.copiesOnRead = state.copiesOnRead;
  node.automaticBacking = state.automaticBacking;
  if (backing === undefined) return;
  if (!driver.options.backing) {
    const text = `Driver '${driver.name}' has no backing files`;
    throw new BlockError('corrupt', text);
  }
  await graph.transaction((transaction) => void transaction.attach(node, 'backing', graph.node(backing)));
}

/** As blockdev-add takes them, children by their names. */
function optionsOf(
  driver: DriverDescription | undefined,
  { options, children, ...state }: NodeState,
): NodeOptions {
  const named: { [role: string]: Json } = {};
  for (const { role, isList } of driver?.options.children ?? []) {
    if (isList === true) named[role] = listOf(role, children);
    else if (children[role] !== undefined) named[role] = children[role];
  }
  return { ...options, driver: state.driver, ...named };
}

function listOf(role: string, children: NodeState['children']): string[] {
  const list: string[] = [];
  for (let name = children[`${role}.0`]; name !== undefined; name = children[`${role}.${list.length}`])
    list.push(name);
  return list;
}
