import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import { prepareActivation, prepareInactivation } from './activity.js';
import { BlockBackend } from './backend.js';
import { assertChainFits } from './chain-limit.js';
import { childPermissions } from './child-permissions.js';
import type { PermissionSet, PreparedChange, Settings } from './driver.js';
import { Edge, type EdgeParent } from './edge.js';
import type { Graph } from './graph.js';
import { Node, type NodeConfiguration } from './node.js';
import {
  ALL_PERMISSIONS,
  commonPermissions,
  hasPermission,
  Permission,
  permissionNames,
  unitePermissions,
  withoutPermissions,
} from './permissions.js';

interface Step {
  apply(): void;
  undo(): void;
}

/**
 * One change of the graph. Steps are applied to see the tentative graph and its permissions, undone while drivers
 * prepare (so that nobody sees a graph that may not come to be), and applied again at commit, which cannot fail.
 */
export class GraphTransaction {
  readonly #graph: Graph;
  readonly #steps: Step[] = [];
  /** Where parts begin that are looked at one after the other, and what comes before their conflicts. */
  readonly #parts: Array<{ begin: number; prefix: string }> = [{ begin: 0, prefix: '' }];
  readonly #added = new Set<Node>();
  readonly #gainsParents = new Set<Node>();
  readonly #attached: Edge[] = [];
  readonly #reopened = new Map<Node, ReadonlyMap<string, Edge>>();

  constructor(graph: Graph) {
    this.#graph = graph;
  }

  /**
   * What is listed from here on must be possible after what was listed before, which must be possible by itself: so
   * conflicts are told in the order of QEMU, which makes the changes one by one. `prefix`: comes before their text.
   */
  then(prefix = ''): void {
    this.#parts.push({ begin: this.#steps.length, prefix });
  }

