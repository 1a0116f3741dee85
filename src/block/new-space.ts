import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
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
export function takeFileSpace(
  file: ChildIo,
  from: number,
  end: number,
  mode: 'off' | Preallocated,
): Promise<void> {
  checkFileSpace(mode);
  return tellingSpace(mode, async () => {
    if (mode === 'falloc') await file.allocate(from, end - from);
    if (mode !== 'full') return;
    const zeroes = Buffer.alloc(Math.min(PIECE_BYTES, end - from));
    for (let at = from; at < end; at += zeroes.length)
      await file.write(at, zeroes.subarray(0, Math.min(zeroes.length, end - at)), 0);
  });
}

/** Does what takes space; that there is none left, or what else went wrong, is told with what it was for. */
export async function tellingSpace(mode: 'off' | Preallocated, take: () => Promise<void>): Promise<void> {
  try {
    await take();
  } catch (error) {
    if (!(error instanceof BlockError) || (error.kind !== 'no-space' && error.kind !== 'io')) throw error;
    const what = mode === 'full' ? 'write zeros for preallocation' : 'preallocate new data';
    const { kind, message, errno } = error;
    throw new BlockError(kind, `Could not ${what}: ${message}`, given({ errno, cause: error }));
  }
}

const FIRST_BLOCK_BYTES = 4096;

/** What QEMU gives a new file in any case, so that it can be tried out what its storage takes; nothing where it is full. */
export async function takeFirstBlock(file: ChildIo, sizeBytes: number): Promise<void> {
  try {
    await file.write(0, Buffer.alloc(Math.min(FIRST_BLOCK_BYTES, sizeBytes)), 0);
  } catch (error) {
    if (!(error instanceof BlockError) || error.kind !== 'no-space') throw error;
  }
}
