import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import { findDevice, findRoot } from '../block/find-node.js';
import type { Node } from '../block/node.js';
import { readsZeroWhenNew } from '../block/zero-target.js';
import { type BackupPlan, checkBitmap, planBackup } from '../jobs/plans/backup.js';
import { planMirror } from '../jobs/plans/mirror.js';
import { commonPlan } from '../jobs/plans/plan.js';
import type { CommandArguments } from '../schema/commands.js';
import { createOverlayFile } from './blockdev.js';
import { drainAllOnce } from './drain-all.js';
import type { Parts } from './parts.js';

type DriveMirror = CommandArguments<'drive-mirror'>;
type DriveBackup = CommandArguments<'drive-backup'>;

export function registerMirrorAndBackup(
  engine: Parts<'command' | 'graph' | 'jobs' | 'opener' | 'print'>,
): void {
  const { graph, jobs } = engine;
  engine.command('drive-mirror', (args) => driveMirror(engine, args));
  engine.command('blockdev-mirror', async (args) => {
    await jobs.start(planMirror(graph, args));
  });
  engine.command('drive-backup', async (args) => {
    await drainAllOnce(engine, () => checkDriveBackup(engine, args));
    await driveBackup(engine, args, (plan) => jobs.start(plan));
  });
  engine.command('blockdev-backup', async (args) => {
    await drainAllOnce(engine, () => checkBackup(engine, args));
    await jobs.start(planBackup(graph, args));
  });
}

async function driveMirror(
  engine: Parts<'graph' | 'jobs' | 'opener' | 'print'>,
  args: DriveMirror,
): Promise<void> {
  const { graph, opener, jobs } = engine;
  const { format: asked, mode, unmap, 'node-name': name, target: filename, ...request } = args;
  const source = findRoot(graph, args.device);
  source.assertNotBlocked();
  if (args.replaces !== undefined && name === undefined)
    throw new BlockError('invalid', 'a node-name must be provided when replacing a named node of the graph');
  const isNew = mode !== 'existing';
  const format = asked ?? (isNew ? source.skipFilters().driver.name : undefined);
  const { sync } = args;
  const below = sync === 'full' ? undefined : sync === 'none' ? source : source.backingNode();
  const layer = below?.skipImplicitFilters();
  const shown =
    isNew && (await createOverlayFile(engine, filename, format ?? 'raw', source.lengthBytes, layer, source));
  // The mirror decides on its backing file.
  const context = { readOnly: false, discard: source.modes.discard, noBacking: true };
  const target = await opener.openImage(filename, format, context, given({ 'node-name': name }));
  if (shown !== false) target.automaticBacking = shown;
  try {
    const plan = planMirror(
      graph,
      { ...request, target: target.name },
      {
        isNew: isNew && (await readsAsZeroes(target)),
        backing: isNew ? (below ? 'source-chain' : 'leave') : 'open',
        ...given({ unmap }),
      },
    );
    await jobs.start(plan);
  } catch (error) {
    await graph.release([target]);
    throw error;
  }
}

/** A file just made does, though its status may say that its first block is there; a device may hold what it held. */
async function readsAsZeroes(target: Node): Promise<boolean> {
  const { lengthBytes } = target;
  if (lengthBytes === 0 || readsZeroWhenNew(target)) return true;
  const status = await target.statusThroughChain(0, lengthBytes);
  return status.zero && status.lengthBytes === lengthBytes;
}

/** Errors: those of arguments that are wrong whatever else goes on. */
export function checkBackup(
  { graph, jobs }: Parts<'graph' | 'jobs'>,
  args: CommandArguments<'blockdev-backup'>,
): void {
  jobs.check(planBackup(graph, args));
}

/** The same; what is wrong with the file shows when it is made. */
export function checkDriveBackup({ graph, jobs }: Parts<'graph' | 'jobs'>, args: DriveBackup): void {
  const source = findDevice(graph, args.device);
  source.assertNotBlocked();
  checkBitmap(source, args);
  jobs.check({ kind: 'backup', ...commonPlan(args, source) });
}

/** `start`: what the job manager is to do with the plan. */
export async function driveBackup<R>(
  engine: Parts<'graph' | 'opener' | 'print'>,
  args: DriveBackup,
  start: (plan: BackupPlan) => Promise<R>,
): Promise<R> {
  const { graph, opener } = engine;
  const { format: asked, mode, target: filename, ...request } = args;
  const source = findDevice(graph, args.device);
  source.assertNotBlocked();
  const isNew = mode !== 'existing';
  const format = asked ?? (isNew ? source.skipFilters().driver.name : undefined);
  // Without a backing file the top is everything.
  const sync = args.sync === 'top' && !source.backingNode() ? 'full' : args.sync;
  const below = sync === 'top' ? source.backingNode() : sync === 'none' ? source : undefined;
  const layer = below?.skipImplicitFilters();
  const shown =
    isNew && (await createOverlayFile(engine, filename, format ?? 'raw', source.lengthBytes, layer, source));
  // Whatever backing file an image names that was there: what is not copied yet is the disk's.
  const showsSource = sync === 'none';
  const context = { readOnly: false, discard: source.modes.discard, noBacking: showsSource };
  const target = await opener.openImage(filename, format, context);
  try {
    if (showsSource) {
      assertTakesBacking(target);
      if (shown !== false) target.automaticBacking = shown;
      await graph.transaction((transaction) => void transaction.attach(target, 'backing', source));
    }
    return await start(planBackup(graph, { ...request, sync, target: target.name }));
  } catch (error) {
    await graph.release([target]);
    throw error;
  }
}

function assertTakesBacking({ driver, name }: Node): void {
  if (driver.options['backing']) return;
  throw new BlockError('invalid', `Driver '${driver.name}' of node '${name}' does not support backing files`);
}
