import { missing } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import { findDevice } from '../block/find-node.js';
import type { Node } from '../block/node.js';
import { SideBitmap } from '../block/side-bitmap.js';
import type { CommandArguments, CommandResult } from '../schema/commands.js';
import { addOne, BITMAP_ACTIONS, checkBitmapAction, defaultGranularity, newDurability } from './bitmaps.js';
import type { Parts } from './parts.js';

type Ensure = CommandArguments<'x-bitmap-ensure'>;
type Tracking = CommandResult<'x-bitmap-ensure'>[number];
type Engine = Parts<'graph' | 'host'>;

interface Disk {
  readonly node: Node;
  readonly id: string | undefined;
  /** Of the side file. */
  readonly path: string | undefined;
}

export function registerTracking(engine: Engine & Parts<'command'>): void {
  engine.command('x-bitmap-ensure', (args) => ensure(engine, args));
  engine.command('x-bitmap-extents', async (args) => readExtents(engine, args));
}

/**
 * Durable bitmaps of one name on several disks, at one moment of their guests' time: what is missing or of no use is made.
 * Nothing is changed when one of the disks cannot have it; where making one fails, asking again does the rest.
 */
async function ensure(engine: Engine, args: Ensure): Promise<Tracking[]> {
  const disks = args.disks.map(({ node, id, file }) => ({
    ...{ node: findDevice(engine.graph, node), id, path: file },
  }));
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

/** An answer of so many is made in a few milliseconds. */
const MOST_EXTENTS = 4096;

/** What is dirty, some stretches at a time. Errors: not-found; those of a bitmap that cannot be used. */
function readExtents(
  { graph }: Engine,
  { node: id, name, start = 0, most = MOST_EXTENTS }: CommandArguments<'x-bitmap-extents'>,
): CommandResult<'x-bitmap-extents'> {
  const bitmap = findDevice(graph, id).findBitmap(name);
  if (!bitmap) throw new BlockError('not-found', `Dirty bitmap '${name}' not found`);
  bitmap.assertUsable('read');
  const extents: Array<{ start: number; length: number }> = [];
  let at = start;
  for (;;) {
    const dirty = bitmap.nextDirty(at);
    if (!dirty) return { granularity: bitmap.granularityBytes, extents };
    if (extents.length >= Math.min(Math.max(most, 1), MOST_EXTENTS))
      return { granularity: bitmap.granularityBytes, extents, next: dirty.offset };
    extents.push({ start: dirty.offset, length: dirty.lengthBytes });
    at = dirty.offset + dirty.lengthBytes;
  }
}

/** Errors: those of a disk that cannot have it, or has another bitmap of that name. */
function checkDisk(engine: Engine, { node, path }: Disk, { name, granularity }: Ensure): void {
  if (path !== undefined && node.instance.bitmaps)
    throw new BlockError('invalid', `'${node.label}' keeps its bitmaps itself: it needs no file for them`);
  if (node.side && path !== undefined && node.side.path !== path)
    throw new BlockError('invalid', `'${node.label}' has its bitmap in '${node.side.path}'`);
  if (!node.isWritable) throw new BlockError('permission', `Block node is read-only: '${node.label}'`);
  const bitmap = node.findBitmap(name);
  if (!bitmap) {
    const isAside = path !== undefined;
    if (isAside && node.side)
      throw new BlockError('invalid', `'${node.label}' has another bitmap in '${node.side.path}'`);
    const kept = isAside ? {} : { persistent: true, 'x-durable': true };
    const args = { node: node.name, name, ...kept, ...given({ granularity }) };
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
  const { node, path } = disk;
  if (path !== undefined) return ensureAside(engine, { ...disk, path }, args);
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
    ...{ 'kept-by-another': wasElsewhere, 'if-nobody-else-wrote': false },
  };
}

/** The same in a file beside the image. */
async function ensureAside(
  engine: Engine,
  { node, id, path }: Disk & { path: string },
  { name, granularity, strict = false }: Ensure,
): Promise<Tracking> {
  const there = node.side?.bitmap;
  let reason: Tracking['reason'] | undefined;
  if (there && id !== undefined && there.durable?.id !== id) {
    reason = 'replaced';
    await (await BITMAP_ACTIONS['block-dirty-bitmap-remove'](engine, { node: node.name, name })).settle();
  }
  if (!node.side) {
    const granularityBytes = granularity ?? defaultGranularity(node);
    const begins = newDurability(engine);
    const attached = await SideBitmap.attach(
      ...([engine.host, { node, path, name }, { granularityBytes, begins, strict, id }] as const),
    );
    node.side = attached.side;
    node.dirtyBitmaps.push(attached.side.bitmap);
    reason ??= attached.lost;
  }
  const { bitmap, isOfDevice } = node.side;
  const durable = bitmap.durable ?? missing('a durable bitmap');
  return {
    ...{ node: node.label, status: reason === undefined ? 'usable' : 'lost', since: durable.sinceMs },
    ...{ id: durable.id, ...given({ reason }), 'kept-by-another': false },
    'if-nobody-else-wrote': isOfDevice && reason === undefined,
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
