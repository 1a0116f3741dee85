import type { FailedPieces } from '../failed-pieces.js';
import type { Tally } from '../job-progress.js';

/** How far a job is that goes through a disk. A type alias: it is JSON. */
export type PassedReach = { offset: number; tally: Tally };

/** All before `offset` was begun, and nothing is in flight: what has failed is done again, and counted then. */
export function passedReach(
  offset: number,
  failed: FailedPieces,
  { zeroBytes, skippedBytes }: Tally,
): PassedReach {
  const reached = failed.reached(offset);
  const skipped = Math.min(skippedBytes, reached);
  return {
    offset: reached,
    tally: { skippedBytes: skipped, zeroBytes: Math.min(zeroBytes, reached - skipped) },
  };
}
