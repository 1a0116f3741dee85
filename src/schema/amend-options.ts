import { OTHER_DRIVERS } from './blockdev-options.js';
import { DRIVER_NAMES } from './create-options.js';
import { BlockEncryptionAmendment, LUKS_AMEND_MEMBERS, type LuksAmendment } from './encryption-options.js';
import { enumOf, type Infer, optional, required, struct, union } from './types.js';

/** By driver. */
const AMENDABLE = {
  luks: struct('BlockdevAmendOptionsLUKS', LUKS_AMEND_MEMBERS),
  qcow2: struct('BlockdevAmendOptionsQcow2', { encrypt: optional(BlockEncryptionAmendment) }),
} as const;

/** What x-blockdev-amend changes of an image. */
export const BlockdevAmendOptions = union(
  'BlockdevAmendOptions',
  { driver: required(enumOf('BlockdevDriver', DRIVER_NAMES, OTHER_DRIVERS)) },
  'driver',
  AMENDABLE,
);

/** What is asked of an image's key slots. */
export function keySlotsOf(options: Infer<typeof BlockdevAmendOptions>): LuksAmendment | undefined {
  return options.driver === 'luks' ? options : options.encrypt;
}

export function canAmend(driver: string): boolean {
  return Object.hasOwn(AMENDABLE, driver);
}
