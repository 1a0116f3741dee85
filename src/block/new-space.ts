import { BlockError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { ChildIo, Preallocated } from './driver.js';

/** Bytes of zeroes that are written at a time. */
const PIECE_BYTES = MiB;

/** Errors: unsupported, where a file is to have tables. */
export function checkFileSpace(mode: 'off' | Preallocated): void {
  if (mode === 'metadata') throw new BlockError('unsupported', `Unsupported preallocation mode: ${mode}`);
}

/**
 * Takes blocks for [from, end) of a file, which has nothing there; not yet durable on return. Errors: unsupported, no-space,
 * those of writing.
 */
export async function takeFileSpace(
  file: ChildIo,
  from: number,
  end: number,
  mode: 'off' | Preallocated,
): Promise<void> {
  checkFileSpace(mode);
  if (mode === 'falloc') await file.allocate(from, end - from);
  if (mode !== 'full') return;
  const zeroes = Buffer.alloc(Math.min(PIECE_BYTES, end - from));
  for (let at = from; at < end; at += zeroes.length)
    await file.write(at, zeroes.subarray(0, Math.min(zeroes.length, end - at)), 0);
}

/** What QEMU gives a new file in any case, so that it can be tried out what its storage takes. */
export const FIRST_BLOCK_BYTES = 4096;
