import { ERRNO_NAMES } from '../../base/errno-numbers.js';
import { BlockError } from '../../base/error.js';
import type { BLKDEBUG_IO_TYPES } from '../../schema/blockdev-options.js';

export type IoType = (typeof BLKDEBUG_IO_TYPES)[number];

/** Errors: kind unsupported for a number that livedisk has no name for. */
export function errnoName(number: number): string {
  const name = ERRNO_NAMES.get(number);
  if (name === undefined) {
    throw new BlockError('unsupported', `blkdebug: errno ${number} is not one that livedisk can inject`);
  }
  return name;
}
