import type { BlockBackend } from './backend.js';
import type { CacheSettings, GivenOptions } from './driver.js';
import type { Graph } from './graph.js';
import type { DetectZeroesMode, DiscardMode } from './modes.js';
import { Node } from './node.js';
import { hasPermission, Permission } from './permissions.js';

/** What a node is, as data: enough to make it again with restoreNodes(). A type alias: it is JSON. */
export type NodeState = {
  name: string;
  driver: string;
  /** As given, less the children. */
  options: GivenOptions;
  cache: CacheSettings;
  forceShare: boolean;
  readOnly: boolean;
  discard: DiscardMode;
  detectZeroes: DetectZeroesMode;
  /** Added by the user, who also removes it. */
  isOwned: boolean;
  /** Nobody has said the format of the image. */
  isGuessed: boolean;
  copiesOnRead: boolean;
  isInactive: boolean;
  /** Whose options brought it. */
  inheritsFrom?: string;
  automaticBacking?: string;
  /** Names by role. */
  children: { [role: string]: string };
};

/** The node that is there when the jobs are not: a filter of a job goes with it. */
export function withoutJobs(node: Node): Node {
  let at = node;
  while (at.filterOwner !== undefined && at.filtered) at = at.filtered.node;
  return at;
}

/**
 * What users have added and what `users` use, with all below it, in the order of the graph. Filters of jobs are left out,
 * and what a job has made writable is what it was before, unless jobs go on there: then it is what it is, and so is what
 * `jobs` use besides.
 */
export function describeNodes(
  graph: Graph,
  users: Iterable<BlockBackend>,
  jobs?: Iterable<Node>,
): NodeState[] {
  const backends = [...users].filter(({ root }) => root !== undefined);
  const reached = new Set<Node>();
  for (const node of graph.nodes.values())
    if (node.monitorOwned && node.isOpen && !node.isClosing && node.filterOwner === undefined)
      reached.add(node);
  for (const { root } of backends) if (root) reached.add(withoutJobs(root.node));
  for (const node of jobs ?? []) reached.add(withoutJobs(node));
  for (const node of reached) for (const edge of node.children.values()) reached.add(withoutJobs(edge.node));
  const written = writtenBy(backends);
  const lent = lentToJobs(reached);
  const isReadOnly = (node: Node): boolean =>
    node.readOnly || node.isLentWritable || (!jobs && lent.has(node) && !written.has(node));
  return [...graph.nodes.values()]
    .filter((node) => reached.has(node))
    .map((node) => describeNode(node, isReadOnly(node)));
}

/** The images that users write, and the files that these are in. */
function writtenBy(backends: readonly BlockBackend[]): Set<Node> {
  const written = new Set<Node>();
  for (const { root, perm } of backends) {
    if (!root || !hasPermission(perm, Permission.write)) continue;
    for (let at: Node | undefined = withoutJobs(root.node); at; at = at.filtered?.node) written.add(at);
  }
  return written;
}

/** What is writable for a job only, with the files below it that follow it. */
function lentToJobs(nodes: Iterable<Node>): Set<Node> {
  const lent = new Set<Node>();
  for (const node of nodes) {
    if (!node.isLentToJob) continue;
    lent.add(node);
    for (let at = node.filtered?.node; at; at = at.filtered?.node)
      if (!at.monitorOwned && at.options['read-only'] === undefined) lent.add(at);
  }
  return lent;
}

function describeNode(node: Node, readOnly: boolean): NodeState {
  const { settings, modes, inheritsFrom, automaticBacking } = node;
  const children = [...node.children].map(([role, edge]) => [role, withoutJobs(edge.node).name]);
  return {
    name: node.name,
    driver: node.driver.name,
    options: node.options,
    cache: { direct: settings.cache.direct, 'no-flush': settings.cache['no-flush'] },
    forceShare: settings['force-share'] ?? false,
    readOnly,
    ...modes,
    isOwned: node.monitorOwned,
    isGuessed: node.guard !== undefined,
    copiesOnRead: node.isOpen && node.io.copiesOnRead,
    isInactive: node.activity === 'inactive',
    ...(inheritsFrom && { inheritsFrom: inheritsFrom.name }),
    ...(automaticBacking !== undefined && { automaticBacking }),
    children: Object.fromEntries(children) as NodeState['children'],
  };
}
