import { given } from '../base/given.js';
import { idIn, JobJournal } from '../jobs/persisted/job-journal.js';
import type { Parts } from './parts.js';

/** Jobs that are gone on with after they were cut off, and how jobs have ended. */
export function registerPersistedJobs(engine: Parts<'command' | 'graph' | 'jobs'>): void {
  const { graph, jobs } = engine;
  engine.command('x-job-resume', async (args) => {
    const ifChanged = args['if-changed'] ?? 'refuse';
    return jobs.resume({ journal: args.journal, ifChanged, ...given({ jobId: args['job-id'] }) });
  });
  engine.command('x-job-history', async ({ journal }) => {
    if (journal === undefined) return jobs.history();
    const { plan, state, error, leftBytes } = await JobJournal.look(graph.host, journal);
    return [
      given({
        id: idIn(plan) ?? '',
        type: plan['kind'] === 'mirror' ? 'mirror' : 'commit',
        // All that it was for is done when guests have gone over to the target.
        state: state === 'running' ? 'unfinished' : state === 'failed' ? 'failed' : 'completed',
        error,
        left: leftBytes,
      }),
    ];
  });
}
