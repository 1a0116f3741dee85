import { createHash } from 'node:crypto';
import { isPowerOfTwo } from '../base/align.js';
import { missing } from '../base/assert.js';
import { BlockError, errnoError, toBlockError } from '../base/error.js';
import { KiB } from '../base/limits.js';
import { type BitmapUse, DirtyBitmap, type Durability } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';
import { findBitmapOf, findDevice } from '../block/find-node.js';
import type { DoneAction } from './snapshot.js';

const MAX_NAME_BYTES = 1023;
const MIN_GRANULARITY_BYTES = 512;
/** What QEMU and qcow2 have room for. */
const MAX_GRANULARITY_BYTES = 2 ** 31;

type Name = CommandArguments<'block-dirty-bitmap-clear'>;

/** What is done to dirty bitmaps; each can be taken back in a transaction. */
export const BITMAP_ACTIONS = {
  'block-dirty-bitmap-add': add,
  'block-dirty-bitmap-remove': remove,
  'block-dirty-bitmap-clear': clear,
  'block-dirty-bitmap-merge': merge,
  'block-dirty-bitmap-enable': (engine: Parts<'graph'>, name: Name) => setEnabled(engine, name, true),
  'block-dirty-bitmap-disable': (engine: Parts<'graph'>, name: Name) => setEnabled(engine, name, false),
} as const;

export function registerBitmaps(engine: Parts<'command' | 'graph' | 'host'>): void {
  engine.command('block-dirty-bitmap-merge', async (args) => merge(engine, args).settle());
  engine.command('x-debug-block-dirty-bitmap-sha256', (args) => {
    const { bitmap } = findBitmapOf(engine.graph, args.node, args.name);
    return { sha256: createHash('sha256').update(bitmap.bytes()).digest('hex') };
  });
  engine.command('block-dirty-bitmap-add', async (args) => void (await addOne(engine, args)));
  engine.command('block-dirty-bitmap-remove', (args) => removeOne(engine, args));
  engine.command('block-dirty-bitmap-clear', (args) => void clear(engine, args));
  engine.command('block-dirty-bitmap-enable', async (args) => setEnabled(engine, args, true).settle());
  engine.command('block-dirty-bitmap-disable', async (args) => setEnabled(engine, args, false).settle());
}

function find(engine: Parts<'graph'>, args: Name, use: BitmapUse): { node: Node; bitmap: DirtyBitmap } {
  const found = findBitmapOf(engine.graph, args.node, args.name);
  found.bitmap.assertUsable(use);
  return found;
}

/** Errors: those of an action that cannot be done now. */
export function checkBitmapAction(
  engine: Parts<'graph'>,
  type: keyof typeof USES | 'block-dirty-bitmap-add',
  args: CommandArguments<'block-dirty-bitmap-add'>,
): void {
  if (type === 'block-dirty-bitmap-add') checkNew(engine, args);
  else find(engine, args, USES[type]);
}

/** Whether a bitmap records is not in the image before it is stored. */
const USES = {
  'block-dirty-bitmap-remove': 'remove',
  'block-dirty-bitmap-clear': 'change',
  'block-dirty-bitmap-enable': 'read',
  'block-dirty-bitmap-disable': 'read',
} as const satisfies { [type: string]: BitmapUse };

function checkNew(engine: Parts<'graph'>, args: CommandArguments<'block-dirty-bitmap-add'>): Node {
  const { name, granularity } = args;
  if (name === '') throw new BlockError('invalid', 'Bitmap name cannot be empty');
  const node = findDevice(engine.graph, args.node);
  if (granularity !== undefined && !isGranularity(granularity))
    throw new BlockError('invalid', 'Granularity must be power of 2 and at least 512');
  if (args['x-durable'] === true) checkDurable(node, args.persistent ?? false);
  if (args.persistent === true) checkPersistent(node, name, granularity ?? defaultGranularity(node));
  if (node.findBitmap(name)) throw new BlockError('exists', `Bitmap already exists: ${name}`);
  if (Buffer.byteLength(name) > MAX_NAME_BYTES)
    throw new BlockError('invalid', `Bitmap name too long: ${name}`);
  return node;
}

function isGranularity(bytes: number): boolean {
  return bytes >= MIN_GRANULARITY_BYTES && bytes <= MAX_GRANULARITY_BYTES && isPowerOfTwo(bytes);
}

function checkPersistent(node: Node, name: string, granularityBytes: number): void {
  const { bitmaps } = node.instance;
  if (!bitmaps) throw errnoError('ENOTSUP', `Can't store persistent bitmaps to ${node.label}`);
  try {
    bitmaps.checkNew(name, granularityBytes);
  } catch (error) {
    const { kind, message } = toBlockError(error);
    const text = `Can't make bitmap '${name}' persistent in '${node.label}': ${message}`;
    throw new BlockError(kind, text, { cause: error });
  }
}

/** Errors: invalid for one that is not persistent; unsupported. */
function checkDurable(node: Node, isPersistent: boolean): void {
  if (!isPersistent) throw new BlockError('invalid', 'A durable bitmap is persistent');
  const { bitmaps } = node.instance;
  if (bitmaps && !bitmaps.makeDurable)
    throw errnoError('ENOTSUP', `Can't store durable bitmaps to ${node.label}`);
}

