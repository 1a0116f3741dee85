import { BlockError } from '../../base/error.js';
import type { HostClock } from '../../host/host.js';
import type { Job } from '../job.js';

const LOOK_MS = 1;

/**
 * All jobs without a journal come to rest, for another process to go on with them; those that are ending end. The answer
 * lets them go on here. Errors: timeout.
 */
export async function restJobs(
  list: () => readonly Job[],
  clock: HostClock,
  timeoutMs: number,
): Promise<() => void> {
  const startMs = clock.nowMs();
  const held = new Map<Job, () => void>();
  const goOn = (): void => {
    for (const release of held.values()) release();
  };
  for (;;) {
    const jobs = list().filter(({ kept }) => !kept);
    for (const job of jobs) if (!held.has(job)) held.set(job, job.keepStill());
    const busy = jobs.find(({ isStill }) => !isStill);
    if (!busy) return goOn;
    if (clock.nowMs() - startMs > timeoutMs) {
      goOn();
      throw new BlockError('timeout', `job '${busy.id}' of type ${busy.type} does not come to rest`);
    }
    await clock.sleep(LOOK_MS);
  }
}

/** Errors: busy, where one has begun since. */
export function assertStill(jobs: readonly Job[]): void {
  const busy = jobs.find(({ kept, isStill }) => !kept && !isStill);
  if (busy) throw new BlockError('busy', `job '${busy.id}' of type ${busy.type} is not at rest`);
}
