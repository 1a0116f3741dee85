import { OTHER_DRIVERS } from './blockdev-options.js';
import { DRIVER_NAMES } from './create-options.js';
import { enumOf, later, required, struct, union } from './types.js';

/** By driver. */
const AMENDABLE = {
  qcow2: struct('BlockdevAmendOptionsQcow2', { encrypt: later(struct('QCryptoBlockAmendOptions', {})) }),
} as const;

/** What x-blockdev-amend changes of an image. */
export const BlockdevAmendOptions = union(
  'BlockdevAmendOptions',
  { driver: required(enumOf('BlockdevDriver', DRIVER_NAMES, OTHER_DRIVERS)) },
  'driver',
  AMENDABLE,
);

export function canAmend(driver: string): boolean {
  return Object.hasOwn(AMENDABLE, driver);
}
