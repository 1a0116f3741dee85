import { isZero } from '../../base/zero.js';
import { KiB } from '../../base/limits.js';

/** Shorter stretches of zeroes travel as data: a chunk of its own for each would cost the reader more. */
export const HOLE_BYTES = 64 * KiB;

/** A stretch of a read's data. */
export interface Run {
  readonly at: number;
  readonly lengthBytes: number;
  readonly isHole: boolean;
}

/**
 * The zeroes in a read's data, which begins at `start` of `buffer`, as holes, in pieces of HOLE_BYTES; undefined when it
 * is all data. Data costs a look at a byte or a few of a piece.
 */
export function sparseRuns(buffer: Buffer, start: number, lengthBytes: number): Run[] | undefined {
  let runs: Run[] | undefined;
  let begin = 0;
  let wasHole = false;
  for (let at = 0; at < lengthBytes; at += HOLE_BYTES) {
    const from = start + at;
    const end = start + Math.min(at + HOLE_BYTES, lengthBytes);
    const isHole = buffer[from] === 0 && isZero(buffer.subarray(from, end));
    if (isHole !== wasHole && at > begin) {
      (runs ??= []).push({ at: begin, lengthBytes: at - begin, isHole: wasHole });
      begin = at;
    }
    wasHole = isHole;
  }
  if (!runs && !wasHole) return undefined;
  (runs ??= []).push({ at: begin, lengthBytes: lengthBytes - begin, isHole: wasHole });
  return runs;
}
