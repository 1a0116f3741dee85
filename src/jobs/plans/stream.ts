import type { ReferenceWishes } from '../../block/backing-reference.js';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { type FilesAtPaths, findBackingImage, findDevice, findNode } from '../../block/find-node.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import type { CommandArguments } from '../../schema/commands.js';
import {
  assertChainNotBlocked,
  backingWishes,
  nodeOf,
  type NodeReference,
  optionalNodeOf,
  referTo,
  refuseBoth,
} from './nodes.js';
import { commonPlan, type CommonPlan } from './plan.js';

export type StreamRequest = CommandArguments<'block-stream'>;

export interface StreamPlan extends CommonPlan {
  kind: 'stream';
  /** What is filled. */
  node: NodeReference;
  /** Its new backing file; neither this nor bottom: the whole chain is pulled up. */
  base?: NodeReference;
  /** The lowest node whose data is pulled up. */
  bottom?: NodeReference;
  /** What its header is to say of the base. */
  backing: ReferenceWishes;
}

export interface StreamNodes {
  readonly node: Node;
  readonly base: Node | undefined;
  readonly bottom: Node | undefined;
}

/** `files`: those of the chain, where the base has a file's name. Errors, in QEMU's order and words: invalid, not-found, busy. */
export function planStream(
  graph: Graph,
  request: StreamRequest,
  files: FilesAtPaths = new Map(),
): StreamPlan {
  for (const [one, other] of [
    ['base', 'base-node'],
    ['base', 'bottom'],
    ['bottom', 'base-node'],
  ] as const)
    refuseBoth(request, one, other, `'${one}' and '${other}' cannot be specified at the same time`);
  const node = findDevice(graph, request.device);
  const base = findBase(graph, node, request, files);
  const bottom = findBottom(graph, node, request.bottom);
  const plan: StreamPlan = {
    kind: 'stream',
    ...commonPlan(request, node),
    node: referTo(node),
    backing: backingWishes(request),
    ...given({
      base: base && referTo(base),
      bottom: bottom && referTo(bottom),
    }),
  };
  streamNodes(graph, plan);
  // Also where `bottom` leaves something below, as in QEMU.
  if (!base && request['backing-file'] !== undefined)
    throw new BlockError('invalid', 'backing file specified, but streaming the entire chain');
  return plan;
}

function findBase(graph: Graph, node: Node, request: StreamRequest, files: FilesAtPaths): Node | undefined {
  if (request.base !== undefined) {
    const found = findBackingImage(node, request.base, files);
    if (!found) throw new BlockError('not-found', `Can't find '${request.base}' in the backing chain`);
    return found;
  }
  const name = request['base-node'];
  if (name === undefined) return undefined;
  const found = findNode(graph, undefined, name);
  if (!node.isAbove(found))
    throw new BlockError('invalid', `Node '${name}' is not a backing image of '${request.device}'`);
  return found;
}

function findBottom(graph: Graph, node: Node, name: string | undefined): Node | undefined {
  if (name === undefined) return undefined;
  const found = findNode(graph, undefined, name);
  if (found.isFilter)
    throw new BlockError('invalid', `Node '${name}' is a filter, use a non-filter node as 'bottom'`);
  if (found !== node && !node.isAbove(found))
    throw new BlockError('invalid', `Node '${name}' is not in a chain starting from '${node.name}'`);
  return found;
}

/** The links from `top` down to the node above `end` are to stay as they are. Errors: busy, in QEMU's words. */
function assertCanFreeze(top: Node, end: Node | undefined): void {
  for (let edge = top.below; edge && edge.node !== end; edge = edge.node.below)
    if (edge.node.driver.isNeverFrozen === true)
      throw new BlockError('busy', `Cannot freeze '${edge.shownRole}' link to '${edge.node.name}'`);
}

/** Errors: not-found, invalid; busy. */
export function streamNodes(graph: Graph, plan: StreamPlan): StreamNodes {
  const node = nodeOf(graph, plan.node);
  const base = optionalNodeOf(graph, plan.base);
  const bottom = optionalNodeOf(graph, plan.bottom);
  for (const below of [base, bottom])
    if (below && below !== node && !node.isAbove(below))
      throw new BlockError('invalid', `Node '${below.name}' is not in a chain starting from '${node.name}'`);
  // Of filters the layer that they show is filled.
  if (base && base.skipFilters() === node.skipFilters())
    throw new BlockError('invalid', `'${base.name}' is not in the backing chain of '${node.name}'`);
  assertChainNotBlocked(node, bottom ? bottom.below?.node : base);
  assertCanFreeze(node, bottom ? bottom.below?.node : base);
  return { node, base, bottom };
}
