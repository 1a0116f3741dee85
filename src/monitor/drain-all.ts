import type { Parts } from './parts.js';

/**
 * What QEMU does before each transaction, single snapshots and backups too: everything comes to rest, and goes on. A disk whose
 * requests hang holds the others up for a moment, not for ever. `check` looks at the arguments: what it throws is told then.
 */
export async function drainAllOnce(
  { graph, jobs }: Parts<'graph' | 'jobs'>,
  check: () => void,
): Promise<void> {
  await graph.drainedOrOnly(
    () => [],
    check,
    () => undefined,
  );
  await jobs.untilAwake();
}
