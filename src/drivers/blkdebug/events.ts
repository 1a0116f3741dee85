import { BlockError } from '../../base/error.js';

/** Events that the block layer and the format drivers announce (QAPI BlkdebugEvent). */
export const EVENTS: ReadonlySet<string> = new Set(
  (
    'l1_update l1_grow_alloc_table l1_grow_write_table l1_grow_activate_table l2_load l2_update ' +
    'l2_update_compressed l2_alloc_cow_read l2_alloc_write read_aio read_backing_aio read_compressed write_aio ' +
    'write_compressed vmstate_load vmstate_save cow_read cow_write reftable_load reftable_grow reftable_update ' +
    'refblock_load refblock_update refblock_update_part refblock_alloc refblock_alloc_hookup ' +
    'refblock_alloc_write refblock_alloc_write_blocks refblock_alloc_write_table refblock_alloc_switch_table ' +
    'cluster_alloc cluster_alloc_bytes cluster_free flush_to_os flush_to_disk pwritev_rmw_head ' +
    'pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail pwritev pwritev_zero pwritev_done ' +
    'empty_image_prepare l1_shrink_write_table l1_shrink_free_l2_clusters cor_write cluster_alloc_space none'
  ).split(' '),
);

/** QAPI BlkdebugIOType. */
export type IoType = 'read' | 'write' | 'write-zeroes' | 'discard' | 'flush' | 'block-status';

const IO_TYPES: ReadonlySet<string> = new Set<IoType>([
  'read',
  'write',
  'write-zeroes',
  'discard',
  'flush',
  'block-status',
]);

export function isIoType(value: string): value is IoType {
  return IO_TYPES.has(value);
}

/** Linux numbers of the errnos that block I/O meets. */
const ERRNO_NAMES: ReadonlyMap<number, string> = new Map([
  [1, 'EPERM'],
  [2, 'ENOENT'],
  [5, 'EIO'],
  [9, 'EBADF'],
  [11, 'EAGAIN'],
  [12, 'ENOMEM'],
  [13, 'EACCES'],
  [16, 'EBUSY'],
  [17, 'EEXIST'],
  [20, 'ENOTDIR'],
  [21, 'EISDIR'],
  [22, 'EINVAL'],
  [24, 'EMFILE'],
  [27, 'EFBIG'],
  [28, 'ENOSPC'],
  [30, 'EROFS'],
  [32, 'EPIPE'],
  [36, 'ENAMETOOLONG'],
  [95, 'EOPNOTSUPP'],
  [98, 'EADDRINUSE'],
  [99, 'EADDRNOTAVAIL'],
  [104, 'ECONNRESET'],
  [108, 'ESHUTDOWN'],
  [110, 'ETIMEDOUT'],
  [111, 'ECONNREFUSED'],
  [122, 'EDQUOT'],
  [125, 'ECANCELED'],
]);

/** Errors: kind unsupported for a number that livedisk has no name for. */
export function errnoName(number: number): string {
  const name = ERRNO_NAMES.get(number);
  if (name === undefined) {
    throw new BlockError('unsupported', `blkdebug: errno ${number} is not one that livedisk can inject`);
  }
  return name;
}
