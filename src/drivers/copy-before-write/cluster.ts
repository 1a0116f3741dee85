import { isPowerOfTwo } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { KiB } from '../../base/limits.js';

/** Smallest unit in which the old content of a disk is copied (QEMU: 64 KiB). */
const MIN_CLUSTER_BYTES = 64 * KiB;

/**
 * The unit in which the old content of a disk is copied to a target with clusters of `targetBytes`; `asked`: what the
 * user wants at least. Errors: kind invalid, in QEMU's words.
 */
export function copyClusterBytes(targetBytes: number, asked = 0): number {
  if (asked !== 0 && !isPowerOfTwo(asked))
    throw new BlockError(
      'invalid',
      'Cannot create block-copy-state: min-cluster-size needs to be a power of 2',
    );
  return Math.max(MIN_CLUSTER_BYTES, targetBytes, asked);
}