/** add(), and where that is asked for the bitmap is durable on return. */
export async function addOne(
  engine: Parts<'graph' | 'host'>,
  args: CommandArguments<'block-dirty-bitmap-add'>,
): Promise<DoneAction> {
  if (args['x-durable'] !== true) return add(engine, args);
  const node = checkNew(engine, args);
  return engine.graph.drained([node], async () => {
    const done = add(engine, args);
    const bitmap = node.findBitmap(args.name) ?? missing('the bitmap that was added');
    try {
      await node.instance.bitmaps?.makeDurable?.(bitmap, newDurability(engine));
    } catch (error) {
      await done.undo();
      const { kind, message } = toBlockError(error);
      const text = `Can't make bitmap '${args.name}' durable in '${node.label}': ${message}`;
      throw new BlockError(kind, text, { cause: error });
    }
    return { undo: async () => (await remove(engine, args)).settle() };
  });
}

/** Of a bitmap that is durable from now on. */
export function newDurability({ host }: Parts<'host'>): Durability {
  const { seconds, microseconds } = host.clock.wallClock();
  const sinceMs = Math.floor(seconds * 1000 + microseconds / 1000);
  return { id: host.random.bytes(8).toString('hex'), sinceMs };
}

function add(engine: Parts<'graph'>, args: CommandArguments<'block-dirty-bitmap-add'>): DoneAction {
  const node = checkNew(engine, args);
  const { name, granularity } = args;
  const bitmap = new DirtyBitmap(node.lengthBytes, granularity ?? defaultGranularity(node), name);
  bitmap.enabled = !(args.disabled ?? false);
  bitmap.persistent = args.persistent ?? false;
  node.dirtyBitmaps.push(bitmap);
  return { undo: async () => drop(node, bitmap) };
}

/** The cluster size, between 4 and 64 KiB, of the image that the node shows. */
export function defaultGranularity(node: Node): number {
  const cluster = node.skipFilters().instance.info().clusterSizeBytes ?? 64 * KiB;
  return Math.min(64 * KiB, Math.max(4 * KiB, cluster));
}

function drop(node: Node, bitmap: DirtyBitmap): void {
  node.dirtyBitmaps.splice(node.dirtyBitmaps.indexOf(bitmap), 1);
}

/**
 * A persistent one leaves the image at once; taken back, it is stored anew. Until all of a transaction is done it keeps its
 * name, as in QEMU.
 */
async function remove(engine: Parts<'graph'>, args: Name): Promise<Required<DoneAction>> {
  const { node, bitmap } = find(engine, args, 'remove');
  const setLeaving = (isLeaving: boolean): void => {
    bitmap.busy = isLeaving;
    bitmap.isGivenAway = isLeaving;
  };
  const store = node.bitmapStore;
  setLeaving(true);
  try {
    if (bitmap.persistent && !node.side) await store?.remove(args.name);
  } catch (error) {
    setLeaving(false);
    throw error;
  }
  const { durable } = bitmap;
  return {
    undo: async () => {
      setLeaving(false);
      if (durable && !durable.lost && !node.side) await store?.makeDurable?.(bitmap, durable);
    },
    settle: async () => {
      // A file of its own goes when nothing can be taken back any more.
      try {
        await node.side?.remove(args.name);
      } finally {
        drop(node, bitmap);
      }
    },
  };
}

/** remove() for good. A file of its own goes while no change waits for what is to be written there. */
async function removeOne(engine: Parts<'graph'>, args: Name): Promise<void> {
  const { node, bitmap } = find(engine, args, 'remove');
  const removeIt = async (): Promise<void> => (await remove(engine, args)).settle();
  if (node.side?.bitmap === bitmap) await engine.graph.drained([node], removeIt);
  else await removeIt();
}

function clear(engine: Parts<'graph'>, args: Name): DoneAction {
  const { node, bitmap } = find(engine, args, 'change');
  const before = new DirtyBitmap(bitmap.sizeBytes, bitmap.granularityBytes);
  before.merge(bitmap);
  bitmap.resetAll();
  if (bitmap.durable) node.changeLog?.shrunk();
  return {
    undo: async () => {
      bitmap.merge(before);
      await node.bitmapStore?.settle?.(bitmap);
    },
  };
}

/** The sources as they are before any is added: one of them may be the target. None is added when one cannot be. */
function merge(
  engine: Parts<'graph'>,
  args: CommandArguments<'block-dirty-bitmap-merge'>,
): Required<DoneAction> {
  const { node, bitmap: target } = findBitmapOf(engine.graph, args.node, args.target);
  const sources = args.bitmaps.map((source) => {
    const named = typeof source === 'string' ? { node: args.node, name: source } : source;
    const { bitmap } = findBitmapOf(engine.graph, named.node, named.name);
    target.assertUsable('change');
    bitmap.assertUsable('read');
    if (bitmap.sizeBytes === target.sizeBytes) return bitmap;
    const sizes = `destination size is ${target.sizeBytes}, source size is ${bitmap.sizeBytes}`;
    throw new BlockError('invalid', `Bitmaps are of different sizes (${sizes}) and can't be merged`);
  });
  const before = new DirtyBitmap(target.sizeBytes, target.granularityBytes);
  before.merge(target);
  for (const source of sources) target.merge(source);
  return {
    undo: async () => {
      target.resetAll();
      target.merge(before);
    },
    settle: async () => node.bitmapStore?.settle?.(target),
  };
}

function setEnabled(engine: Parts<'graph'>, args: Name, enabled: boolean): Required<DoneAction> {
  const { node, bitmap } = find(engine, args, 'read');
  const before = bitmap.enabled;
  bitmap.enabled = enabled;
  const settle = async (): Promise<void> => node.bitmapStore?.settle?.(bitmap);
  return {
    undo: async () => {
      bitmap.enabled = before;
      await settle();
    },
    settle,
  };
}
