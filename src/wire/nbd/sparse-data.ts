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
 * The zeroes in a read's data as holes, in pieces of HOLE_BYTES; undefined when it is all data. Data costs a look at a
 * few words a piece.
 */
export function sparseRuns(data: Buffer): Run[] | undefined {
  let runs: Run[] | undefined;
  let begin = 0;
  let wasHole = false;
  for (let at = 0; at < data.length; at += HOLE_BYTES) {
    const isHole = isZero(data.subarray(at, at + HOLE_BYTES));
    if (isHole !== wasHole && at > begin) {
      (runs ??= []).push({ at: begin, lengthBytes: at - begin, isHole: wasHole });
      begin = at;
    }
    wasHole = isHole;
  }
  if (!runs && !wasHole) return undefined;
  (runs ??= []).push({ at: begin, lengthBytes: data.length - begin, isHole: wasHole });
  return runs;
}
