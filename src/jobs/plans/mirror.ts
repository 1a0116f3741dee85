import { isPowerOfTwo } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { KiB, MiB } from '../../base/limits.js';
import { checkNotBlocked, findDevice, findRoot } from '../../block/find-node.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import type { CommandArguments } from '../../schema/commands.js';
import {
  assertIsRoot,
  layerAbove,
  lowestLayer,
  nodeOf,
  type NodeReference,
  notInChain,
  optionalNodeOf,
  referTo,
} from './nodes.js';
import { checkedPlan, type CheckedPlan, commonPlan, type CommonPlan } from './plan.js';

/** `target`: a node. */
export type MirrorRequest = CommandArguments<'blockdev-mirror'>;

/** What only drive-mirror knows of its target. */
export interface MirrorTarget {
  /** A fresh image known to read as zeroes. */
  isNew?: boolean;
  /**
   * Backing file of the target after the pivot: 'leave' as it is (default); 'source-chain' the source's own (for
   * sync=none the source itself); 'open' what the target's header names. The latter two are for a target that was
   * opened with `backing: null`.
   */
  backing?: 'leave' | 'source-chain' | 'open';
  /** Zeroes may deallocate in the target; default true. */
  unmap?: boolean;
}

/** drive-mirror, blockdev-mirror and the commit of the active layer. */
export interface MirrorPlan extends CommonPlan, CheckedPlan {
  /** Of an active commit the target is in the source's own chain. */
  kind: 'mirror' | 'active-commit';
  source: NodeReference;
  target: NodeReference;
  /** What is copied first: layers down to and including this one; absent: nothing. */
  lowest?: NodeReference;
  sync: 'full' | 'top' | 'none';
  /** A fresh image known to read as zeroes. */
  targetIsNew: boolean;
  /** A power of two, 512 bytes to 64 MiB. */
  granularityBytes: number;
  /** Most bytes in flight; absent: the window's own. */
  windowBytes?: number;
  copyMode: 'background' | 'write-blocking';
  /** It is to be in step so long after it was started, at the cost of guests' writes. */
  finishBySeconds?: number;
  /** Zeroes may deallocate in the target. */
  unmap: boolean;
  /** The node that the target replaces at the end, in place of the source. */
  replaces?: NodeReference;
  /** See MirrorTarget; 'later': the user may put one below the target while the job runs. */
  targetBacking: 'leave' | 'source-chain' | 'open' | 'later';
}

export interface MirrorNodes {
  readonly source: Node;
  readonly target: Node;
  readonly lowest: Node | undefined;
  readonly replaces: Node | undefined;
}

/** Errors, in QEMU's order and words: not-found, invalid, busy. */
export function planMirror(graph: Graph, request: MirrorRequest, how: MirrorTarget = {}): MirrorPlan {
  const source = findRoot(graph, request.device);
  const target = findDevice(graph, request.target);
  checkGranularity(request.granularity);
  source.assertNotBlocked();
  checkNotBlocked(target);
  const replaces = nodeToReplace(graph, source, request.replaces);
  const sync = syncOf(source, request.sync);
  const windowBytes = request['buf-size'];
  if (windowBytes !== undefined && windowBytes < 0)
    throw new BlockError('invalid', "Invalid parameter 'buf-size'");
  if (request['x-finish-by'] !== undefined && request['x-persist'] !== undefined)
    throw new BlockError('invalid', "'x-finish-by' cannot be used with 'x-persist'");
  const lowest = sync === 'none' ? undefined : sync === 'top' ? source : lowestLayer(source);
  const targetBacking = backingOf(sync, target, how.backing);
  const plan: MirrorPlan = {
    kind: 'mirror',
    ...commonPlan(request, source),
    ...checkedPlan(request),
    source: referTo(source),
    target: referTo(target),
    sync,
    targetIsNew: how.isNew ?? request['target-is-zero'] ?? false,
    granularityBytes: granularityOf(request.granularity, target, targetBacking),
    copyMode: request['copy-mode'] ?? 'background',
    unmap: how.unmap ?? true,
    targetBacking,
    ...given({
      lowest: lowest && referTo(lowest),
      // 0 is what it was when not given.
      windowBytes: windowBytes ? Number(windowBytes) : undefined,
      replaces: replaces && referTo(replaces),
      finishBySeconds: request['x-finish-by'],
    }),
  };
  mirrorNodes(graph, plan);
  return plan;
}

