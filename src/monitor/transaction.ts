import { BlockError } from '../base/error.js';
import type { TransactionAction } from '../schema/commands.js';
import type { BackupJob } from '../jobs/backup.js';
import { type BackupPlan, planBackup } from '../jobs/plans/backup.js';
import { JobGroup } from '../jobs/job-group.js';
import { BITMAP_ACTIONS } from './bitmaps.js';
import { drainAllOnce } from './drain-all.js';
import { refuseSnapshot } from './internal-snapshots.js';
import { driveBackup } from './mirror-backup.js';
import { type DoneAction, snapshot, snapshotSync } from './snapshot.js';
import type { Parts } from './parts.js';

type Transactions = Parts<'graph' | 'jobs' | 'opener' | 'print'>;

export function registerTransaction(engine: Transactions & Parts<'command'>): void {
  engine.command('transaction', ({ actions, properties }) => {
    const group = properties?.['completion-mode'] === 'grouped' ? new JobGroup() : undefined;
    return runAll(engine, actions, group);
  });
}

/** Actions for which QEMU opens a drained section of their own, after the one of the whole. */
const DRAINING: ReadonlySet<TransactionAction['type']> = new Set([
  'blockdev-snapshot',
  'blockdev-snapshot-sync',
  'blockdev-backup',
  'drive-backup',
]);

/** Those that may be in a group: jobs that end well together, or none. */
const JOBS_AND_ABORT: ReadonlySet<TransactionAction['type']> = new Set([
  'abort',
  'blockdev-backup',
  'drive-backup',
]);

/** All actions at one moment of the guests' time, or none. */
async function runAll(
  engine: Transactions,
  actions: readonly TransactionAction[],
  group: JobGroup | undefined,
): Promise<void> {
  const { graph } = engine;
  if (actions.some(({ type }) => DRAINING.has(type))) await drainAllOnce(engine);
  await graph.drained(graph.nodesInUse(), async () => {
    const done: DoneAction[] = [];
    try {
      for (const action of actions) done.push(await runOne(engine, action, group));
    } catch (error) {
      // What cannot be taken back stays as it is, the rest must not.
      for (const action of done.reverse()) await action.undo().catch(() => undefined);
      throw error;
    }
    for (const action of done) await action.settle?.();
  });
}

async function runOne(
  engine: Transactions,
  action: TransactionAction,
  group: JobGroup | undefined,
): Promise<DoneAction> {
  const prepare = (plan: BackupPlan): Promise<BackupJob> => engine.jobs.prepareBackup(plan, group);
  if (group && !JOBS_AND_ABORT.has(action.type)) {
    const text = `Action '${action.type}' does not support Transaction property completion-mode = grouped`;
    throw new BlockError('invalid', text);
  }
  switch (action.type) {
    case 'abort':
      throw new BlockError('cancelled', 'Transaction aborted using Abort action');
    case 'blockdev-snapshot-sync':
      return snapshotSync(engine, action.data);
    case 'blockdev-snapshot':
      return snapshot(engine, action.data);
    case 'blockdev-backup':
      return startedLast(await prepare(planBackup(engine.graph, action.data)));
    case 'drive-backup':
      return startedLast(await driveBackup(engine, action.data, prepare));
    case 'blockdev-snapshot-internal-sync':
      return refuseSnapshot(engine, action.data);
    case 'block-dirty-bitmap-add':
      return BITMAP_ACTIONS[action.type](engine, action.data);
    case 'block-dirty-bitmap-merge':
      return BITMAP_ACTIONS[action.type](engine, action.data);
    default:
      return BITMAP_ACTIONS[action.type](engine, action.data);
  }
}

/** Its point in time is that of the transaction; it works only when no action can fail any more. */
function startedLast(backup: BackupJob): DoneAction {
  return { undo: () => backup.withdraw(), settle: async () => backup.begin() };
}
