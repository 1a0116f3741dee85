import { BlockError } from '../base/error.js';
import type { TransactionAction } from '../schema/commands.js';
import type { BackupJob } from '../jobs/backup.js';
import { type BackupPlan, planBackup } from '../jobs/plans/backup.js';
import type { Node } from '../block/node.js';
import { BITMAP_ACTIONS, checkBitmapAction } from './bitmaps.js';
import { drainAllOnce } from './drain-all.js';
import { checkBackup, checkDriveBackup, driveBackup } from './mirror-backup.js';
import { checkSnapshot, checkSnapshotSync, type DoneAction, snapshot, snapshotSync } from './snapshot.js';
import type { Parts } from './parts.js';

type Transactions = Parts<'graph' | 'jobs' | 'opener' | 'print'>;

export function registerTransaction(engine: Transactions & Parts<'command'>): void {
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
async function runAll(engine: Transactions, actions: readonly TransactionAction[]): Promise<void> {
  const { graph } = engine;
  const check = (): void => checkActions(engine, actions);
  if (actions.some(({ type }) => DRAINING.has(type))) await drainAllOnce(engine, check);
  await graph.drainedUnless(check, graph.nodesInUse(), async () => {
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

/** Errors: of the first action that fails whatever those before it do. */
function checkActions(engine: Transactions, actions: readonly TransactionAction[]): void {
  const touched = new Set<Node | string>();
  for (const action of actions) {
    const named = namedBy(engine, action);
    if (named.every((one) => !touched.has(one))) checkOne(engine, action);
    for (const one of named) touched.add(one);
  }
}

/** Nodes that an action names, those that it makes, and its job. */
function namedBy({ graph }: Parts<'graph'>, { type, data }: TransactionAction): Array<Node | string> {
  const words: Readonly<Record<string, unknown>> = { ...data };
  const named: Array<Node | string> = [];
  for (const key of [
    'device',
    'node',
    'node-name',
    'target',
    'overlay',
    'snapshot-node-name',
    'filter-node-name',
  ]) {
    const word = words[key];
    if (typeof word !== 'string') continue;
    named.push(graph.drives.get(word)?.root?.node ?? graph.nodes.get(word) ?? word);
  }
  if (type.endsWith('-backup')) named.push(`job ${String(words['job-id'] ?? words['device'])}`);
  return named;
}

function checkOne(engine: Transactions, action: TransactionAction): void {
  switch (action.type) {
    case 'abort':
      return;
    case 'blockdev-snapshot-sync':
      return void checkSnapshotSync(engine, action.data);
    case 'blockdev-snapshot':
      return checkSnapshot(engine, action.data);
    case 'blockdev-backup':
      return checkBackup(engine, action.data);
    case 'drive-backup':
      return checkDriveBackup(engine, action.data);
    default:
      return checkBitmapAction(engine, action.type, action.data);
  }
}

async function runOne(engine: Transactions, action: TransactionAction): Promise<DoneAction> {
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
