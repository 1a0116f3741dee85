import type { Json } from '../block/driver.js';
import type { Job } from './job.js';
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

/** What events of its end tell of a job on a disk. */
export function eventData(job: Job): {
  device: string;
  len: number;
  offset: number;
  speed: Json;
  type: string;
} {
  const { doneBytes, remainingBytes } = job.progress();
  return {
    device: job.id,
    len: doneBytes + remainingBytes,
    offset: doneBytes,
    speed: job.limit.bytesPerSecond,
    type: job.type,
  };
}

/** A member of query-block-jobs. */
export function blockJobInfo(job: Job, hasExtensions: boolean): { [key: string]: Json } {
  const { error, status } = job;
  const { type, device, len, offset, speed } = eventData(job);
  return {
    ...{ type, device, len, offset },
    busy: job.pace.isBusy && status !== 'concluded',
    // A mirror that is done holds its own disk still until it is finalized, which as QEMU tells it is a pause.
    paused: job.pace.wantsRest || (status === 'pending' && job.wasReady),
    speed,
    'io-status': job.ioStatus,
    ready: job.isReady,
    status,
    'auto-finalize': job.autoFinalize,
    'auto-dismiss': job.autoDismiss,
    ...job.details(),
    ...(error !== undefined && { error }),
    ...(hasExtensions && { 'x-progress': job.progressInfo() }),
  };
}

/** A member of query-jobs. */
export function jobInfo(job: Job, hasExtensions: boolean): { [key: string]: Json } {
  const { id, type, status, error } = job;
  const { doneBytes, remainingBytes } = job.progress();
  return {
    ...{ id, type, status },
    'current-progress': doneBytes,
    'total-progress': doneBytes + remainingBytes,
    ...(error !== undefined && { error }),
    ...(hasExtensions && job.isBlockJob && { 'x-progress': job.progressInfo() }),
  };
}
