import type { Parts } from './parts.js';

/**
 * What QEMU does before each transaction, single snapshots and backups too: everything comes to rest, and goes on. `check`
 * looks at the arguments; see Graph.drainedUnless.
 */
export async function drainAllOnce(
  { graph, jobs }: Parts<'graph' | 'jobs'>,
  check: () => void,
): Promise<void> {
  await graph.drainedUnless(check, graph.nodesInUse(), () => undefined);
  await jobs.untilAwake();
}
