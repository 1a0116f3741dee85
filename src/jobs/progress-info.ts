import type { Json } from '../block/driver.js';
import type { DetailedProgress } from './job-progress.js';

/** The member `x-progress` of queries. */
export function progressInfo(progress: DetailedProgress): { [key: string]: Json } {
  const { stage, percent, stages, secondsLeft, outlook } = progress;
  return {
    phase: stage,
    percent,
    done: progress.doneBytes,
    left: progress.remainingBytes,
    data: progress.dataBytes,
    zero: progress.zeroBytes,
    skipped: progress.skippedBytes,
    rate: Math.round(progress.bytesPerSecond),
    'dirty-rate': Math.round(progress.dirtyBytesPerSecond),
    ...(secondsLeft !== undefined && { 'time-left': Math.ceil(secondsLeft) }),
    ...(outlook !== undefined && { outlook }),
    phases: stages.map((one) => ({
      phase: one.stage,
      done: one.doneBytes,
      left: one.leftBytes,
      data: one.dataBytes,
      zero: one.zeroBytes,
      skipped: one.skippedBytes,
    })),
  };
}
