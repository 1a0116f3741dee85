import { byteCount } from './scalars.js';
import { required, str, struct } from './types.js';

/** How the file of an image in use is used: livedisk's own command (extensions.ts). */

export const FILE_USE_COMMANDS = {
  'x-query-file-use': struct('x-query-file-use-arg', {
    /** An image, or the drive or device that uses it. */
    node: required(str),
  }),
} as const;

export const FILE_USE_RETURNS = {
  'x-query-file-use': struct('XFileUse', {
    /** Of the file. */
    length: required(byteCount),
    'cluster-size': required(byteCount),
    /** Bytes of clusters that count as in use, leaked ones included. */
    used: required(byteCount),
    /** Bytes of free clusters before the last one in use: what is written next goes there. */
    free: required(byteCount),
    /** Clusters of the disk that have one of the file; compressed ones by themselves. */
    'data-clusters': required(byteCount),
    'compressed-clusters': required(byteCount),
    /** Stretches of the disk whose clusters lie one behind the other in the file. */
    extents: required(byteCount),
    /** Clusters of which the one before on the disk has one of the file, too. */
    'adjoining-clusters': required(byteCount),
    /** Of these, those that do not lie behind it. */
    'scattered-clusters': required(byteCount),
  }),
} as const;
