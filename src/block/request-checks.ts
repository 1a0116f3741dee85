import { BlockError } from '../base/error.js';

/** A program may not be typed. */
export function isBytes(buffer: unknown): buffer is Uint8Array {
  return buffer instanceof Uint8Array;
}

/** Errors: kind invalid. */
export function checkBuffer(buffer: Uint8Array): void {
  if (!isBytes(buffer)) throw noBytes();
}

export function noBytes(): BlockError {
  return new BlockError('invalid', 'A buffer of a disk is a Uint8Array', { errno: 'EINVAL' });
}

export function outOfRange(offset: number, lengthBytes: number): BlockError {
  const text = `Offset and length are whole numbers from 0 to 2^53, not ${String(offset)} and ${String(lengthBytes)}`;
  return new BlockError('invalid', text, { errno: 'EINVAL' });
}
