import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import { prepareActivation, prepareInactivation } from './activity.js';
import { BlockBackend } from './backend.js';
import { assertChainFits } from './chain-limit.js';
import type { PermissionSet, PreparedChange, Settings } from './driver.js';
import { Edge, type EdgeParent } from './edge.js';
import type { Graph } from './graph.js';
import { computePermissions, cumulative, NO_PERMISSIONS } from './graph-permissions.js';
import { assertOneThread } from './home-thread.js';
import { Node, type NodeConfiguration } from './node.js';
import { hasPermission, Permission } from './permissions.js';

interface Step {
  apply(): void;
  undo(): void;
}

interface Part {
  /** The first of its steps. */
  begin: number;
  prefix: string;
  reached?: () => void;
}

/**
 * One change of the graph. Steps are applied to see the tentative graph and its permissions, undone while drivers
 * prepare (so that nobody sees a graph that may not come to be), and applied again at commit, which cannot fail.
 */
export class GraphTransaction {
  readonly #graph: Graph;
  readonly #steps: Step[] = [];
  /** Where parts begin that are looked at one after the other, and what comes before their conflicts. */
  readonly #parts: Part[] = [{ begin: 0, prefix: '' }];
  readonly #added = new Set<Node>();
  readonly #gainsParents = new Set<Node>();
  /** Others than jobs that copy use them from now on. */
  readonly #noCopies = new Set<Node>();
  readonly #attached: Edge[] = [];
  readonly #retargeted: Edge[] = [];
  /** Whose permissions, or whose children's, may be others afterwards; below them it is looked. */
  readonly #touched = new Set<Node>();
  readonly #reopened = new Map<Node, ReadonlyMap<string, Edge>>();
  /** Of the graph as it will be. */
  #description: string | undefined;

  constructor(graph: Graph) {
    this.#graph = graph;
  }

  /**
   * What is listed from here on must be possible after what was listed before, which must be possible by itself: so
   * conflicts are told in the order of QEMU, which makes the changes one by one. `prefix`: comes before their text;
   * `reached` is called when what was listed before is found possible, also if what follows then is not.
   */
  then(prefix = '', reached?: () => void): void {
    this.#parts.push({ begin: this.#steps.length, prefix, ...(reached && { reached }) });
  }

