import { alignUp, isAligned } from '../base/align.js';
import { BlockError } from '../base/error.js';
import type { BlockBackend } from './backend.js';
import { childPermissions } from './child-permissions.js';
import type { PermissionSet } from './driver.js';
import type { Edge } from './edge.js';
import type { Graph } from './graph.js';
import { Node } from './node.js';
import {
  ALL_PERMISSIONS,
  commonPermissions,
  hasPermission,
  Permission,
  permissionNames,
  unitePermissions,
  withoutPermissions,
} from './permissions.js';

/** QEMU's unit of a node's length. */
const SECTOR_BYTES = 512;

export const NO_PERMISSIONS: PermissionSet = { perm: 0, shared: ALL_PERMISSIONS };

/** What users of nodes hold together, parents before children, and what each edge asks for and lets others do. */
export interface Permissions {
  sets: Map<Node, PermissionSet>;
  edges: Map<Edge, PermissionSet>;
}

/**
 * Permissions of the graph as it stands: of the nodes that a transaction touched, and of those below as far as what
 * their edges ask for differs from what they have. Errors: the first conflict, which may be told in other words of a node
 * that is no longer writable.
 */
export function computePermissions(
  graph: Graph,
  touched: Iterable<Node>,
  wereWritable: ReadonlySet<Node> = new Set(),
): Permissions {
  const edges = new Map<Edge, PermissionSet>();
  const found = new Map<Node, PermissionSet>();
  const of = (edge: Edge): PermissionSet => edges.get(edge) ?? edge;
  const due = new Set(parentsFirst(graph, new Set(touched)));
  for (const node of due) {
    due.delete(node);
    for (const edge of node.parents) {
      const { parent } = edge;
      if (!(parent instanceof Node)) edges.set(edge, rootPermissions(parent, node));
    }
    const set = cumulative(node, of);
    found.set(node, set);
    for (const edge of node.children.values()) {
      const before = of(edge);
      const now = childPermissions(node, edge.role, set);
      edges.set(edge, now);
      // Once more, if it came before one of its parents.
      if (before.perm !== now.perm || before.shared !== now.shared) due.add(edge.node);
    }
  }
  const sets = new Map<Node, PermissionSet>();
  for (const node of parentsFirst(graph, new Set(found.keys())))
    sets.set(node, found.get(node) ?? NO_PERMISSIONS);
  for (const [node, set] of sets) {
    checkConflicts(node, of);
    checkUnderJobFilter(node, of);
    checkWritable(node, set, wereWritable.has(node));
    checkWholeUnits(node, set);
    for (const edge of node.children.values()) checkIsOurs(node, edge);
  }
  return { sets, edges };
}

/** Those of the nodes that are in the graph, each after all of its parents. */
function parentsFirst(graph: Graph, nodes: ReadonlySet<Node>): Node[] {
  const order: Node[] = [];
  const seen = new Set<Node>();
  const visit = (node: Node): void => {
    if (seen.has(node)) return;
    seen.add(node);
    for (const { parent } of node.parents) if (parent instanceof Node) visit(parent);
    if (nodes.has(node)) order.push(node);
  };
  for (const node of graph.nodes.values()) if (nodes.has(node)) visit(node);
  return order;
}

/** What all users of a node hold together. */
export function cumulative(node: Node, of: (edge: Edge) => PermissionSet): PermissionSet {
  let perm = 0;
  let shared = ALL_PERMISSIONS;
  for (const edge of node.parents) {
    const set = of(edge);
    perm = unitePermissions(perm, set.perm);
    shared = commonPermissions(shared, set.shared);
  }
  return { perm, shared };
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
    `${edge.parent.describe()} (uses node '${edge.node.name}' as '${edge.shownRole}' child)`;
  throw new BlockError(
    'busy',
    `Permission conflict on node '${node.name}': permissions '${permissionNames(clash)}' are both required by ` +
      `${use(wants)} and unshared by ${use(denies)}.`,
    { node: node.name },
  );
}

/** A guest's disk is nobody's while another process has the image: the guest does not run here. */
function rootPermissions(backend: BlockBackend, node: Node): PermissionSet {
  const isAway = backend.isGuest && node.activity === 'inactive';
  return isAway ? NO_PERMISSIONS : { perm: backend.perm, shared: backend.shared };
}

/** What is ours stands on nothing that another process may change. Errors: kind permission, in QEMU's words. */
function checkIsOurs(parent: Node, { node, role }: Edge): void {
  if (parent.activity === 'inactive' || node.activity === 'active') return;
  const text = `Inactive '${node.name}' can't be a ${role} child of active '${parent.name}'`;
  throw new BlockError('permission', text, { node: node.name, errno: 'EPERM' });
}

/**
 * A write into a unit is one of the whole unit: where the image ends within one, that would make it longer, for which one
 * needs the permission. Errors: kind permission, in QEMU's words.
 */
function checkWholeUnits(node: Node, { perm }: PermissionSet): void {
  const writes = hasPermission(perm, Permission.write) || hasPermission(perm, Permission.writeUnchanged);
  if (!writes || hasPermission(perm, Permission.resize) || !node.isOpen) return;
  if (isAligned(alignUp(node.lengthBytes, SECTOR_BYTES), node.instance.requestAlignmentBytes)) return;
  throw new BlockError(
    'permission',
    "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment",
    { node: node.name, errno: 'EPERM' },
  );
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
