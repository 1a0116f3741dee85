import { BlockError } from '../base/error.js';

/** Compressed data that cannot be expanded; `what` is wrong with it. */
export function brokenData(what?: string, cause?: unknown): BlockError {
  const text = `Compressed data is broken${what === undefined ? '' : `: ${what}`}`;
  return new BlockError('corrupt', text, { errno: 'EIO', cause });
}
