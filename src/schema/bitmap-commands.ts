import { alternate, arrayOf, bool, extension, optional, required, str, struct, uint32 } from './types.js';

/** Commands on dirty bitmaps. */

export const BitmapAdd = struct('BlockDirtyBitmapAdd', {
  node: required(str),
  name: required(str),
  granularity: optional(uint32),
  persistent: optional(bool),
  disabled: optional(bool),
  /** Persistent, and right after a crash: docs/TRACKING.md. */
  'x-durable': extension(optional(bool)),
});

export const BitmapName = struct('BlockDirtyBitmap', { node: required(str), name: required(str) });

export const BitmapMerge = struct('BlockDirtyBitmapMerge', {
  node: required(str),
  target: required(str),
  /** By name of bitmaps of the same node, else with their node. */
  bitmaps: required(arrayOf(alternate('BlockDirtyBitmapOrStr', [str, BitmapName]))),
});

export const BITMAP_COMMANDS = {
  'block-dirty-bitmap-add': BitmapAdd,
  'block-dirty-bitmap-clear': BitmapName,
  'block-dirty-bitmap-disable': BitmapName,
  'block-dirty-bitmap-enable': BitmapName,
  'block-dirty-bitmap-merge': BitmapMerge,
  'block-dirty-bitmap-remove': BitmapName,
  'x-debug-block-dirty-bitmap-sha256': BitmapName,
} as const;

export const BITMAP_RETURNS = {
  'x-debug-block-dirty-bitmap-sha256': struct('BlockDirtyBitmapSha256', { sha256: required(str) }),
} as const;
