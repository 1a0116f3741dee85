import type { ReferenceWishes } from '../../block/backing-reference.js';
import { BlockError } from '../../base/error.js';
import { type FilesAtPaths, findBackingImage, findNode, findRoot } from '../../block/find-node.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import { hasPermission, Permission } from '../../block/permissions.js';
import type { CommandArguments } from '../../schema/commands.js';
import { type MirrorPlan, planOfActiveCommit } from './mirror.js';
import {
  assertChainNotBlocked,
  backingWishes,
  layerAbove,
  lowestLayer,
  nodeOf,
  type NodeReference,
  notInChain,
  referTo,
  refuseBoth,
} from './nodes.js';
import { commonPlan, type CommonPlan } from './plan.js';

export type CommitRequest = CommandArguments<'block-commit'>;

/** block-commit of layers below the active one. */
export interface CommitPlan extends CommonPlan {
  kind: 'commit';
  /** The root of the chain. */
  device: NodeReference;
  top: NodeReference;
  base: NodeReference;
  /** The base may hold some of it already: only what differs is written. */
  compares?: boolean;
  /** What the headers of top's overlays are to say of the base. */
  backing: ReferenceWishes;
}

export interface CommitNodes {
  readonly device: Node;
  readonly top: Node;
  readonly base: Node;
}

/**
 * `files`: those of the chain, where layers have files' names. Errors, in QEMU's order and words: device-not-found,
 * not-found, invalid, busy.
 */
export function planCommit(
  graph: Graph,
  request: CommitRequest,
  files: FilesAtPaths = new Map(),
): CommitPlan | MirrorPlan {
  if (!graph.drives.get(request.device)?.root && !graph.find(request.device))
    throw new BlockError('device-not-found', `Device '${request.device}' not found`);
  const device = findRoot(graph, request.device);
  const top = findTop(graph, device, request, files);
  const base = findBase(graph, top, request, files);
  const plan: CommitPlan = {
    kind: 'commit',
    ...commonPlan(request, device),
    device: referTo(device),
    top: referTo(top),
    base: referTo(base),
    backing: backingWishes(request),
  };
  commitNodes(graph, plan);
  const isActive = top.skipFilters() === device.skipFilters();
  if (!isActive && !hasWriter(top)) {
    // Its header is to name the base.
    layerAbove(device, top).assertNotBlocked();
    return plan;
  }
  if (request['backing-file'] !== undefined) {
    const why = isActive ? 'is the active layer' : 'has a writer on it';
    throw new BlockError('invalid', `'backing-file' specified, but 'top' ${why}`);
  }
  return planOfActiveCommit(commonPlan(request, device), top, base);
}

function findTop(graph: Graph, device: Node, request: CommitRequest, files: FilesAtPaths): Node {
  refuseBoth(request, 'top', 'top-node', "'top-node' and 'top' are mutually exclusive");
  const name = request['top-node'];
  if (name !== undefined) {
    const node = findNode(graph, undefined, name);
    if (node !== device && !device.isAbove(node)) throw notInChain(node);
    return node;
  }
  if (request.top === undefined || request.top === device.filename) return device;
  const found = findBackingImage(device, request.top, files);
  if (!found) throw new BlockError('not-found', `Top image file ${request.top} not found`);
  return found;
}

function findBase(graph: Graph, top: Node, request: CommitRequest, files: FilesAtPaths): Node {
  refuseBoth(request, 'base', 'base-node', "'base-node' and 'base' are mutually exclusive");
  const name = request['base-node'];
  if (name !== undefined) {
    const node = findNode(graph, undefined, name);
    if (node !== top && !top.isAbove(node)) throw notInChain(node);
    return node;
  }
  if (request.base !== undefined) {
    const found = findBackingImage(top, request.base, files);
    if (!found) throw new BlockError('not-found', `Can't find '${request.base}' in the backing chain`);
    return found;
  }
  return lowestLayer(top);
}

/** Then it is an active layer, whatever is above it. */
function hasWriter(node: Node): boolean {
  return [...node.parents].some(({ perm }) => hasPermission(perm, Permission.write));
}

/** Errors: not-found, invalid; busy. */
export function commitNodes(graph: Graph, plan: CommitPlan): CommitNodes {
  const device = nodeOf(graph, plan.device);
  const top = nodeOf(graph, plan.top);
  const base = nodeOf(graph, plan.base);
  const isItself = top.skipFilters() === base.skipFilters();
  if (!isItself && !top.isAbove(base)) throw notInChain(base);
  device.assertNotBlocked();
  assertChainNotBlocked(top, base.below?.node);
  if (isItself) throw new BlockError('invalid', 'cannot commit an image into itself');
  return { device, top, base };
}
