import { planCommit } from '../jobs/plans/commit.js';
import { planStream } from '../jobs/plans/stream.js';
import type { EngineParts as Engine } from './parts.js';

export function registerStreamAndCommit(engine: Engine): void {
  const { graph, jobs } = engine;
  engine.command('block-stream', async (args) => {
    await jobs.start(planStream(graph, args));
  });
  engine.command('block-commit', async (args) => {
    await jobs.start(planCommit(graph, args));
  });
}
