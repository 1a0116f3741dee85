import { BlockError } from '../base/error.js';
import { GENERIC_OPTIONS } from '../schema/blockdev-options.js';
import { FlatOptions, parseFlatMembers } from '../schema/flat.js';
import type { Members } from '../schema/types.js';
import type { CacheSettings, GivenOptions, Settings } from './driver.js';
import type { Edge } from './edge.js';
import type { Graph } from './graph.js';
import { nodeModes } from './modes.js';
import { DEFAULT_CACHE, Node } from './node.js';
import type { ChildPlan, NodePlan } from './node-plan.js';
import { settingsOf } from './open.js';
import { GraphTransaction } from './transaction.js';

/** Children that blockdev-reopen may change: others are told by their option. */
const REPLACEABLE = ['file', 'backing'];

/** Options whose absence means their default; those of a driver that are not mutable must be given as they were. */
const RESETTABLE = ['node-name', 'discard', 'cache', 'read-only', 'auto-read-only', 'detect-zeroes'];

/**
 * Changes how nodes are open, as blockdev-reopen does: all of them or, when one cannot be, none. What a plan does not
 * say goes back to its default. Children that a node's own options brought follow it.
 * Errors: in QEMU's words; those of drivers, files and permissions.
 */
export function reopen(graph: Graph, plans: readonly NodePlan[]): Promise<void> {
  return reopenQueue(graph, () => queueOf(graph, plans));
}

/**
 * The same of one node with flat options, those of children beginning with their roles; what they do not say stays as it
 * is. Errors: as of reopen.
 */
export function reopenKeeping(graph: Graph, node: Node, options: FlatOptions): Promise<void> {
  return reopenQueue(graph, () => {
    const queue = new Map<Node, Entry>();
    addEntry(queue, keepingEntryOf(node, options, undefined));
    return [...queue.values()];
  });
}

/** `queue` is asked anew each time: a graph may change while others drain it. */
async function reopenQueue(graph: Graph, queue: () => Entry[]): Promise<void> {
  const nodes = queue().map(({ node }) => node);
  const check = (): void => void listChanges(graph, new GraphTransaction(graph), queue());
  await graph.drainedUnless(check, nodes, async () => {
    await flushWritable(nodes);
    let gone: Node[] = [];
    await graph.transaction((transaction) => {
      gone = listChanges(graph, transaction, queue());
    });
    for (const node of gone) node.inheritsFrom = undefined;
    await graph.release(gone);
  });
}

/** Answers the children that are taken away. Errors: those of options that are wrong. */
function listChanges(graph: Graph, transaction: GraphTransaction, queue: readonly Entry[]): Node[] {
  const changes = new Changes(graph, transaction);
  for (const entry of queue) changes.add(entry);
  return changes.detached;
}

function nodeOf(graph: Graph, options: GivenOptions): Node {
  const name = options['node-name'];
  if (name === undefined) throw invalid('node-name not specified');
  return graph.node(name);
}

/** What is written so far is durable, whatever becomes of the file below. */
async function flushWritable(nodes: Iterable<Node>): Promise<void> {
  for (const node of nodes) {
    if (!node.isWritable) continue;
    await node.io.flush().catch((error: unknown) => {
      throw new BlockError('io', 'Error flushing drive', { node: node.name, cause: error });
    });
  }
}

/** One node to be reopened. */
interface Entry {
  readonly node: Node;
  given: GivenOptions;
  children: Map<string, ChildPlan | null>;
  /** The driver that the options name. */
  driverName: string;
  /** What is not given stays as it is. */
  readonly keepsOld: boolean;
  readonly above: { entry: Entry; role: string } | undefined;
  /** Flat options for children that follow, by role. */
  readonly below?: ReadonlyMap<string, FlatOptions>;
}

/** The nodes that are named, each with the children that follow it; of one that is named twice the last word counts. */
function queueOf(graph: Graph, plans: readonly NodePlan[]): Entry[] {
  const queue = new Map<Node, Entry>();
  for (const plan of plans) addEntry(queue, entryOf(nodeOf(graph, plan.options), plan, undefined));
  return [...queue.values()];
}

function entryOf(node: Node, plan: NodePlan | undefined, above: Entry['above']): Entry {
  const children = new Map<string, ChildPlan | null>(plan?.children);
  if (plan?.backing !== undefined) children.set('backing', plan.backing);
  return {
    ...{ node, children, above, given: plan?.options ?? {} },
    ...{ driverName: plan?.driver.name ?? node.driver.name, keepsOld: plan === undefined },
  };
}

