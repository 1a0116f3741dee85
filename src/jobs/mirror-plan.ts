import { isPowerOfTwo } from '../base/align.js';
import { BlockError } from '../base/error.js';
import { KiB, MiB } from '../base/limits.js';
import type { DriverDescription } from '../block/driver.js';
import type { Node } from '../block/node.js';
import { MIRROR_TOP, MIRROR_TOP_ABOVE_BASE } from '../drivers/mirror-top/mirror-top.js';
import type { CommitArguments, MirrorArguments } from './arguments.js';
import { layerAbove } from './commit.js';

/** What a mirror job is to do. */
export interface MirrorPlan {
  type: 'mirror' | 'commit';
  filter: DriverDescription;
  filterNodeName: string | undefined;
  source: Node;
  target: Node;
  /** What is copied first: layers down to and including this one; undefined: nothing. */
  lowest: Node | undefined;
  /** sync=full: what no layer holds must read as zeroes in the target. */
  whole: boolean;
  targetIsNew: boolean;
  granularityBytes: number;
  windowBytes: number | undefined;
  writeBlocking: boolean;
  unmap: boolean;
  replaces: Node | undefined;
  /** As the arguments have it; 'later': the user may put one below the target while the job runs. */
  targetBacking: 'leave' | 'source-chain' | 'open' | 'later';
  isNone: boolean;
  /** The target is in the source's own chain (active commit). */
  targetIsBase: boolean;
}

/** drive-mirror and blockdev-mirror. */
export function planOfMirror(args: MirrorArguments): MirrorPlan {
  const source = args.device;
  const target = args.target;
  return {
    type: 'mirror',
    filter: MIRROR_TOP,
    filterNodeName: args.filterNodeName,
    source,
    target,
    lowest: args.sync === 'none' ? undefined : args.sync === 'top' ? source : baseOf(source),
    whole: args.sync === 'full',
    targetIsNew: args.targetIsNew,
    granularityBytes: granularityOf(args),
    windowBytes: args.bufSize,
    writeBlocking: args.copyMode === 'write-blocking',
    unmap: args.unmap ?? true,
    replaces: args.replaces,
    targetBacking: backingOf(args),
    isNone: args.sync === 'none',
    targetIsBase: false,
  };
}

/** block-commit of the active layer: a mirror into the base, which takes over at the end. */
export function planOfActiveCommit(args: CommitArguments): MirrorPlan {
  return {
    type: 'commit',
    filter: MIRROR_TOP_ABOVE_BASE,
    filterNodeName: args.filterNodeName,
    source: args.top,
    target: args.base,
    lowest: layerAbove(args.top, args.base),
    whole: false,
    targetIsNew: false,
    granularityBytes: defaultGranularity(args.base),
    windowBytes: undefined,
    writeBlocking: false,
    unmap: true,
    replaces: undefined,
    targetBacking: 'leave',
    isNone: false,
    targetIsBase: true,
  };
}

/** Errors: kind invalid, in QEMU's words. */
export function checkMirrorArguments(args: Pick<MirrorArguments, 'granularity' | 'bufSize'>): void {
  const { granularity } = args;
  if (granularity !== undefined) {
    if (granularity < 512 || granularity > 64 * MiB)
      throw new BlockError('invalid', "Parameter 'granularity' expects a value in range [512B, 64MB]");
    if (!isPowerOfTwo(granularity))
      throw new BlockError('invalid', "Parameter 'granularity' expects a power of 2");
  }
  if (args.bufSize !== undefined && args.bufSize < 0)
    throw new BlockError('invalid', "Invalid parameter 'buf-size'");
}

/** What only the source's backing file holds, a target without one is yet to get from its own. */
function backingOf({ sync, target, targetBacking = 'leave' }: MirrorArguments): MirrorPlan['targetBacking'] {
  const mayComeLater = sync !== 'full' && target.driver.options.backing && !target.backingNode();
  return targetBacking === 'leave' && mayComeLater ? 'later' : targetBacking;
}

/** What was asked for, or the default; whole clusters where a target would fill up the rest without its backing file. */
function granularityOf(args: MirrorArguments): number {
  const granularity = args.granularity ?? defaultGranularity(args.target);
  if (backingOf(args) === 'leave') return granularity;
  return Math.max(granularity, clusterOf(args.target) ?? 0);
}

/** The target's cluster size, 4 to 64 KiB. */
function defaultGranularity(target: Node): number {
  return Math.min(64 * KiB, Math.max(4 * KiB, clusterOf(target) ?? 64 * KiB));
}

/** Of a format; undefined where there are none. */
export function clusterOf(target: Node): number | undefined {
  return target.skipFilters().instance.info().clusterSizeBytes;
}

/** The lowest layer of a chain. */
function baseOf(node: Node): Node {
  let at = node.skipFilters();
  for (let below = at.backingNode(); below; below = below.backingNode()) at = below;
  return at;
}
