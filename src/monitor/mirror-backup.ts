import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import type { BackupArguments, MirrorArguments } from '../jobs/arguments.js';
import type { Job } from '../jobs/job.js';
import { checkMirrorArguments } from '../jobs/mirror-plan.js';
import type { CommandArguments } from '../schema/commands.js';
import { createOverlayFile } from './blockdev.js';
import { drainAllOnce } from './drain-all.js';
import { checkNotBlocked, findDevice, findRoot } from './find-node.js';
import { commonArguments } from './stream-commit.js';
import type { EngineParts as Engine } from './parts.js';

type DriveMirror = CommandArguments<'drive-mirror'>;
type BlockdevMirror = CommandArguments<'blockdev-mirror'>;
type DriveBackup = CommandArguments<'drive-backup'>;
type BlockdevBackup = CommandArguments<'blockdev-backup'>;

export function registerMirrorAndBackup(engine: Engine): void {
  engine.command('drive-mirror', (args) => driveMirror(engine, args));
  engine.command('blockdev-mirror', (args) => blockdevMirror(engine, args));
  const start: Start<Job> = (args) => engine.jobs.startBackup(args);
  engine.command('drive-backup', async (args) => {
    await drainAllOnce(engine);
    await driveBackup(engine, args, start);
  });
  engine.command('blockdev-backup', async (args) => {
    await drainAllOnce(engine);
    await blockdevBackup(engine, args, start);
  });
}

// ---- mirror

/** What both forms of mirror hand to the job. Errors: invalid. */
function mirrorArguments(
  source: Node,
  args: DriveMirror | BlockdevMirror,
): Omit<MirrorArguments, 'target' | 'targetIsNew'> {
  const { sync } = args;
  if (sync === 'incremental' || sync === 'bitmap')
    throw new BlockError('invalid', `Sync mode '${sync}' not supported`);
  return {
    ...commonArguments(args),
    device: source,
    sync: sync === 'top' && !source.backingNode() ? 'full' : sync,
    ...given({ granularity: args.granularity, bufSize: args['buf-size'], copyMode: args['copy-mode'] }),
  };
}

/** The source, or what only filters are between it and: whose users see the same in the mirror. */
function nodeToReplace(engine: Engine, source: Node, name: string | undefined): { replaces?: Node } {
  if (name === undefined) return {};
  const node = engine.graph.node(name);
  checkNotBlocked(node);
  if (!isShownBy(source, node)) {
    const text = `Cannot replace '${name}' by a node mirrored from '${source.name}', because it cannot be guaranteed`;
    throw new BlockError(
      'invalid',
      `${text} that doing so would not lead to an abrupt change of visible data`,
    );
  }
  if (node.lengthBytes !== source.lengthBytes)
    throw new BlockError('invalid', 'cannot replace image with a mirror image of different size');
  return { replaces: node };
}

function isShownBy(source: Node, node: Node): boolean {
  for (let at: Node | undefined = source; at; at = at.isFilter ? at.filtered?.node : undefined)
    if (at === node) return true;
  return false;
}

async function blockdevMirror(engine: Engine, args: BlockdevMirror): Promise<void> {
  const source = findRoot(engine.graph, args.device);
  const target = findDevice(engine.graph, args.target);
  checkMirrorArguments(given({ granularity: args.granularity, bufSize: args['buf-size'] }));
  source.assertNotBlocked();
  checkNotBlocked(target);
  const replaces = nodeToReplace(engine, source, args.replaces);
  const common = mirrorArguments(source, args);
  await engine.jobs.startMirror({ ...common, ...replaces, target, targetIsNew: false });
}

