import { planCommit } from '../jobs/plans/commit.js';
import { planStream } from '../jobs/plans/stream.js';
import type { Parts } from './parts.js';

export function registerStreamAndCommit(engine: Parts<'command' | 'graph' | 'jobs'>): void {
  const { graph, jobs } = engine;
  engine.command('block-stream', async (args) => {
    await jobs.start(planStream(graph, args));
  });
  engine.command('block-commit', async (args) => {
    await jobs.start(planCommit(graph, args));
  });
}
