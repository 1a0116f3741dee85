import { BlockError } from '../base/error.js';

/** A descriptor as a command line gives it. Errors: invalid, in QEMU's words. */
export function descriptorNumber(text: string): number {
  if (/^\d+$/.test(text)) return Number(text);
  throw new BlockError('invalid', `Unable to parse FD number ${text}`);
}