async function driveMirror(engine: Engine, args: DriveMirror): Promise<void> {
  const { graph, opener } = engine;
  const source = findRoot(graph, args.device);
  source.assertNotBlocked();
  if (args.replaces !== undefined && args['node-name'] === undefined)
    throw new BlockError('invalid', 'a node-name must be provided when replacing a named node of the graph');
  const replaces = nodeToReplace(engine, source, args.replaces);
  const isNew = args.mode !== 'existing';
  const format = args.format ?? (isNew ? source.skipFilters().driver.name : undefined);
  const { sync } = args;
  const below = sync === 'full' ? undefined : sync === 'none' ? source : source.backingNode();
  if (isNew) {
    const layer = below?.skipImplicitFilters();
    await createOverlayFile(engine, args.target, format ?? 'raw', source.lengthBytes, layer);
  }
  const name = args['node-name'];
  // The mirror decides on its backing file.
  const context = { readOnly: false, discard: source.modes.discard, noBacking: true };
  const target = await opener.openImage(args.target, format, context, given({ 'node-name': name }));
  try {
    await engine.jobs.startMirror({
      ...mirrorArguments(source, args),
      ...replaces,
      target,
      targetIsNew: isNew && (await readsAsZeroes(target)),
      targetBacking: isNew ? (below ? 'source-chain' : 'leave') : 'open',
      ...given({ unmap: args.unmap }),
    });
  } catch (error) {
    await graph.release([target]);
    throw error;
  }
}

/** A file just made does; a device that was there before (an NBD export) holds what it held. */
async function readsAsZeroes(target: Node): Promise<boolean> {
  const { lengthBytes } = target;
  if (lengthBytes === 0) return true;
  const status = await target.statusThroughChain(0, lengthBytes);
  return status.zero && status.lengthBytes === lengthBytes;
}

// ---- backup

function backupArguments(
  source: Node,
  args: DriveBackup | BlockdevBackup,
): Omit<BackupArguments, 'target' | 'sync'> {
  return {
    ...commonArguments(args),
    device: source,
    ...given({ bitmap: findBitmap(source, args.bitmap), bitmapMode: args['bitmap-mode'] }),
  };
}

function findBitmap(source: Node, name: string | undefined): DirtyBitmap | undefined {
  if (name === undefined) return undefined;
  const bitmap = source.findBitmap(name);
  if (!bitmap) throw new BlockError('not-found', `Bitmap '${name}' could not be found`);
  return bitmap;
}

type Start<R> = (args: BackupArguments) => Promise<R>;

/** `start`: of the job manager, startBackup or prepareBackup. */
export async function blockdevBackup<R>(engine: Engine, args: BlockdevBackup, start: Start<R>): Promise<R> {
  const source = findDevice(engine.graph, args.device);
  const target = findDevice(engine.graph, args.target);
  return start({ ...backupArguments(source, args), sync: syncOf(source, args), target });
}

/** Without a backing file the top is everything. */
function syncOf(source: Node, { sync }: DriveBackup | BlockdevBackup): BackupArguments['sync'] {
  return sync === 'top' && !source.backingNode() ? 'full' : sync;
}

export async function driveBackup<R>(engine: Engine, args: DriveBackup, start: Start<R>): Promise<R> {
  const { graph, opener } = engine;
  const source = findDevice(graph, args.device);
  source.assertNotBlocked();
  const isNew = args.mode !== 'existing';
  const format = args.format ?? (isNew ? source.skipFilters().driver.name : undefined);
  const sync = syncOf(source, args);
  const below = sync === 'top' ? source.backingNode() : sync === 'none' ? source : undefined;
  if (isNew) {
    const layer = below?.skipImplicitFilters();
    await createOverlayFile(engine, args.target, format ?? 'raw', source.lengthBytes, layer);
  }
  const showsSource = sync === 'none' && isNew;
  const context = { readOnly: false, discard: source.modes.discard, noBacking: showsSource };
  const target = await opener.openImage(args.target, format, context);
  try {
    if (showsSource)
      await graph.transaction((transaction) => void transaction.attach(target, 'backing', source));
    return await start({ ...backupArguments(source, args), sync, target });
  } catch (error) {
    await graph.release([target]);
    throw error;
  }
}
