import { alignDown } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import type { BlockBackend } from '../../block/backend.js';

/** What of new space is taken at once: none, the tables, the blocks of the file, or the blocks with zeroes in them. */
export const PREALLOCATION_MODES = ['off', 'metadata', 'falloc', 'full'] as const;
export type Preallocation = (typeof PREALLOCATION_MODES)[number];

const ZERO_PIECE_BYTES = MiB;

/**
 * Gives an image another virtual size; durable on return. New space reads as zeroes; `backend` may write and resize.
 * Errors: those of the format (limit, unsupported, invalid); unsupported for a preallocation that it does not have.
 */
export async function resizeImage(
  backend: BlockBackend,
  sizeBytes: number,
  preallocation: Preallocation = 'off',
): Promise<void> {
  const { node } = backend;
  const oldBytes = backend.lengthBytes;
  checkPreallocation(backend, preallocation);
  await backend.truncate(sizeBytes);
  try {
    if (preallocation === 'falloc') await node.storage.io.allocate(oldBytes, sizeBytes - oldBytes, false);
    if (preallocation === 'full') await writeZeroBytes(backend, oldBytes, sizeBytes);
    await backend.flush();
  } catch (error) {
    // As if it had not been asked for.
    await backend.truncate(oldBytes);
    throw error;
  }
}

/** Where a byte of the disk is the same byte of a file, the file's blocks are what is preallocated. Errors: unsupported. */
function checkPreallocation({ node }: BlockBackend, mode: Preallocation): void {
  if (mode === 'off') return;
  const { driver, filtered } = node.skipFilters();
  const isPlain = driver.followsChildSize === true || filtered === undefined;
  if (isPlain && mode === 'metadata')
    throw new BlockError('unsupported', `Unsupported preallocation mode: ${mode}`);
  if (isPlain) return;
  throw new BlockError(
    'unsupported',
    `${driver.name}: resizing with preallocation=${mode} is not supported by livedisk`,
  );
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
