import { BlockError } from '../base/error.js';
import type { TransactionAction } from '../schema/commands.js';
import type { BackupJob } from '../jobs/backup.js';
import { type BackupPlan, planBackup } from '../jobs/plans/backup.js';
import { BITMAP_ACTIONS } from './bitmaps.js';
import { drainAllOnce } from './drain-all.js';
import { driveBackup } from './mirror-backup.js';
import { type DoneAction, snapshot, snapshotSync } from './snapshot.js';
import type { EngineParts as Engine } from './parts.js';

export function registerTransaction(engine: Engine): void {
  engine.command('transaction', ({ actions }) => runAll(engine, actions));
}

/** Actions for which QEMU opens a drained section of their own, after the one of the whole. */
const DRAINING: ReadonlySet<TransactionAction['type']> = new Set([
  'blockdev-snapshot',
  'blockdev-snapshot-sync',
  'blockdev-backup',
  'drive-backup',
]);

/** All actions at one moment of the guests' time, or none. */
async function runAll(engine: Engine, actions: readonly TransactionAction[]): Promise<void> {
  const { graph } = engine;
  if (actions.some(({ type }) => DRAINING.has(type))) await drainAllOnce(engine);
  await graph.drained(graph.nodesInUse(), async () => {
    const done: DoneAction[] = [];
    try {
      for (const action of actions) done.push(await runOne(engine, action));
    } catch (error) {
      // What cannot be taken back stays as it is, the rest must not.
      for (const action of done.reverse()) await action.undo().catch(() => undefined);
      throw error;
    }
    for (const action of done) await action.settle?.();
  });
}

async function runOne(engine: Engine, action: TransactionAction): Promise<DoneAction> {
  const prepare = (plan: BackupPlan): Promise<BackupJob> => engine.jobs.prepareBackup(plan);
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
    case 'block-dirty-bitmap-add':
      return BITMAP_ACTIONS[action.type](engine, action.data);
    default:
      return BITMAP_ACTIONS[action.type](engine, action.data);
  }
}

/** Its point in time is that of the transaction; it works only when no action can fail any more. */
function startedLast(backup: BackupJob): DoneAction {
  return { undo: () => backup.withdraw(), settle: async () => backup.begin() };
}
