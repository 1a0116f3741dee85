import { BlockError } from '../../../base/error.js';
import type { Settings } from '../../../block/driver.js';
import type { QCOW2_OPTIONS } from '../../../schema/blockdev-options.js';
import { DEFAULT_L2_CACHE_BYTES } from './l2-cache.js';
import type { CacheSizes } from '../open-image.js';

/** What refcount blocks get of a common size that L2 tables would take whole: QEMU's 4 blocks of 64 KiB. */
const MIN_REFCOUNT_CACHE_BYTES = 256 * 1024;

/**
 * How `cache-size`, for both caches, `l2-cache-size` and `refcount-cache-size` divide memory. Errors: invalid, in
 * QEMU's words.
 */
export function cacheSizes(settings: Settings<typeof QCOW2_OPTIONS>): CacheSizes {
  const { 'cache-size': both, 'l2-cache-size': l2, 'refcount-cache-size': refcounts } = settings;
  if (both === undefined) return { l2CacheBytes: l2, refcountCacheBytes: refcounts };
  if (l2 !== undefined && refcounts !== undefined)
    throw invalid('cache-size, l2-cache-size and refcount-cache-size may not be set at the same time');
  if (l2 !== undefined) {
    if (l2 > both) throw invalid('l2-cache-size may not exceed cache-size');
    return { l2CacheBytes: l2, refcountCacheBytes: both - l2 };
  }
  if (refcounts !== undefined) {
    if (refcounts > both) throw invalid('refcount-cache-size may not exceed cache-size');
    return { l2CacheBytes: both - refcounts, refcountCacheBytes: refcounts };
  }
  // First what refcounts need at least, then L2 tables up to their most, then refcounts the rest.
  const least = Math.min(both, MIN_REFCOUNT_CACHE_BYTES);
  const l2CacheBytes = Math.min(both - least, DEFAULT_L2_CACHE_BYTES);
  return { l2CacheBytes, refcountCacheBytes: both - l2CacheBytes };
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}
