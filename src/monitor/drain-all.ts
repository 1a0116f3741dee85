import type { EngineParts as Engine } from './parts.js';

/** What QEMU does before each transaction, single snapshots and backups too: everything comes to rest, and goes on. */
export async function drainAllOnce({ graph, jobs }: Engine): Promise<void> {
  await graph.drained(graph.nodesInUse(), () => undefined);
  await jobs.untilAwake();
}
