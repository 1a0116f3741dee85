import { filesBelow } from '../block/find-node.js';
import { planCommit } from '../jobs/plans/commit.js';
import { planStream } from '../jobs/plans/stream.js';
import type { Parts } from './parts.js';

export function registerStreamAndCommit(engine: Parts<'command' | 'graph' | 'jobs'>): void {
  const { graph, jobs } = engine;
  engine.command('block-stream', async (args) => {
    const files = await filesBelow(graph, args.device, [args.base]);
    await jobs.start(planStream(graph, args, files));
  });
  engine.command('block-commit', async (args) => {
    const files = await filesBelow(graph, args.device, [args.top, args.base]);
    await jobs.start(planCommit(graph, args, files));
  });
}
