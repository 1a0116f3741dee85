import { alignDown } from '../base/align.js';
import { BlockError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { BlockBackend } from './backend.js';
import type { Preallocated } from './driver.js';
import { tellingSpace } from './new-space.js';

/** What of new space is taken at once: none, the tables, the blocks of the file, or the blocks with zeroes in them. */
export const PREALLOCATION_MODES = ['off', 'metadata', 'falloc', 'full'] as const;
export type Preallocation = (typeof PREALLOCATION_MODES)[number];

const ZERO_PIECE_BYTES = MiB;

/**
 * Gives an image another virtual size; durable on return. New space reads as zeroes; `backend` may write and resize.
 * Errors: those of the format (limit, unsupported, invalid, no-space); unsupported for a preallocation that it does not
 * have. Then it has its old size, or the smaller one where only the flush has failed.
 */
export async function resizeImage(
  backend: BlockBackend,
  sizeBytes: number,
  preallocation: Preallocation = 'off',
): Promise<void> {
  const oldBytes = backend.lengthBytes;
  const isSmaller = sizeBytes < oldBytes;
  const preallocate = preallocation === 'off' ? undefined : preallocating(backend, preallocation, isSmaller);
  await backend.truncate(sizeBytes);
  try {
    if (preallocate && preallocation !== 'off')
      await tellingSpace(preallocation, () => preallocate(oldBytes, sizeBytes));
    await backend.flush();
  } catch (error) {
    // As if it had not been asked for; what a smaller disk has lost does not come back.
    if (!isSmaller) await backend.truncate(oldBytes).catch(() => undefined);
    throw error;
  }
}

/**
 * The format gives its clusters; where a byte of the disk is the same byte of a file, the file's blocks are what is
 * preallocated. Errors: unsupported.
 */
function preallocating(
  backend: BlockBackend,
  mode: Preallocated,
  isSmaller: boolean,
): (from: number, end: number) => Promise<void> {
  const image = backend.node.skipFilters();
  const { driver, instance, io } = image;
  const isFile = driver.kind === 'protocol' || driver.followsChildSize === true;
  // Truncating says so itself.
  if (!instance.truncate) return () => Promise.resolve();
  if (!isFile && !instance.preallocate)
    throw new BlockError('unsupported', `Unsupported preallocation mode '${mode}'`);
  const shrinks = isFile
    ? 'Cannot use preallocation for shrinking files'
    : "Preallocation can't be used for shrinking an image";
  if (isSmaller) throw new BlockError('invalid', shrinks);
  if (isFile && mode === 'metadata')
    throw new BlockError('unsupported', `Unsupported preallocation mode: ${mode}`);
  if (isFile && mode === 'full') return (from, end) => writeZeroBytes(backend, from, end);
  if (instance.preallocate) return (from, end) => io.preallocate(from, end, mode);
  return (from, end) => io.allocate(from, end - from, false);
}

/** Zeroes that take their space: they are written, not asked for. */
async function writeZeroBytes(backend: BlockBackend, from: number, end: number): Promise<void> {
  const zeroes = Buffer.alloc(Math.min(ZERO_PIECE_BYTES, end - from));
  for (let at = from; at < end;) {
    const length = Math.min(alignDown(at, ZERO_PIECE_BYTES) + ZERO_PIECE_BYTES, end) - at;
    await backend.write(at, zeroes.subarray(0, length));
    at += length;
  }
}
