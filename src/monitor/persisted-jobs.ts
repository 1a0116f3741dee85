import { given } from '../base/given.js';
import { JobJournal } from '../jobs/persisted/job-journal.js';
import { idIn, type JournalState } from '../jobs/persisted/journal-head.js';
import type { JsonObject } from '../schema/types.js';
import type { Parts } from './parts.js';

/** Jobs that are gone on with after they were cut off, and how jobs have ended. */
export function registerPersistedJobs(engine: Parts<'command' | 'graph' | 'jobs'>): void {
  const { graph, jobs } = engine;
  engine.command('x-job-resume', async (args) => {
    const ifChanged = args['if-changed'] ?? 'refuse';
    const asked = given({ jobId: args['job-id'], bitmap: args.bitmap });
    return jobs.resume({ journal: args.journal, ifChanged, ...asked });
  });
  engine.command('x-job-history', async ({ journal }) => {
    if (journal === undefined) return jobs.history();
    const { plan, state, error, leftBytes } = await JobJournal.look(graph.host, journal);
    return [
      given({
        id: idIn(plan) ?? '',
        type: typeof plan['kind'] === 'string' && plan['kind'] !== 'active-commit' ? plan['kind'] : 'commit',
        state: stateOf(plan, state),
        error,
        left: leftBytes,
      }),
    ];
  });
}

/** All that a mirror was for is done when guests have gone over to the target; others still change headers. */
function stateOf({ kind }: JsonObject, state: JournalState): 'completed' | 'failed' | 'unfinished' {
  if (state === 'ending') return kind === 'commit' || kind === 'stream' ? 'unfinished' : 'completed';
  return state === 'running' ? 'unfinished' : state;
}