/** Errors: invalid for an option that the node and its children do not have. */
function keepingEntryOf(node: Node, options: FlatOptions, above: Entry['above']): Entry {
  const flat = options.copy();
  const below = new Map<string, FlatOptions>();
  for (const [role, { node: child }] of node.children)
    if (child.inheritsFrom === node) below.set(role, flat.takeUnder(role));
  const given = {
    ...parseFlatMembers(saidOf(GENERIC_OPTIONS, flat), flat),
    ...parseFlatMembers(saidOf(node.driver.options.members, flat), flat),
  } as GivenOptions;
  const { firstKey } = flat;
  if (firstKey !== undefined) throw cannotChange(firstKey);
  return { ...entryOf(node, undefined, above), given, below };
}

/** Without those of which nothing is said, which may be required of a new node. */
function saidOf(members: Members, flat: FlatOptions): Members {
  const said = new Set(flat.entries().map(([key]) => key.split('.')[0]));
  return Object.fromEntries(Object.entries(members).filter(([name]) => said.has(name)));
}

function addEntry(queue: Map<Node, Entry>, added: Entry): void {
  const known = queue.get(added.node);
  if (known) {
    known.given = { ...known.given, ...added.given };
    known.children = new Map([...known.children, ...added.children]);
    known.driverName = added.driverName;
  } else queue.set(added.node, added);
  const entry = known ?? added;
  for (const [role, { node }] of entry.node.children) {
    if (node.inheritsFrom !== entry.node) continue;
    const child = entry.children.get(role) ?? (entry.children.has(role) ? null : node.name);
    // Another takes its place.
    if (child === null || (typeof child === 'string' && child !== node.name)) continue;
    const plan = typeof child === 'string' ? undefined : (child as NodePlan);
    const options = entry.below?.get(role);
    const followed = { entry, role };
    addEntry(queue, options ? keepingEntryOf(node, options, followed) : entryOf(node, plan, followed));
  }
}

/** Makes a transaction of entries, one after the other: each sees what those before it change. */
class Changes {
  /** Children that were taken away from their parents. */
  readonly detached: Node[] = [];
  readonly #graph: Graph;
  readonly #transaction: GraphTransaction;
  readonly #next = new Map<Entry, Next>();
  /** Children as they will be. */
  readonly #children = new Map<Node, Map<string, Node>>();

  constructor(graph: Graph, transaction: GraphTransaction) {
    this.#graph = graph;
    this.#transaction = transaction;
  }

  add(entry: Entry): void {
    const { node } = entry;
    const next = this.#nextOf(entry);
    // What becomes of discards stays where nothing is said of them, as in QEMU.
    const modes = nodeModes(next.options, node.modes.discard);
    if (!entry.keepsOld) checkReset(entry);
    if (!node.instance.prepareReopen) {
      const what = `Block format '${node.driver.name}' used by node '${node.name}'`;
      throw new BlockError('unsupported', `${what} does not support reopening files`, { node: node.name });
    }
    const newChildren = new Map<string, Edge>();
    this.#changeBacking(entry, newChildren);
    this.#changeFile(entry, newChildren);
    checkSame(entry);
    this.#next.set(entry, next);
    const { options, settings, readOnly } = next;
    this.#transaction.configure(node, { options, settings, readOnly, modes }, newChildren);
  }

