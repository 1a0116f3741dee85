import { assert } from '../../base/assert.js';
import { given } from '../../base/given.js';
import type { JobCourse } from '../job-course.js';
import type { JobDriver } from '../job-driver.js';
import type { JobGroup } from '../job-group.js';
import type { Job } from '../job.js';
import type { EndedJob, PassedJob } from './passed-job.js';

type Course = ReturnType<JobCourse['passed']>;

/** Why no other process can go on with a job without a journal; undefined: one can, once the job is still. */
export function passRefusal(job: Job, driver: JobDriver, ending: PassedJob['ending']): string | undefined {
  const { status, plan } = job;
  if (job.isOver) return undefined;
  if (job.isCancelled || status === 'aborting' || job.failureText !== undefined) return 'is ending';
  if (!plan || (plan.kind !== 'create' && !driver.passed)) return 'is running';
  if (status === 'undefined' || status === 'created') return 'is starting';
  const isAtWork = status !== 'waiting' && status !== 'pending';
  if (isAtWork ? ending !== undefined : !job.pace.isWaiting) return 'is ending';
  if (job.group?.hasJournals === true) return 'ends together with a job that has a journal';
  if (driver.place && !driver.place.isAtItsSource) return 'has a layer between its filter and its disk';
  return undefined;
}

export function passedJob(
  job: Job,
  driver: JobDriver,
  { ending, course, groups }: { ending: PassedJob['ending']; course: Course; groups: JobGroup[] },
): PassedJob {
  const { plan, status, group, limit, wasReady, ioStatus, pace } = job;
  assert(plan, 'a job that goes over has a plan');
  if (group && !groups.includes(group)) groups.push(group);
  return {
    ...{ plan, wasReady, ioStatus, speed: limit.bytesPerSecond, isUserPaused: pace.isUserPaused },
    stage: status === 'waiting' || status === 'pending' ? status : 'works',
    work: driver.passed?.() ?? { data: {}, parts: {} },
    ...given({
      ending,
      course,
      filterName: driver.place?.filter.name,
      group: group && groups.indexOf(group),
    }),
  };
}

export function endedJob(job: Job, driver: JobDriver, course: Course): EndedJob {
  const { id, type, autoFinalize, autoDismiss, limit, wasReady, ioStatus, end = 'failed', error } = job;
  return {
    ...{ id, type, autoFinalize, autoDismiss, wasReady, ioStatus, end },
    speed: String(limit.bytesPerSecond),
    progress: { ...driver.progress() },
    details: driver.details?.() ?? {},
    moreProgress: driver.moreProgress?.() ?? {},
    ...given({ error, course, heldNode: driver.heldNode?.name }),
  };
}
