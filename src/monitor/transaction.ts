import { BlockError } from '../base/error.js';
import type { TransactionAction } from '../schema/commands.js';
import type { Job } from '../jobs/job.js';
import { BITMAP_ACTIONS } from './bitmaps.js';
import type { Engine } from './engine.js';
import { blockdevBackup, driveBackup } from './mirror-backup.js';
import { type DoneAction, snapshot, snapshotSync } from './snapshot.js';

export function registerTransaction(engine: Engine): void {
  engine.command('transaction', ({ actions }) => runAll(engine, actions));
}

/** All actions at one moment of the guests' time, or none. */
async function runAll(engine: Engine, actions: readonly TransactionAction[]): Promise<void> {
  const { graph } = engine;
  await graph.drained([...graph.nodes.values()], async () => {
    const done: DoneAction[] = [];
    try {
      for (const action of actions) done.push(await runOne(engine, action));
    } catch (error) {
      for (const action of done.reverse()) await action.undo();
      throw error;
    }
    for (const action of done) await action.settle?.();
  });
}

async function runOne(engine: Engine, action: TransactionAction): Promise<DoneAction> {
  switch (action.type) {
    case 'abort':
      throw new BlockError('cancelled', 'Transaction aborted using Abort action');
    case 'blockdev-snapshot-sync':
      return snapshotSync(engine, action.data);
    case 'blockdev-snapshot':
      return snapshot(engine, action.data);
    case 'blockdev-backup':
      return undoable(await blockdevBackup(engine, action.data));
    case 'drive-backup':
      return undoable(await driveBackup(engine, action.data));
    case 'block-dirty-bitmap-add':
      return BITMAP_ACTIONS[action.type](engine, action.data);
    default:
      return BITMAP_ACTIONS[action.type](engine, action.data);
  }
}

function undoable(job: Job): DoneAction {
  return { undo: () => job.cancelNow() };
}
