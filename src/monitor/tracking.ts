import { missing } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import { findDevice } from '../block/find-node.js';
import type { Node } from '../block/node.js';
import type { CommandArguments, CommandResult } from '../schema/commands.js';
import { addOne, BITMAP_ACTIONS, checkBitmapAction, newDurability } from './bitmaps.js';
import type { Parts } from './parts.js';

type Ensure = CommandArguments<'x-bitmap-ensure'>;
type Tracking = CommandResult<'x-bitmap-ensure'>[number];
type Engine = Parts<'graph' | 'host'>;

interface Disk {
  readonly node: Node;
  readonly id: string | undefined;
}

export function registerTracking(engine: Engine & Parts<'command'>): void {
  engine.command('x-bitmap-ensure', (args) => ensure(engine, args));
}

/**
 * Durable bitmaps of one name on several disks, at one moment of their guests' time: what is missing or of no use is made.
 * Nothing is changed when one of the disks cannot have it; where making one fails, asking again does the rest.
 */
async function ensure(engine: Engine, args: Ensure): Promise<Tracking[]> {
  const disks = args.disks.map(({ node, id }) => ({ node: findDevice(engine.graph, node), id }));
  if (new Set(disks.map(({ node }) => node)).size < disks.length)
    throw new BlockError('invalid', 'A disk is named twice');
  const check = (): void => {
    for (const disk of disks) checkDisk(engine, disk, args);
  };
  const nodes = disks.map(({ node }) => node);
  return engine.graph.drainedUnless(check, nodes, async () => {
    const answers: Tracking[] = [];
    for (const disk of disks) answers.push(await ensureOne(engine, disk, args));
    return answers;
  });
}

/** Errors: those of a disk that cannot have it, or has another bitmap of that name. */
function checkDisk(engine: Engine, { node }: Disk, { name, granularity }: Ensure): void {
  if (!node.isWritable) throw new BlockError('permission', `Block node is read-only: '${node.label}'`);
  const bitmap = node.findBitmap(name);
  if (!bitmap) {
    const args = { node: node.name, name, persistent: true, 'x-durable': true, ...given({ granularity }) };
    return checkBitmapAction(engine, 'block-dirty-bitmap-add', args);
  }
  const refused = (text: string): BlockError =>
    new BlockError('invalid', `Bitmap '${name}' of '${node.label}' ${text}`);
  if (!bitmap.persistent) throw refused('is not persistent');
  if (bitmap.inconsistent) return;
  if (!bitmap.isRecording) throw refused('does not record');
  if (bitmap.readOnly) throw refused('cannot be written');
  if (!bitmap.durable && bitmap.busy) bitmap.assertUsable('change');
}

/** In a drained section. */
async function ensureOne(engine: Engine, disk: Disk, args: Ensure): Promise<Tracking> {
  const { node } = disk;
  const bitmap = node.findBitmap(args.name);
  const reason = bitmap ? lossOf(bitmap, disk, args) : disk.id === undefined ? 'never-there' : 'replaced';
  if (bitmap && reason !== undefined)
    await (await BITMAP_ACTIONS['block-dirty-bitmap-remove'](engine, nameOf(node, args))).settle();
  if (reason !== undefined)
    await addOne(engine, {
      ...{ ...nameOf(node, args), persistent: true, 'x-durable': true },
      ...given({ granularity: args.granularity }),
    });
  const now = node.findBitmap(args.name) ?? missing('a bitmap that was made');
  await node.instance.bitmaps?.makeDurable?.(now, now.durable ?? newDurability(engine));
  // What the old one had is free, also after a crash: nobody asks for the second flush else.
  if (bitmap && reason !== undefined) for (let flushes = 0; flushes < 2; flushes++) await node.io.flush();
  const { id, sinceMs, wasElsewhere = false } = now.durable ?? missing('a durable bitmap');
  return {
    ...{ node: node.label, status: reason === undefined ? 'usable' : 'lost', since: sinceMs, id },
    ...given({ reason }),
    'kept-by-another': wasElsewhere,
  };
}

function nameOf(node: Node, { name }: Ensure): { node: string; name: string } {
  return { node: node.name, name };
}

/** Why a bitmap is of no use; undefined: it is of use. */
function lossOf(bitmap: DirtyBitmap, { id }: Disk, { strict }: Ensure): Tracking['reason'] | undefined {
  const { durable, inconsistent } = bitmap;
  if (inconsistent) return durable?.lost ?? 'unclean-end';
  if (id !== undefined && durable?.id !== id) return 'replaced';
  return strict === true && durable?.wasElsewhere === true ? 'written-by-another' : undefined;
}
