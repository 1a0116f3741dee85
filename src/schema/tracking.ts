import { byteCount } from './scalars.js';
import { arrayOf, bool, enumOf, optional, required, str, struct, uint32 } from './types.js';

/** Change tracking that a crash leaves right (docs/TRACKING.md). */

const TrackedDisk = struct('TrackedDisk', {
  node: required(str),
  /** Which bitmap it was when it was asked for last; another one is of no use. */
  id: optional(str),
  /** Where the bitmap is kept of an image that cannot keep one. */
  file: optional(str),
});

const BitmapEnsure = struct('BitmapEnsure', {
  name: required(str),
  disks: required(arrayOf(TrackedDisk)),
  /** Of those that are made. */
  granularity: optional(uint32),
  /** What other programs say that they have kept right is lost. */
  strict: optional(bool),
});

export const TrackingStatus = enumOf('TrackingStatus', ['usable', 'lost']);
export const TrackingLossReason = enumOf('TrackingLossReason', [
  'never-there',
  'replaced',
  'resized-by-another',
  'unclean-end',
  'written-by-another',
]);

const BitmapTracking = struct('BitmapTracking', {
  node: required(str),
  status: required(TrackingStatus),
  /** From then on it knows of every change; in milliseconds since 1970. */
  since: required(byteCount),
  id: required(str),
  reason: optional(TrackingLossReason),
  /** Another program has had the image for writing, and says that it kept the bitmap right. */
  'kept-by-another': required(bool),
  /** The answer holds if nobody else has written to the device, which cannot be seen. */
  'if-nobody-else-wrote': required(bool),
});

const BitmapExtents = struct('BitmapExtentsRequest', {
  node: required(str),
  name: required(str),
  /** From there on; default 0. */
  start: optional(byteCount),
  /** So many stretches at most; default, and most, 4096. */
  most: optional(uint32),
});

const BitmapExtentList = struct('BitmapExtentList', {
  granularity: required(byteCount),
  /** Dirty stretches in order. */
  extents: required(
    arrayOf(struct('BitmapExtent', { start: required(byteCount), length: required(byteCount) })),
  ),
  /** Where to go on; missing: that is all. */
  next: optional(byteCount),
});

const WriteHeatQuery = struct('WriteHeatQuery', {
  /** The disk's active image, or the drive or device that uses it. */
  node: required(str),
  /** Counted as one: a power of two from 512. Default: what gives 4096 regions at most, 64 KiB at least. */
  region: optional(byteCount),
  /** In milliseconds: what was written so long ago counts half. Default a minute. */
  'half-life': optional(uint32),
});

const WriteHeatInfo = struct('WriteHeatInfo', {
  /** Bytes of the disk that are counted as one: more than was asked for once the disk has grown beyond 1 Mi regions. */
  region: required(byteCount),
  'half-life': required(uint32),
  /** For how long it has been counted, in milliseconds: since somebody asked. */
  counted: required(byteCount),
  /** Those that were written to, in order, with bytes a second. */
  regions: required(
    arrayOf(struct('WriteHeatRegion', { start: required(byteCount), rate: required(byteCount) })),
  ),
});

export const TRACKING_COMMANDS = {
  'x-query-write-heat': WriteHeatQuery,
  'x-bitmap-ensure': BitmapEnsure,
  'x-bitmap-extents': BitmapExtents,
} as const;

export const TRACKING_RETURNS = {
  'x-query-write-heat': WriteHeatInfo,
  'x-bitmap-ensure': arrayOf(BitmapTracking),
  'x-bitmap-extents': BitmapExtentList,
} as const;