  /** Puts a new node into the graph (opened before, or after its children are attached). */
  add(node: Node): void {
    this.#added.add(node);
    this.#touched.add(node);
    this.#steps.push({
      apply: () => {
        node.layerMaps = this.#graph.layerMaps;
        this.#graph.nodes.set(node.name, node);
      },
      undo: () => void this.#graph.nodes.delete(node.name),
    });
  }

  /** Makes `child` a child of a node (role) or the node of a backend (role 'root'). */
  attach(parent: EdgeParent, role: string, child: Node): Edge {
    const edge = new Edge(parent, role, child);
    this.#attached.push(edge);
    this.#gainsParents.add(child);
    this.#touchUse(edge);
    if (parent instanceof Node || parent.isWritable) this.#noCopies.add(child);
    this.#steps.push({ apply: () => this.#link(edge), undo: () => this.#unlink(edge) });
    return edge;
  }

  detach(edge: Edge): void {
    assertNotFrozen(edge, undefined);
    this.#touchUse(edge);
    this.#steps.push({ apply: () => this.#unlink(edge), undo: () => this.#link(edge) });
  }

  /** The same use, of another node. */
  retarget(edge: Edge, node: Node): void {
    assertNotFrozen(edge, node);
    this.#gainsParents.add(node);
    this.#touchUse(edge);
    this.#touched.add(node);
    this.#retargeted.push(edge);
    this.#noCopies.add(node);
    let old: Node | undefined;
    this.#steps.push({
      apply: () => {
        old = edge.node;
        this.#touched.add(old);
        old.parents.delete(edge);
        edge.node = node;
        node.parents.add(edge);
      },
      undo: () => {
        assert(old, 'undo before apply');
        node.parents.delete(edge);
        edge.node = old;
        old.parents.add(edge);
      },
    });
  }

  /** Every parent of `from` becomes a parent of `to`, except `to`, what is below it, and edges that `keep` names. */
  replaceNode(from: Node, to: Node, keep: (edge: Edge) => boolean = () => false): void {
    const below = subtree(to);
    for (const edge of from.parents) {
      if ((edge.parent instanceof Node && below.has(edge.parent)) || keep(edge)) continue;
      this.retarget(edge, to);
    }
  }

  /**
   * Reopens a node and what it keeps its content in; a node that is already so is left alone. Errors: kind permission when
   * the user has said of a file that it is not to be written.
   */
  setReadOnly(node: Node, readOnly: boolean): void {
    if (node.readOnly !== readOnly) {
      this.#touched.add(node);
      this.#steps.push({
        apply: () => void (node.readOnly = readOnly),
        undo: () => void (node.readOnly = !readOnly),
      });
    }
    const shown = node.isFilter ? node.filtered : undefined;
    const below = shown ? [shown] : [...node.children.values()].filter(({ role }) => role !== 'backing');
    for (const edge of below) this.#setStorageReadOnly(edge.node, readOnly);
  }

  #setStorageReadOnly(file: Node, readOnly: boolean): void {
    if (!isSetByUser(file)) this.setReadOnly(file, readOnly);
    else if (!readOnly && file.readOnly)
      throw new BlockError('permission', 'Block node is read-only', { node: file.name, errno: 'EPERM' });
  }

  /** Its driver reopens (block/reopen); `newChildren`: what was attached in the place of others, by role. */
  configure(node: Node, configuration: NodeConfiguration, newChildren: ReadonlyMap<string, Edge>): void {
    const old = node.configuration;
    this.#touched.add(node);
    this.#reopened.set(node, newChildren);
    this.#steps.push({
      apply: () => node.configure(configuration),
      undo: () => node.configure(old),
    });
  }

  /** Changes what a backend asks for. */
  setPermissions(backend: BlockBackend, perm: number, shared: number): void {
    const old = { perm: backend.perm, shared: backend.shared };
    if (backend.root) this.#touched.add(backend.root.node);
    this.#steps.push({
      apply: () => void Object.assign(backend, { perm, shared }),
      undo: () => void Object.assign(backend, old),
    });
  }

  /** Whose the image is; a node that is so already is left alone. See block/activity. */
  setActivity(node: Node, activity: Node['activity']): void {
    const old = node.activity;
    if (old === activity) return;
    this.#touched.add(node);
    for (const edge of node.parents) this.#touchUse(edge);
    this.#steps.push({
      apply: () => void (node.activity = activity),
      undo: () => void (node.activity = old),
    });
  }

  #touchUse({ parent, node }: Edge): void {
    this.#touched.add(node);
    if (parent instanceof Node) this.#touched.add(parent);
  }

  /** For the graph's mutex holder only. */
  async run(): Promise<void> {
    const after = this.#tryOut();
    const before = statesBefore(this.#graph, after.keys());
    const prepared = await prepareChanges(before, after, this.#reopened);
    await this.#keepDescription(prepared);
    this.#apply();
    for (const [edge, set] of computePermissions(this.#graph, this.#touched).edges) Object.assign(edge, set);
    this.#graph.layerMaps.graphChanged();
    for (const change of prepared) change.commit();
    for (const node of this.#noCopies) node.isCopy = false;
    this.#graph.edgesChanged();
  }

  /** Tries the steps and takes them back. Errors: those of a graph that cannot be. */
  rehearse(): void {
    this.#tryOut();
  }

  /** Before anybody can use the changed graph: what is written through it must be found again. */
  async #keepDescription(prepared: PreparedChange[]): Promise<void> {
    try {
      if (this.#description !== undefined) await this.#graph.keeper?.keep(this.#description);
    } catch (error) {
      for (const change of prepared.reverse()) change.abort();
      throw error;
    }
  }

  /** What the changed graph would be like. Errors: those of a graph that cannot be. */
  #tryOut(): Map<Node, NodeState> {
    const graph = this.#graph;
    const wereWritable = new Set<Node>();
    for (const node of this.#touched)
      if (!node.readOnly && graph.nodes.get(node.name) === node) wereWritable.add(node);
    for (const node of this.#gainsParents) if (!this.#added.has(node)) assertPresent(graph, node);
    let applied = 0;
    let sets = new Map<Node, PermissionSet>();
    try {
      for (const [i, { prefix, reached }] of this.#parts.entries()) {
        reached?.();
        const end = this.#parts[i + 1]?.begin ?? this.#steps.length;
        for (; applied < end; applied++) this.#steps[applied]?.apply();
        for (const edge of this.#attached) {
          assertNoCycle(edge, false);
          assertChainFits(edge);
        }
        for (const edge of this.#retargeted) assertNoCycle(edge, true);
        assertOneThread(graph, this.#touched);
        sets = withPrefix(prefix, () => computePermissions(graph, this.#touched, wereWritable).sets);
      }
      this.#description = graph.keeper?.describe();
      return new Map([...sets].map(([node, set]) => [node, stateOf(node, set)]));
    } finally {
      while (applied > 0) this.#steps[--applied]?.undo();
    }
  }

  #apply(): void {
    for (const step of this.#steps) step.apply();
  }

  #link(edge: Edge): void {
    const { parent } = edge;
    if (parent instanceof Node) {
      assert(!parent.children.has(edge.role), () => `second ${edge.role} child of '${parent.name}'`);
      parent.children.set(edge.role, edge);
    } else {
      assert(!parent.root, () => `second node of ${parent.description}`);
      parent.root = edge;
      this.#graph.backends.add(parent);
    }
    edge.node.parents.add(edge);
  }

  #unlink(edge: Edge): void {
    const { parent } = edge;
    if (parent instanceof Node) parent.children.delete(edge.role);
    else {
      parent.root = undefined;
      this.#graph.backends.delete(parent);
    }
    edge.node.parents.delete(edge);
  }
}

function withPrefix<T>(prefix: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    if (prefix === '' || !(error instanceof BlockError)) throw error;
    throw new BlockError(error.kind, `${prefix}${error.message}`, { cause: error });
  }
}

/** Whether a node has its own say on what it is opened for: it does not follow the node above it. */
function isSetByUser({ monitorOwned, options }: Node): boolean {
  return monitorOwned || options['read-only'] !== undefined;
}

/** A node and all below it. */
function subtree(top: Node): Set<Node> {
  const nodes = new Set([top]);
  for (const at of nodes) {
    for (const edge of at.children.values()) nodes.add(edge.node);
    for (const { root } of at.uses) if (root) nodes.add(root.node);
  }
  return nodes;
}

/** What nothing uses is not below anything. */
function assertNoCycle({ parent, role, node }: Edge, isMoved: boolean): void {
  if (!(parent instanceof Node) || parent.parents.size === 0 || !subtree(node).has(parent)) return;
  const link = `'${node.name}' a ${isMoved ? 'child of itself' : `${role} child of '${parent.name}'`}`;
  throw new BlockError('invalid', `Making ${link} would create a cycle`);
}

/** Whoever found the node may have waited since, and a job's end have closed it. */
function assertPresent(graph: Graph, node: Node): void {
  if (graph.nodes.get(node.name) === node && !node.isClosing) return;
  throw new BlockError('not-found', `Cannot find device='' nor node-name='${node.name}'`, {
    node: node.name,
  });
}

function assertNotFrozen(edge: Edge, to: Node | undefined): void {
  if (edge.frozen === 0) return;
  const parent = edge.parent instanceof Node ? edge.parent.name : edge.parent.description;
  const from = `frozen '${edge.shownRole}' link from '${parent}' to '${edge.node.name}'`;
  throw new BlockError('busy', to ? `Cannot change ${from}` : `Cannot remove ${from}`);
}

/** What a node's driver must know of a change of it. */
interface NodeState {
  readOnly: boolean;
  settings: Settings;
  activity: Node['activity'];
  /** What its users hold together, as far as the driver is concerned: of an image that is not ours, nothing. */
  set: PermissionSet;
}

function stateOf({ readOnly, settings, activity }: Node, set: PermissionSet): NodeState {
  return { readOnly, settings, activity, set: activity === 'active' ? set : NO_PERMISSIONS };
}

/** Of those that are in the graph as it stands. */
function statesBefore(graph: Graph, nodes: Iterable<Node>): Map<Node, NodeState> {
  const states = new Map<Node, NodeState>();
  for (const node of nodes) {
    if (graph.nodes.get(node.name) !== node) continue;
    const set = cumulative(node, (edge) => edge);
    states.set(node, stateOf(node, set));
  }
  return states;
}

/**
 * Drivers prepare, in this order: reopened, locked, and then those whose activity changes, each with what they need from the
 * others. When one fails, what the others prepared is undone and the error thrown.
 */
async function prepareChanges(
  before: ReadonlyMap<Node, NodeState>,
  after: ReadonlyMap<Node, NodeState>,
  reopened: ReadonlyMap<Node, ReadonlyMap<string, Edge>>,
): Promise<PreparedChange[]> {
  const prepared: PreparedChange[] = [];
  const add = (change: PreparedChange | undefined): void => void (change && prepared.push(change));
  const open = [...after].filter(([node]) => node.isOpen);
  try {
    for (const [node, newChildren] of reopened) {
      const state = after.get(node);
      if (state) add(await prepareReopen(node, state, newChildren));
    }
    for (const [node, { readOnly }] of open)
      if (!reopened.has(node) && (before.get(node)?.readOnly ?? readOnly) !== readOnly)
        add(await node.instance.prepareReadOnly?.(readOnly));
    for (const [node, { set, activity }] of open) {
      const old = before.get(node);
      if (old && old.set.perm === set.perm && old.set.shared === set.shared) continue;
      const isActivation = old?.activity === 'inactive' && activity === 'active';
      add(await node.instance.preparePermissions?.(set, isActivation));
    }
    const handed = open.filter(
      ([node, { activity }]) => (before.get(node)?.activity ?? activity) !== activity,
    );
    // Parents write into their children, and read from them.
    for (const [node, { activity }] of handed)
      if (activity === 'inactive') add(await prepareInactivation(node));
    for (const [node, { activity, readOnly }] of handed.reverse())
      if (activity === 'active') add(await prepareActivation(node, !readOnly));
  } catch (error) {
    for (const change of prepared.reverse()) change.abort();
    throw error;
  }
  return prepared;
}

/** The driver's part of being reopened; its size may be another. */
async function prepareReopen(
  node: Node,
  { settings, readOnly, activity }: NodeState,
  newChildren: ReadonlyMap<string, Edge>,
): Promise<PreparedChange | undefined> {
  const { instance, lengthBytes } = node;
  const change = await instance.prepareReopen?.({
    settings,
    readOnly,
    mayWrite: !readOnly && activity === 'active',
    newChild: (role) => newChildren.get(role),
  });
  const newBytes = change?.lengthBytes ?? lengthBytes;
  if (newBytes !== lengthBytes) assertMayResize(node);
  return {
    commit: () => {
      change?.commit();
      node.reopened(lengthBytes);
    },
    abort: () => change?.abort(),
  };
}

/** Those who rely on a node's size, or on that of what shows it. Errors: busy. */
function assertMayResize(node: Node): void {
  for (const { parent, shared } of node.parents) {
    if (parent instanceof Node) {
      if (parent.isFilter) assertMayResize(parent);
    } else if (!hasPermission(shared, Permission.resize))
      throw new BlockError(
        'busy',
        `Cannot change the size of node '${node.name}': ${parent.describe()} relies on it`,
        {
          node: node.name,
        },
      );
  }
}
