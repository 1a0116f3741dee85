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

export const TRACKING_COMMANDS = {
  'x-bitmap-ensure': BitmapEnsure,
  'x-bitmap-extents': BitmapExtents,
} as const;

export const TRACKING_RETURNS = {
  'x-bitmap-ensure': arrayOf(BitmapTracking),
  'x-bitmap-extents': BitmapExtentList,
} as const;