  /** What is given, and what is not, of the node above or as it was. */
  #nextOf({ node, given, keepsOld, above }: Entry): Next {
    const parent = above && this.#next.get(above.entry);
    const options = keepsOld ? { ...node.options, ...given } : withNodeName(node, given);
    const told = { ...parent?.toldCache, ...options.cache };
    const cache = { ...DEFAULT_CACHE, ...(keepsOld && node.settings.cache), ...told };
    const asBefore = keepsOld && node.readOnly;
    const inherited = above?.role === 'backing' || (parent?.readOnly ?? asBefore);
    const forceShare = node.settings['force-share'] ?? false;
    return {
      options,
      settings: settingsOf(node.driver, options, { cache, forceShare }),
      readOnly: options['read-only'] ?? inherited,
      toldCache: told,
    };
  }

  #changeBacking(entry: Entry, newChildren: Map<string, Edge>): void {
    const { node, children, keepsOld } = entry;
    if (!node.driver.options.backing) return;
    const wanted = children.get('backing');
    const has = node.children.has('backing') || node.backingFilename !== undefined;
    if (wanted === undefined && has && !keepsOld) throw invalid(`backing is missing for '${node.name}'`);
    if (wanted !== undefined) this.#replace(node, 'backing', wanted, newChildren);
  }

  #changeFile({ node, children }: Entry, newChildren: Map<string, Edge>): void {
    const wanted = children.get('file');
    if (wanted !== undefined) this.#replace(node, 'file', wanted, newChildren);
  }

  #replace(node: Node, role: string, wanted: ChildPlan | null, newChildren: Map<string, Edge>): void {
    const edge = node.children.get(role);
    // Options are those of the child that is there, which follows the node.
    if (wanted !== null && typeof wanted !== 'string') return;
    const child = wanted === null ? undefined : findChild(this.#graph, wanted);
    if (edge?.node === child || edge?.node.skipImplicitFilters() === child) return;
    if (child && this.#reaches(child, node))
      throw invalid(`Making '${child.name}' a ${role} child of '${node.name}' would create a cycle`);
    if (edge?.node.implicit)
      throw new BlockError('busy', `Cannot replace implicit ${role} child of ${node.name}`, {
        node: node.name,
      });
    if (edge && edge.frozen > 0) {
      const link = `frozen '${role}' link from '${node.name}' to '${edge.node.name}'`;
      throw new BlockError('busy', `Cannot change ${link}`, { node: node.name });
    }
    if (edge) {
      this.#transaction.detach(edge);
      this.detached.push(edge.node);
    }
    const below = this.#childrenOf(node);
    if (child) {
      newChildren.set(role, this.#transaction.attach(node, role, child));
      below.set(role, child);
    } else below.delete(role);
  }

  #childrenOf(node: Node): Map<string, Node> {
    let children = this.#children.get(node);
    if (!children) {
      children = new Map([...node.children].map(([role, edge]) => [role, edge.node]));
      this.#children.set(node, children);
    }
    return children;
  }

  #reaches(from: Node, to: Node): boolean {
    const seen = new Set([from]);
    for (const at of seen) for (const child of this.#childrenOf(at).values()) seen.add(child);
    return seen.has(to);
  }
}

/** How a node will be open. */
interface Next {
  options: GivenOptions;
  settings: Settings;
  readOnly: boolean;
  /** What of `cache` was said, here or above: children have it too. */
  toldCache: Partial<CacheSettings>;
}

function withNodeName(node: Node, given: GivenOptions): GivenOptions {
  const name = node.options['node-name'];
  return name === undefined ? given : { ...given, 'node-name': name };
}

function findChild(graph: Graph, name: string): Node {
  const node = graph.find(name);
  if (node) return node;
  throw new BlockError('not-found', `Cannot find device='' nor node-name='${name}'`);
}

/** An option that may not change may not be left out either. */
function checkReset({ node, given }: Entry): void {
  const { mutableOptions = [] } = node.driver;
  const now = new Map(flatOf(given));
  for (const [key] of flatOf(node.options)) {
    const [name = ''] = key.split('.');
    if (RESETTABLE.includes(name) || mutableOptions.includes(name) || now.has(key)) continue;
    throw invalid(`Option '${key}' cannot be reset to its default value`);
  }
}

/** Whatever else is given must be as it was given. */
function checkSame({ node, given, driverName, children }: Entry): void {
  const { mutableOptions = [] } = node.driver;
  if (driverName !== node.driver.name) throw cannotChange('driver');
  for (const [role, child] of children) checkChild(node, role, child);
  const before = new Map(flatOf({ ...node.options, 'node-name': node.name }));
  for (const [key, value] of flatOf(given)) {
    const [name = ''] = key.split('.');
    const mayChange = name !== 'node-name' && (RESETTABLE.includes(name) || mutableOptions.includes(name));
    if (!mayChange && before.get(key) !== value) throw cannotChange(key);
  }
}

function checkChild(node: Node, role: string, child: ChildPlan | null): void {
  const now = node.children.get(role)?.node;
  if (typeof child !== 'string') {
    if (child !== null && now?.inheritsFrom !== node) throw cannotChange(`${role}.driver`);
  } else if (!REPLACEABLE.includes(role) && child !== now?.name) throw cannotChange(role);
}

function cannotChange(option: string): BlockError {
  return invalid(`Cannot change the option '${option}'`);
}

function flatOf(options: GivenOptions): Array<[string, unknown]> {
  return FlatOptions.of(options).entries();
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}
