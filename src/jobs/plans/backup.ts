import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { findDevice } from '../../block/find-node.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import { copyClusterBytes } from '../../drivers/copy-before-write/cluster.js';
import type { CommandArguments } from '../../schema/commands.js';
import { creatingNode } from '../job-graph.js';
import { nodeOf, type NodeReference, referTo } from './nodes.js';
import { checkedPlan, type CheckedPlan, commonPlan, type CommonPlan } from './plan.js';

/** `target`: a node. */
export type BackupRequest = CommandArguments<'blockdev-backup'>;

/** drive-backup and blockdev-backup. */
export interface BackupPlan extends CommonPlan, CheckedPlan {
  kind: 'backup';
  device: NodeReference;
  target: NodeReference;
  sync: BackupRequest['sync'];
  /** Data is written compressed. */
  compress: boolean;
  /** What a copy breaks that fails while a guest's change waits for it: that change, or the backup. */
  onGuestCopyError: 'break-guest-write' | 'break-snapshot';
  /** What was copied is discarded in the device: that one is but a moment that is kept for the backup. */
  discardSource: boolean;
  performance: BackupPerformance;
  /** Of the device: says what is copied (incremental, bitmap), and what was not at the end. */
  bitmap?: { name: string; mode: BitmapMode };
  /** Guests' writes wait for a buffer of this machine alone, never for the target. */
  fleecing?: FleecingPlan;
}

/** The buffer between guests and a slow target. */
export interface FleecingPlan {
  folder: string;
  maxBytes: number;
  /** Where what is beyond goes; absent: the backup fails. */
  spillFolder?: string;
}

/** How it works, where that is not as it likes. */
export interface BackupPerformance {
  /** Whether the kernel may copy. */
  offloads?: boolean;
  /** Most pieces that are under way. */
  maxPieces?: number;
  maxPieceBytes?: number;
  minClusterBytes?: number;
}

/** When what was copied is cleared in the bitmap. */
export type BitmapMode = 'on-success' | 'never' | 'always';

export interface BackupNodes {
  readonly device: Node;
  readonly target: Node;
  readonly bitmap: DirtyBitmap | undefined;
}

/** Errors, in QEMU's order and words: not-found, invalid, busy. */
export function planBackup(graph: Graph, request: BackupRequest): BackupPlan {
  const device = findDevice(graph, request.device);
  const target = findDevice(graph, request.target);
  const plan: BackupPlan = {
    kind: 'backup',
    ...commonPlan(request, device),
    ...checkedPlan(request),
    device: referTo(device),
    target: referTo(target),
    sync: request.sync,
    compress: request.compress ?? false,
    onGuestCopyError: request['on-cbw-error'] ?? 'break-guest-write',
    discardSource: request['discard-source'] ?? false,
    performance: performanceOf(request),
    ...given({ bitmap: checkBitmap(device, request), fleecing: fleecingOf(request) }),
  };
  backupNodes(graph, plan);
  return plan;
}

/** Errors: invalid. */
function fleecingOf(request: BackupRequest): FleecingPlan | undefined {
  const { 'x-fleecing': asked, sync } = request;
  if (!asked) return undefined;
  const { folder, 'max-bytes': maxBytes, 'on-full': onFull = 'fail', 'spill-folder': spillFolder } = asked;
  const refuse = (text: string): never => {
    throw new BlockError('invalid', text);
  };
  if (sync === 'none') refuse("'x-fleecing' has no meaning with sync mode 'none'");
  if (request['x-persist'] !== undefined) refuse("'x-fleecing' cannot be used with 'x-persist'");
  if (request['discard-source'] === true) refuse("'x-fleecing' cannot be used with 'discard-source'");
  if ((onFull === 'spill') !== (spillFolder !== undefined))
    refuse("'spill-folder' is given when, and only when, 'on-full' is 'spill'");
  return { folder, maxBytes, ...given({ spillFolder }) };
}

const MAX_WORKERS = 2 ** 31 - 1;

