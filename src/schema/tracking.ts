import { byteCount } from './scalars.js';
import { arrayOf, bool, enumOf, optional, required, str, struct, uint32 } from './types.js';

/** Change tracking that a crash leaves right (docs/TRACKING.md). */

const TrackedDisk = struct('TrackedDisk', {
  node: required(str),
  /** Which bitmap it was when it was asked for last; another one is of no use. */
  id: optional(str),
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
});

export const TRACKING_COMMANDS = { 'x-bitmap-ensure': BitmapEnsure } as const;

export const TRACKING_RETURNS = { 'x-bitmap-ensure': arrayOf(BitmapTracking) } as const;
