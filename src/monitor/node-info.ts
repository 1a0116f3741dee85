import { given } from '../base/given.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Json } from '../block/driver.js';
import { resolveBacking } from '../block/filename.js';
import type { Node } from '../block/node.js';

type JsonObject = { [key: string]: Json };

/** QAPI's ImageInfo; the whole backing chain within it unless `flat`. */
export function imageInfo(node: Node, flat = false): JsonObject {
  const { formatSpecific, isDirty, snapshots = [] } = node.instance.info();
  const { clusterSizeBytes } = node.skipFilters().instance.info();
  const below = flat ? undefined : node.backingNode();
  return given({
    'backing-image': below && imageInfo(below),
    'backing-filename-format': node.backingFormat,
    snapshots: snapshots.length > 0 ? [...snapshots] : undefined,
    'virtual-size': node.lengthBytes,
    filename: node.filename,
    'cluster-size': clusterSizeBytes,
    format: node.driver.name,
    'actual-size': node.allocatedBytes(),
    'format-specific': formatSpecific,
    'full-backing-filename': fullBackingFilename(node),
    'backing-filename': node.backingFilename,
    'dirty-flag': isDirty ?? false,
  });
}

function fullBackingFilename(node: Node): string | undefined {
  if (node.backingFilename === undefined) return undefined;
  try {
    return resolveBacking(node.filename, node.backingFilename);
  } catch {
    // A relative name in an image that has no folder.
    return undefined;
  }
}

function bitmapInfo(bitmap: DirtyBitmap): JsonObject {
  return {
    ...(bitmap.name !== undefined && { name: bitmap.name }),
    recording: bitmap.enabled,
    persistent: false,
    busy: bitmap.busy,
    granularity: bitmap.granularityBytes,
    count: bitmap.dirtyBytes,
  };
}

/** Backing files below a node. */
function chainDepth(node: Node): number {
  const below = node.backingNode();
  return below ? 1 + chainDepth(below) : 0;
}

/** QAPI's BlockDeviceInfo. */
export function nodeInfo(node: Node, options: { flat?: boolean; writeCache?: boolean } = {}): JsonObject {
  const cache = (node.options['cache'] ?? {}) as JsonObject;
  const bitmaps = node.dirtyBitmaps.map(bitmapInfo);
  return given({
    iops_rd: 0,
    detect_zeroes: node.modes.detectZeroes,
    image: imageInfo(node, options.flat),
    iops_wr: 0,
    ro: node.readOnly,
    'node-name': node.name,
    backing_file_depth: options.flat === true ? 0 : chainDepth(node),
    drv: node.driver.name,
    iops: 0,
    bps_wr: 0,
    write_threshold: 0,
    backing_file: node.backingFilename,
    'dirty-bitmaps': bitmaps.length > 0 ? bitmaps : undefined,
    encrypted: false,
    bps: 0,
    bps_rd: 0,
    cache: {
      'no-flush': cache['no-flush'] ?? false,
      direct: cache['direct'] ?? false,
      writeback: options.writeCache ?? true,
    },
    file: node.filename,
  });
}
