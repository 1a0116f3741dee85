import { BlockError } from '../../base/error.js';
import type { BLKDEBUG_IO_TYPES } from '../../schema/blockdev-options.js';

export type IoType = (typeof BLKDEBUG_IO_TYPES)[number];

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
