import { byteCount } from './scalars.js';
import { arrayOf, bool, optional, required, str, struct, uint32 } from './types.js';

/** Whose clusters a disk shows: livedisk's own command (extensions.ts). */

export const DISK_MAP_COMMANDS = {
  'x-query-map': struct('x-query-map-arg', {
    /** An image, or the drive or device that uses it. */
    node: required(str),
    /** From there on; default 0. */
    start: optional(byteCount),
    /** So many stretches at most; default, and most, 4096. */
    most: optional(uint32),
  }),
} as const;

export const DISK_MAP_RETURNS = {
  'x-query-map': struct('XDiskMap', {
    /** Of the disk. */
    size: required(byteCount),
    /** The chain's images by the names of their nodes, the asked one first. */
    layers: required(arrayOf(str)),
    /** In order, without gaps. */
    extents: required(
      arrayOf(
        struct('XDiskMapExtent', {
          start: required(byteCount),
          length: required(byteCount),
          /** By its place in layers, the one that says what is there; missing: none does. */
          layer: optional(uint32),
          zero: required(bool),
        }),
      ),
    ),
    /** Where to go on; missing: that is all. */
    next: optional(byteCount),
  }),
} as const;