function performanceOf({ 'x-perf': asked = {} }: BackupRequest): BackupPerformance {
  const chunk = asked['max-chunk'];
  return given({
    offloads: asked['use-copy-range'],
    maxPieces: asked['max-workers'] === undefined ? undefined : Number(asked['max-workers']),
    // 0: no limit.
    maxPieceBytes: chunk === undefined || chunk === 0 ? undefined : Number(chunk),
    minClusterBytes: asked['min-cluster-size'],
  });
}

/** Errors: invalid. */
function checkPerformance({ maxPieces = 1, maxPieceBytes = 0 }: BackupPerformance): void {
  if (maxPieces < 1 || maxPieces > MAX_WORKERS)
    throw new BlockError('invalid', `max-workers must be between 1 and ${MAX_WORKERS}`);
  if (maxPieceBytes < 0)
    throw new BlockError('invalid', 'max-chunk must be zero (which means no limit) or positive');
}

/** What a request says of a bitmap. Errors: invalid, not-found, busy. */
export function checkBitmap(
  device: Node,
  request: Pick<BackupRequest, 'sync' | 'bitmap' | 'bitmap-mode'>,
): BackupPlan['bitmap'] {
  const { sync, bitmap: name, 'bitmap-mode': mode } = request;
  if ((sync === 'incremental' || sync === 'bitmap') && name === undefined)
    throw new BlockError('invalid', `must provide a valid bitmap name for '${sync}' sync mode`);
  const isIncremental = sync === 'incremental';
  if (isIncremental && mode !== undefined && mode !== 'on-success')
    throw new BlockError(
      'invalid',
      "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
    );
  if (name === undefined) {
    if (mode === undefined) return undefined;
    throw new BlockError('invalid', 'Cannot specify bitmap sync mode without a bitmap');
  }
  if (!device.findBitmap(name)) throw noBitmap(name);
  const ending = mode ?? (isIncremental ? 'on-success' : undefined);
  if (ending === undefined)
    throw new BlockError('invalid', 'Bitmap sync mode must be given when providing a bitmap');
  freeBitmap(device, { name, mode: ending });
  if (sync === 'none')
    throw new BlockError('invalid', "sync mode 'none' does not produce meaningful bitmap outputs");
  if (ending === 'never' && sync !== 'bitmap') {
    const text = `Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '${sync}'`;
    throw new BlockError('invalid', text);
  }
  return { name, mode: ending };
}

function noBitmap(name: string): BlockError {
  return new BlockError('not-found', `Bitmap '${name}' could not be found`);
}

/** Errors: not-found; those of DirtyBitmap.assertUsable. */
function freeBitmap(device: Node, { name, mode }: { name: string; mode: BitmapMode }): DirtyBitmap {
  const bitmap = device.findBitmap(name);
  if (!bitmap) throw noBitmap(name);
  bitmap.assertUsable('read');
  if (mode !== 'never') bitmap.assertUsable('change');
  return bitmap;
}

/** In what units the target gets the content. Errors: invalid. */
export function copyUnitBytes({ performance }: BackupPlan, target: Node): number {
  const { maxPieceBytes, minClusterBytes } = performance;
  const { clusterSizeBytes } = target.skipFilters().instance.info();
  const unit = creatingNode(() => copyClusterBytes(clusterSizeBytes ?? 1, minClusterBytes));
  if (maxPieceBytes === undefined || maxPieceBytes >= unit) return unit;
  const text = `Required max-chunk (${maxPieceBytes}) is less than backup cluster size (${unit})`;
  throw new BlockError('invalid', text);
}

/** Errors: not-found, invalid; busy. */
export function backupNodes(graph: Graph, plan: BackupPlan): BackupNodes {
  const device = nodeOf(graph, plan.device);
  const target = nodeOf(graph, plan.target);
  const bitmap = plan.bitmap && freeBitmap(device, plan.bitmap);
  if (device === target) throw new BlockError('invalid', 'Source and target cannot be the same');
  if (plan.compress && target.driver.compresses !== true)
    throw new BlockError('invalid', `Compression is not supported for this drive ${target.driveName}`);
  for (const node of [device, target]) node.assertNotBlocked();
  checkPerformance(plan.performance);
  if (device.lengthBytes !== target.lengthBytes)
    throw new BlockError('invalid', 'Source and target image have different sizes');
  return { device, target, bitmap };
}
