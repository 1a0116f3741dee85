import type { Parts } from './parts.js';

/** What QEMU does before each transaction, single snapshots and backups too: everything comes to rest, and goes on. */
export async function drainAllOnce({ graph, jobs }: Parts<'graph' | 'jobs'>): Promise<void> {
  await graph.drained(graph.nodesInUse(), () => undefined);
  await jobs.untilAwake();
}
