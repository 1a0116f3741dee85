import fs from 'node:fs';
import { errnoError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import { nodeError } from './call-error.js';
import { MOST_PIECES } from './memory-pieces.js';

/** Most bytes of one call (Linux stops at 2 GiB less a page). */
const MAX_CALL_BYTES = 1024 * MiB;

export interface Transfer {
  readonly fd: number;
  /** For errors. */
  readonly path: string;
  readonly what: 'read' | 'write';
  readonly position: number;
  readonly pieces: readonly Uint8Array[];
  readonly lengthBytes: number;
  /** A short read is the end of the file: of O_DIRECT, where going on from there would not be aligned. */
  readonly endsShort: boolean;
}

/** Reads into all of the pieces, zeroes beyond the end of the file, or writes all of them, in libuv's pool. */
export function transferPieces(transfer: Transfer): Promise<void> {
  const { fd, path, what, position, lengthBytes } = transfer;
  const call = what === 'read' ? fs.readv : fs.writev;
  return new Promise((resolve, reject) => {
    let done = 0;
    let rest = transfer.pieces;
    const next = (): void => call(fd, oneCall(rest), position + done, step);
    const step = (error: Error | null, bytes: number): void => {
      if (error) {
        reject(nodeError(error, undefined, { path, offset: position + done }));
        return;
      }
      done += bytes;
      rest = afterBytes(rest, bytes);
      const ended = bytes === 0 || (transfer.endsShort && what === 'read');
      if (done < lengthBytes && !ended) next();
      else if (done < lengthBytes && what === 'write')
        reject(errnoError('EIO', undefined, { path, offset: position + done }));
      else {
        for (const piece of rest) piece.fill(0);
        resolve();
      }
    };
    next();
  });
}

/** As much as one call takes. */
function oneCall(pieces: readonly Uint8Array[]): readonly Uint8Array[] {
  let bytes = 0;
  let count = 0;
  for (const { length } of pieces) {
    if (count === MOST_PIECES || bytes + length > MAX_CALL_BYTES) break;
    bytes += length;
    count++;
  }
  const first = pieces[0];
  if (count === 0 && first) return [first.subarray(0, MAX_CALL_BYTES)];
  return count === pieces.length ? pieces : pieces.slice(0, count);
}

/** What is left of them behind the first `bytes`. */
export function afterBytes(pieces: readonly Uint8Array[], bytes: number): readonly Uint8Array[] {
  let left = bytes;
  for (const [index, piece] of pieces.entries()) {
    if (left < piece.length) return [piece.subarray(left), ...pieces.slice(index + 1)];
    left -= piece.length;
  }
  return [];
}
