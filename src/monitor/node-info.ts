import type { ThrottleGroup } from '../block/objects/throttle-group.js';
import { limitsInfo } from './io-throttle.js';
import { given } from '../base/given.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Json } from '../block/driver.js';
import { type NodeNames, resolveBackingOf } from '../block/full-filename.js';
import type { Node } from '../block/node.js';

type JsonObject = { [key: string]: Json };

/** QAPI's ImageInfo of one image. */
export function imageInfo(node: Node, names: NodeNames): JsonObject {
  return layerInfo(node, names, undefined);
}

function layerInfo(node: Node, names: NodeNames, backingImage: JsonObject | undefined): JsonObject {
  const own = node.instance.info();
  const { formatSpecific, isDirty, isEncrypted, snapshots = [] } = own;
  const { clusterSizeBytes, hasNoDirtyFlag } = node.isFilter ? node.skipFilters().instance.info() : own;
  return given({
    'backing-image': backingImage,
    'backing-filename-format': node.backingFormat,
    snapshots: snapshots.length > 0 ? [...snapshots] : undefined,
    'virtual-size': node.lengthBytes,
    filename: names.of(node),
    'cluster-size': clusterSizeBytes,
    format: node.driver.name,
    'actual-size': node.allocatedBytes(),
    'format-specific': formatSpecific,
    encrypted: isEncrypted === true ? true : undefined,
    'full-backing-filename': fullBackingFilename(node),
    'backing-filename': node.backingFilename,
    'dirty-flag': hasNoDirtyFlag === true ? undefined : (isDirty ?? false),
  });
}

function fullBackingFilename(node: Node): string | undefined {
  if (node.backingFilename === undefined) return undefined;
  try {
    return resolveBackingOf(node, node.backingFilename);
  } catch {
    // A relative name in an image that has no folder.
    return undefined;
  }
}

function bitmapInfo(bitmap: DirtyBitmap): JsonObject {
  return {
    ...(bitmap.name !== undefined && { name: bitmap.name }),
    recording: bitmap.isRecording && !bitmap.isInternal && !bitmap.isSilent,
    persistent: bitmap.persistent,
    busy: bitmap.busy,
    granularity: bitmap.granularityBytes,
    count: bitmap.granulesBytes,
    ...(bitmap.inconsistent && { inconsistent: true }),
  };
}

export interface NodeInfoOptions {
  /** Only the node itself, without what is below it. */
  flat?: boolean;
  /** Filters that jobs have put in below it are no layers. */
  hidesImplicit?: boolean;
  writeCache?: boolean;
  /** Whose limits hold for the disk. */
  throttleGroup?: ThrottleGroup | undefined;
}

/** The node and its layers, filters included, top first. */
function layersOf(node: Node, { flat, hidesImplicit }: NodeInfoOptions): Node[] {
  const layers = [node];
  if (flat === true) return layers;
  for (let below = node.below?.node; below; below = below.below?.node) {
    if (hidesImplicit === true) below = below.skipImplicitFilters();
    layers.push(below);
  }
  return layers;
}

/** QAPI's BlockDeviceInfo. */
export function nodeInfo(node: Node, names: NodeNames, options: NodeInfoOptions = {}): JsonObject {
  const { cache } = node.settings;
  // The one that was made last comes first.
  const bitmaps = node.dirtyBitmaps.map(bitmapInfo).reverse();
  const layers = layersOf(node, options);
  let image: JsonObject | undefined;
  for (const layer of [...layers].reverse()) image = layerInfo(layer, names, image);
  const backing = node.isFilter ? undefined : node.children.get('backing')?.node;
  return inOrder(limitsInfo(options.throttleGroup), {
    detect_zeroes: node.modes.detectZeroes,
    image,
    ro: node.readOnly,
    'node-name': node.name,
    backing_file_depth: layers.length - 1,
    drv: node.driver.name,
    write_threshold: node.writeThreshold?.offset ?? 0,
    backing_file: backing && names.of(backing),
    'dirty-bitmaps': bitmaps.length > 0 ? bitmaps : undefined,
    encrypted: node.instance.info().isEncrypted === true,
    cache: {
      'no-flush': cache['no-flush'],
      direct: cache.direct,
      writeback: options.writeCache ?? true,
    },
    file: names.of(node),
  });
}

/** In which QEMU tells them, seen of its answers. */
const MEMBER_ORDER: ReadonlyArray<string> = (
  'iops_rd detect_zeroes iops_max_length bps_max_length image iops_wr group ro node-name bps_wr_max_length iops_size ' +
  'backing_file_depth iops_rd_max_length bps_wr_max bps_rd_max_length drv iops_rd_max bps_max iops bps_wr bps_rd_max ' +
  'write_threshold backing_file dirty-bitmaps encrypted bps bps_rd cache iops_max file iops_wr_max_length iops_wr_max'
).split(' ');

function inOrder(...parts: ReadonlyArray<{ readonly [name: string]: Json | undefined }>): JsonObject {
  const ordered: JsonObject = {};
  for (const name of MEMBER_ORDER)
    for (const { [name]: member } of parts) if (member !== undefined) ordered[name] = member;
  return ordered;
}