/** block-commit of the active layer: a mirror into the base, which takes over at the end. */
export function planOfActiveCommit(common: CommonPlan, top: Node, base: Node): MirrorPlan {
  return {
    kind: 'active-commit',
    ...common,
    source: referTo(top),
    target: referTo(base),
    lowest: referTo(layerAbove(top, base)),
    sync: 'top',
    targetIsNew: false,
    granularityBytes: defaultGranularity(base),
    copyMode: 'background',
    unmap: true,
    targetBacking: 'leave',
  };
}

/** Errors: not-found, invalid; busy. */
export function mirrorNodes(graph: Graph, plan: MirrorPlan): MirrorNodes {
  const source = nodeOf(graph, plan.source);
  const target = nodeOf(graph, plan.target);
  const lowest = optionalNodeOf(graph, plan.lowest);
  const replaces = optionalNodeOf(graph, plan.replaces);
  if (plan.kind === 'active-commit') {
    if (!source.isAbove(target)) throw notInChain(target);
  } else {
    assertIsRoot(source);
    if (source === target) throw new BlockError('invalid', "Can't mirror node into itself");
  }
  for (const node of [source, target]) node.assertNotBlocked();
  return { source, target, lowest, replaces };
}

// ---- arguments

/** Errors: kind invalid. */
function checkGranularity(granularity: number | undefined): void {
  // 0 is the default.
  if (granularity === undefined || granularity === 0) return;
  if (granularity < 512 || granularity > 64 * MiB)
    throw new BlockError('invalid', "Parameter 'granularity' expects a value in range [512B, 64MB]");
  if (!isPowerOfTwo(granularity))
    throw new BlockError('invalid', "Parameter 'granularity' expects a power of 2");
}

/** What the mirror may take the place of, so that nobody sees something else at once. Errors: invalid, busy. */
function nodeToReplace(graph: Graph, source: Node, name: string | undefined): Node | undefined {
  if (name === undefined) return undefined;
  const node = graph.node(name);
  checkNotBlocked(node);
  if (!mayReplace(source, node)) {
    const text = `Cannot replace '${name}' by a node mirrored from '${source.name}', because it cannot be guaranteed`;
    throw new BlockError(
      'invalid',
      `${text} that doing so would not lead to an abrupt change of visible data`,
    );
  }
  if (node.lengthBytes !== source.lengthBytes)
    throw new BlockError('invalid', 'cannot replace image with a mirror image of different size');
  return node;
}

/**
 * Whether a mirror of `source` may take a node's place: the source's, or that of what only filters are between it and;
 * or of one of several that are to hold the same, where nobody else looks at it.
 */
export function mayReplace(source: Node, node: Node): boolean {
  for (let at: Node | undefined = source; at; at = at.isFilter ? at.filtered?.node : undefined) {
    if (at === node) return true;
    if (at.driver.holdsCopies === true && isOnlyChildOf(node, at)) return true;
  }
  return false;
}

function isOnlyChildOf(node: Node, parent: Node): boolean {
  const [edge, ...others] = node.parents;
  return edge?.parent === parent && others.length === 0;
}

/** Without a backing file the top is everything. Errors: invalid. */
function syncOf(source: Node, sync: MirrorRequest['sync']): MirrorPlan['sync'] {
  if (sync === 'incremental' || sync === 'bitmap')
    throw new BlockError('invalid', `Sync mode '${sync}' not supported`);
  return sync === 'top' && !source.backingNode() ? 'full' : sync;
}

// ---- defaults

/** What only the source's backing file holds, a target without one is yet to get from its own. */
function backingOf(
  sync: MirrorPlan['sync'],
  target: Node,
  asked: MirrorTarget['backing'] = 'leave',
): MirrorPlan['targetBacking'] {
  const mayComeLater = sync !== 'full' && target.driver.options.backing && !target.backingNode();
  return asked === 'leave' && mayComeLater ? 'later' : asked;
}

/** What was asked for, or the default; whole clusters where a target would fill up the rest without its backing file. */
function granularityOf(
  asked: number | undefined,
  target: Node,
  backing: MirrorPlan['targetBacking'],
): number {
  const granularity = asked === undefined || asked === 0 ? defaultGranularity(target) : asked;
  return backing === 'leave' ? granularity : Math.max(granularity, clusterOf(target) ?? 0);
}

/** The target's cluster size, 4 to 64 KiB. */
function defaultGranularity(target: Node): number {
  return Math.min(64 * KiB, Math.max(4 * KiB, clusterOf(target) ?? 64 * KiB));
}

/** Of a format; undefined where there are none. */
export function clusterOf(target: Node): number | undefined {
  return target.skipFilters().instance.info().clusterSizeBytes;
}