  /** Puts a new node into the graph (opened before, or after its children are attached). */
  add(node: Node): void {
    this.#added.add(node);
    this.#steps.push({
      apply: () => void this.#graph.nodes.set(node.name, node),
      undo: () => void this.#graph.nodes.delete(node.name),
    });
  }

  /** Makes `child` a child of a node (role) or the node of a backend (role 'root'). */
  attach(parent: EdgeParent, role: string, child: Node): Edge {
    const edge = new Edge(parent, role, child);
    this.#attached.push(edge);
    this.#gainsParents.add(child);
    if (parent instanceof Node || parent.isWritable) child.isCopy = false;
    this.#steps.push({ apply: () => this.#link(edge), undo: () => this.#unlink(edge) });
    return edge;
  }

  detach(edge: Edge): void {
    assertNotFrozen(edge, undefined);
    this.#steps.push({ apply: () => this.#unlink(edge), undo: () => this.#link(edge) });
  }

  /** The same use, of another node. */
  retarget(edge: Edge, node: Node): void {
    assertNotFrozen(edge, node);
    this.#gainsParents.add(node);
    node.isCopy = false;
    let old: Node | undefined;
    this.#steps.push({
      apply: () => {
        old = edge.node;
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
   * Reopens a node and the file below it; a node that is already so is left alone. Errors: kind permission when the user
   * has said of the file that it is not to be written.
   */
  setReadOnly(node: Node, readOnly: boolean): void {
    if (node.readOnly !== readOnly) {
      this.#steps.push({
        apply: () => void (node.readOnly = readOnly),
        undo: () => void (node.readOnly = !readOnly),
      });
    }
    const file = (node.filtered ?? node.children.get('file'))?.node;
    if (!file) return;
    if (!isSetByUser(file)) return this.setReadOnly(file, readOnly);
    if (!readOnly && file.readOnly)
      throw new BlockError('permission', 'Block node is read-only', { node: file.name, errno: 'EPERM' });
  }

  /** Its driver reopens (block/reopen); `newChildren`: what was attached in the place of others, by role. */
  configure(node: Node, configuration: NodeConfiguration, newChildren: ReadonlyMap<string, Edge>): void {
    const old = node.configuration;
    this.#reopened.set(node, newChildren);
    this.#steps.push({
      apply: () => node.configure(configuration),
      undo: () => node.configure(old),
    });
  }

  /** Changes what a backend asks for. */
  setPermissions(backend: BlockBackend, perm: number, shared: number): void {
    const old = { perm: backend.perm, shared: backend.shared };
    this.#steps.push({
      apply: () => void Object.assign(backend, { perm, shared }),
      undo: () => void Object.assign(backend, old),
    });
  }

  /** Whose the image is; a node that is so already is left alone. See block/activity. */
  setActivity(node: Node, activity: Node['activity']): void {
    const old = node.activity;
    if (old === activity) return;
    this.#steps.push({
      apply: () => void (node.activity = activity),
      undo: () => void (node.activity = old),
    });
  }

  /** For the graph's mutex holder only. */
  async run(): Promise<void> {
    const before = statesOf(this.#graph);
    const prepared = await prepareChanges(before, this.#tryOut(before), this.#reopened);
    this.#apply();
    for (const [edge, set] of computePermissions(this.#graph).edges) Object.assign(edge, set);
    for (const change of prepared) change.commit();
    this.#graph.edgesChanged();
  }

  /** What the changed graph would be like. Errors: those of a graph that cannot be. */
  #tryOut(before: ReadonlyMap<Node, NodeState>): Map<Node, NodeState> {
    const graph = this.#graph;
    for (const node of this.#gainsParents) if (!this.#added.has(node)) assertPresent(graph, node);
    let applied = 0;
    let sets = new Map<Node, PermissionSet>();
    try {
      for (const [i, { prefix }] of this.#parts.entries()) {
        const end = this.#parts[i + 1]?.begin ?? this.#steps.length;
        for (; applied < end; applied++) this.#steps[applied]?.apply();
        for (const edge of this.#attached) {
          assertNoCycle(edge);
          assertChainFits(edge);
        }
        sets = withPrefix(prefix, () => computePermissions(graph, before).sets);
      }
      return statesOf(graph, sets);
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

function assertNoCycle({ parent, role, node }: Edge): void {
  if (!(parent instanceof Node) || !subtree(node).has(parent)) return;
  const link = `'${node.name}' a ${role} child of '${parent.name}'`;
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
  const from = `frozen '${edge.role}' link from '${parent}' to '${edge.node.name}'`;
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

const NO_PERMISSIONS: PermissionSet = { perm: 0, shared: ALL_PERMISSIONS };

/** Of all open nodes, parents first; with the permissions that the edges have, or those given. */
function statesOf(graph: Graph, sets?: ReadonlyMap<Node, PermissionSet>): Map<Node, NodeState> {
  const states = new Map<Node, NodeState>();
  for (const node of sets?.keys() ?? graph.nodes.values()) {
    const { readOnly, settings, activity } = node;
    const set = sets?.get(node) ?? cumulative(node, (edge) => edge);
    states.set(node, { readOnly, settings, activity, set: activity === 'active' ? set : NO_PERMISSIONS });
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
    for (const [node, { set }] of open) {
      const old = before.get(node)?.set;
      if (old && old.perm === set.perm && old.shared === set.shared) continue;
      add(await node.instance.preparePermissions?.(set));
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

function cumulative(node: Node, of: (edge: Edge) => PermissionSet): PermissionSet {
  let perm = 0;
  let shared = ALL_PERMISSIONS;
  for (const edge of node.parents) {
    const set = of(edge);
    perm = unitePermissions(perm, set.perm);
    shared = commonPermissions(shared, set.shared);
  }
  return { perm, shared };
}

interface Permissions {
  sets: Map<Node, PermissionSet>;
  edges: Map<Edge, PermissionSet>;
}

/** Permissions of the graph as it stands, parents before children. Throws on the first conflict. */
function computePermissions(graph: Graph, before?: ReadonlyMap<Node, NodeState>): Permissions {
  const edges = new Map<Edge, PermissionSet>();
  const sets = new Map<Node, PermissionSet>();
  for (const backend of graph.backends) if (backend.root) edges.set(backend.root, rootPermissions(backend));
  for (const node of topDown(graph)) {
    const of = (edge: Edge): PermissionSet => edges.get(edge) ?? edge;
    checkConflicts(node, of);
    checkUnderJobFilter(node, of);
    const set = cumulative(node, of);
    sets.set(node, set);
    checkWritable(node, set, before?.get(node)?.readOnly === false);
    for (const edge of node.children.values()) {
      checkIsOurs(node, edge);
      edges.set(edge, childPermissions(node, edge.role, set));
    }
  }
  return { sets, edges };
}

/** Every node after all of its parents. */
function topDown(graph: Graph): Node[] {
  const order: Node[] = [];
  const state = new Map<Node, 'open' | 'done'>();
  const visit = (node: Node): void => {
    const seen = state.get(node);
    if (seen === 'done') return;
    if (seen === 'open')
      throw new BlockError('invalid', `Making '${node.name}' a child of itself would create a cycle`);
    state.set(node, 'open');
    for (const { parent } of node.parents) if (parent instanceof Node) visit(parent);
    state.set(node, 'done');
    order.push(node);
  };
  for (const node of graph.nodes.values()) visit(node);
  return order;
}

/** Of several conflicts QEMU tells that of the youngest users. */
function checkConflicts(node: Node, of: (edge: Edge) => PermissionSet): void {
  const parents = [...node.parents].reverse();
  for (const denies of parents) {
    for (const wants of parents) {
      if (wants === denies) continue;
      checkPair(node, wants, denies, of);
    }
  }
}

/**
 * A job's filter may let others do what its users do not share (that of an active commit: write the base). Those who
 * come to the node below it must get on with its users all the same, or the job could not end.
 */
function checkUnderJobFilter(node: Node, of: (edge: Edge) => PermissionSet): void {
  for (const edge of node.parents) {
    const filter = edge.parent;
    if (!(filter instanceof Node) || filter.filterOwner === undefined) continue;
    for (const other of node.parents) {
      const isJobs = !(other.parent instanceof Node) && other.parent.owner === filter.filterOwner;
      if (other === edge || isJobs) continue;
      for (const user of filter.parents) {
        checkPair(node, other, user, of);
        checkPair(node, user, other, of);
      }
    }
  }
}

function checkPair(node: Node, wants: Edge, denies: Edge, of: (edge: Edge) => PermissionSet): void {
  const clash = withoutPermissions(of(wants).perm, of(denies).shared);
  if (clash === 0) return;
  const use = (edge: Edge): string =>
    `${edge.parent.describe()} (uses node '${edge.node.name}' as '${edge.role}' child)`;
  throw new BlockError(
    'busy',
    `Permission conflict on node '${node.name}': permissions '${permissionNames(clash)}' are both required by ` +
      `${use(wants)} and unshared by ${use(denies)}.`,
    { node: node.name },
  );
}

/** A guest's disk is nobody's while another process has the image: the guest does not run here. */
function rootPermissions(backend: BlockBackend): PermissionSet {
  const isAway = backend.isGuest && backend.node.activity === 'inactive';
  return isAway ? NO_PERMISSIONS : { perm: backend.perm, shared: backend.shared };
}

/** What is ours stands on nothing that another process may change. Errors: kind permission, in QEMU's words. */
function checkIsOurs(parent: Node, { node, role }: Edge): void {
  if (parent.activity === 'inactive' || node.activity === 'active') return;
  const text = `Inactive '${node.name}' can't be a ${role} child of active '${parent.name}'`;
  throw new BlockError('permission', text, { node: node.name, errno: 'EPERM' });
}

/** Errors: kind permission, in QEMU's words (7.2's; 10.0's for what 7.2 asserts). */
function checkWritable(node: Node, { perm }: PermissionSet, wasWritable: boolean): void {
  if (node.isWritable) return;
  const context = { node: node.name, errno: 'EPERM' };
  const becomesReadOnly = node.readOnly && wasWritable;
  if (becomesReadOnly && hasPermission(perm, Permission.write)) {
    const text = `Read-only block node '${node.name}' cannot support read-write users`;
    throw new BlockError('permission', text, context);
  }
  if (hasPermission(perm, Permission.write) || hasPermission(perm, Permission.writeUnchanged))
    throw new BlockError('permission', 'Block node is read-only', context);
  if (node.activity === 'inactive' && hasPermission(perm, Permission.resize))
    throw new BlockError('permission', "Permission 'resize' unavailable on inactive node", context);
}
