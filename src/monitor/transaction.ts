import { eachInTurn } from '../base/async.js';
import { BlockError } from '../base/error.js';
import type { TransactionAction } from '../schema/commands.js';
import type { BackupJob } from '../jobs/backup.js';
import { type BackupPlan, planBackup } from '../jobs/plans/backup.js';
import { nodeNamed } from '../block/find-node.js';
import { Node } from '../block/node.js';
import { JobGroup } from '../jobs/job-group.js';
import { addOne, BITMAP_ACTIONS, checkBitmapAction } from './bitmaps.js';
import { drainAllOnce } from './drain-all.js';
import { takeInternal } from './internal-snapshots.js';
import { checkBackup, checkDriveBackup, driveBackup } from './mirror-backup.js';
import {
  checkSnapshot,
  checkSnapshotSync,
  type DoneAction,
  snapshot,
  snapshotSync,
  type WhenReadOnly,
} from './snapshot.js';
import type { Parts } from './parts.js';

type Transactions = Parts<'graph' | 'host' | 'jobs' | 'opener' | 'print'>;

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
  actions.forEach(refuseDryRun);
  const check = (): void => checkActions(engine, actions, group);
  if (actions.some(({ type }) => DRAINING.has(type))) await drainAllOnce(engine, check);
  const needed = (): Node[] => actions.flatMap((action) => nodesOf(engine, action));
  await graph.drainedOrOnly(needed, check, async () => {
    const done: DoneAction[] = [];
    const hasBitmaps = actions.some(({ type }) => type.startsWith('block-dirty-bitmap-'));
    const whenReadOnly = hasBitmaps ? 'at the end' : 'at once';
    try {
      for (const action of actions) done.push(await runOne(engine, action, group, whenReadOnly));
    } catch (error) {
      // What cannot be taken back stays as it is, the rest must not.
      for (const action of done.reverse()) await action.undo().catch(() => undefined);
      throw error;
    }
    // Nothing can be taken back any more: what one of them fails with keeps no other from its end.
    await eachInTurn(done.map((action) => () => action.settle?.()));
  });
}

/** Errors: of the first action that fails whatever those before it do. */
function checkActions(
  engine: Transactions,
  actions: readonly TransactionAction[],
  group: JobGroup | undefined,
): void {
  const touched = new Set<Node | string>();
  for (const action of actions) {
    checkGroup(action, group);
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
    named.push(nodeNamed(graph, word) ?? word);
  }
  if (type.endsWith('-backup')) named.push(`job ${String(words['job-id'] ?? words['device'])}`);
  return named;
}

/** Those that an action names. */
function nodesOf(engine: Parts<'graph'>, action: TransactionAction): Node[] {
  const named = namedBy(engine, action);
  if (action.type === 'block-dirty-bitmap-merge')
    for (const source of action.data.bitmaps)
      if (typeof source !== 'string')
        named.push(...namedBy(engine, { ...action, data: { ...action.data, node: source.node } }));
  return named.filter((one) => one instanceof Node);
}

function checkOne(engine: Transactions, action: TransactionAction): void {
  switch (action.type) {
    case 'abort':
    case 'block-dirty-bitmap-merge':
    case 'blockdev-snapshot-internal-sync':
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

/** One of several actions is not told of alone. Errors: invalid. */
function refuseDryRun({ data }: TransactionAction): void {
  if ('x-dry-run' in data && data['x-dry-run'] === true)
    throw new BlockError('invalid', "'x-dry-run' cannot be used for an action of a transaction");
}

function checkGroup({ type }: TransactionAction, group: JobGroup | undefined): void {
  if (!group || JOBS_AND_ABORT.has(type)) return;
  const text = `Action '${type}' does not support Transaction property completion-mode = grouped`;
  throw new BlockError('invalid', text);
}

async function runOne(
  engine: Transactions,
  action: TransactionAction,
  group: JobGroup | undefined,
  whenReadOnly: WhenReadOnly,
): Promise<DoneAction> {
  const prepare = (plan: BackupPlan): Promise<BackupJob> => engine.jobs.prepareBackup(plan, group);
  checkGroup(action, group);
  switch (action.type) {
    case 'abort':
      throw new BlockError('cancelled', 'Transaction aborted using Abort action');
    case 'blockdev-snapshot-sync':
      return snapshotSync(engine, action.data, whenReadOnly);
    case 'blockdev-snapshot':
      return snapshot(engine, action.data, whenReadOnly);
    case 'blockdev-backup':
      return startedLast(await prepare(planBackup(engine.graph, action.data)));
    case 'drive-backup':
      return startedLast(await driveBackup(engine, action.data, prepare));
    case 'blockdev-snapshot-internal-sync':
      return takeInternal(engine, action.data);
    case 'block-dirty-bitmap-add':
      return addOne(engine, action.data);
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
