import { assert } from '../base/assert.js';
import { BlockError, toBlockError } from '../base/error.js';
import { giveAway, subtrees } from '../block/activity.js';
import type { Edge } from '../block/edge.js';
import { endWritable } from '../block/lent-writable.js';
import type { Node } from '../block/node.js';
import { hasPermission, Permission } from '../block/permissions.js';
import type { GraphTransaction } from '../block/transaction.js';
import type { CommandArguments } from '../schema/commands.js';
import { createOverlayFile } from './blockdev.js';
import { drainAllOnce } from './drain-all.js';
import { checkNotBlocked, findNode } from '../block/find-node.js';
import type { Parts } from './parts.js';

/**
 * When the layer below a snapshot turns read-only: at once, or with the end of the transaction, up to which other actions
 * may change its bitmaps.
 */
export type WhenReadOnly = 'at once' | 'at the end';

/** One action that was done and can be taken back while nothing else has happened. */
export interface DoneAction {
  undo(): Promise<void>;
  /** What is left to do when it is not taken back. */
  settle?(): Promise<void>;
}

export function registerSnapshots(engine: Parts<'command' | 'graph' | 'jobs' | 'opener' | 'print'>): void {
  engine.command('blockdev-snapshot-sync', async (args) => {
    await drainAllOnce(engine, () => checkSnapshotSync(engine, args));
    await (await snapshotSync(engine, args)).settle?.();
  });
  engine.command('blockdev-snapshot', async (args) => {
    await drainAllOnce(engine, () => checkSnapshot(engine, args));
    await snapshot(engine, args);
  });
}

/** Errors: those of arguments that are wrong whatever is in flight. Answers the node. */
export function checkSnapshotSync(
  { graph }: Parts<'graph'>,
  args: CommandArguments<'blockdev-snapshot-sync'>,
): Node {
  const old = findNode(graph, args.device, args['node-name']);
  checkNotBlocked(old);
  const name = args['snapshot-node-name'];
  if (args['node-name'] !== undefined && name === undefined)
    throw new BlockError('invalid', 'New overlay node-name missing');
  if (name !== undefined && graph.nodes.has(name))
    throw new BlockError('exists', 'New overlay node-name already in use');
  if (name !== undefined) graph.checkNewName(name);
  return old;
}

/** The same. */
export function checkSnapshot({ graph }: Parts<'graph'>, args: CommandArguments<'blockdev-snapshot'>): void {
  checkNotBlocked(findNode(graph, args.node, args.node));
  const overlay = findNode(graph, args.overlay, args.overlay);
  const isRead = [...overlay.parents].some(({ perm }) => hasPermission(perm, Permission.consistentRead));
  if (isRead) throw new BlockError('busy', 'The overlay is already in use');
  if (overlay.isFilter) throw new BlockError('unsupported', 'Filters cannot be used as overlays');
  if (overlay.children.has('backing'))
    throw new BlockError('invalid', 'The overlay already has a backing image');
  if (!overlay.driver.options.backing)
    throw new BlockError('unsupported', 'The overlay does not support backing images');
}

/** A new image becomes the overlay of the node's users. Of a node without users, no overlay stays open, as in QEMU. */
export async function snapshotSync(
  engine: Parts<'graph' | 'opener' | 'print'>,
  args: CommandArguments<'blockdev-snapshot-sync'>,
  whenReadOnly: WhenReadOnly = 'at once',
): Promise<DoneAction> {
  const { graph } = engine;
  const old = findNode(graph, args.device, args['node-name']);
  const check = (): void => void checkSnapshotSync(engine, args);
  return graph.drainedUnless(check, [old], async () => {
    checkSnapshotSync(engine, args);
    const name = args['snapshot-node-name'];
    const filename = args['snapshot-file'];
    const format = args.format ?? 'qcow2';
    await flushBeforeSnapshot(old);
    const isNew = args.mode !== 'existing';
    const shown = isNew && (await createOverlayFile(engine, filename, format, old.lengthBytes, old));
    const context = {
      readOnly: old.readOnly,
      inactive: old.activity === 'inactive',
      discard: old.modes.discard,
      noBacking: true,
    };
    const named = { ...(name !== undefined && { 'node-name': name }) };
    const overlay = await engine.opener.openImage(filename, format, context, named);
    if (shown !== false) overlay.automaticBacking = shown;
    const done = await putOnTop(engine, old, overlay, whenReadOnly);
    const settle = async (): Promise<void> => {
      await done.settle?.();
      await graph.release([overlay]);
    };
    return { ...done, settle };
  });
}

/**
 * A node that the user has added becomes the overlay. It may be in use by those who do not read it: the target of a
 * mirror gets its backing chain so.
 */
export async function snapshot(
  engine: Parts<'graph'>,
  args: CommandArguments<'blockdev-snapshot'>,
  whenReadOnly: WhenReadOnly = 'at once',
): Promise<DoneAction> {
  const { graph } = engine;
  const old = findNode(graph, args.node, args.node);
  const named = graph.find(args.overlay);
  const check = (): void => checkSnapshot(engine, args);
  return graph.drainedUnless(check, named ? [old, named] : [old], async () => {
    checkNotBlocked(old);
    await flushBeforeSnapshot(old);
    check();
    return putOnTop(engine, old, graph.node(args.overlay), whenReadOnly);
  });
}

/**
 * The steps of a snapshot. After a machine was saved (a migration to a file) its images are nobody's until `cont`, and then
 * so is the overlay.
 */
export function putOverlay(transaction: GraphTransaction, old: Node, overlay: Node): Edge {
  if (old.activity === 'inactive' && overlay.activity === 'active') giveAway(transaction, [overlay]);
  transaction.replaceNode(old, overlay);
  return transaction.attach(overlay, 'backing', old);
}

async function flushBeforeSnapshot(node: Node): Promise<void> {
  if (!node.isWritable) return;
  try {
    await node.io.flush();
  } catch (error) {
    throw new BlockError('io', 'An IO error has occurred', { cause: toBlockError(error) });
  }
}

/** In a drained section: users of `old` go to `overlay`, whose backing file it becomes. */
async function putOnTop(
  engine: Parts<'graph'>,
  old: Node,
  overlay: Node,
  whenReadOnly: WhenReadOnly,
): Promise<DoneAction> {
  const { graph } = engine;
  const wasReadOnly = old.readOnly;
  const ownUsers = new Set(overlay.parents);
  const wasActive = [...subtrees([overlay])].filter(({ activity }) => activity === 'active');
  let backing: Edge | undefined;
  try {
    await graph.transaction((transaction) => {
      backing = putOverlay(transaction, old, overlay);
      if (whenReadOnly === 'at once') transaction.setReadOnly(old, true);
    });
  } catch (error) {
    await graph.release([overlay]);
    throw error;
  }
  return {
    undo: async () => {
      const edge = backing;
      assert(edge, 'a snapshot has a backing edge');
      await graph.transaction((transaction) => {
        transaction.detach(edge);
        transaction.replaceNode(overlay, old, (edge) => ownUsers.has(edge));
        transaction.setReadOnly(old, wasReadOnly);
        for (const node of wasActive) transaction.setActivity(node, 'active');
      });
      await graph.collect([overlay]);
    },
    settle: async () => {
      // As in QEMU, where it cannot be it stays writable: nobody writes, and what bitmaps hold is stored later.
      if (!old.readOnly) await endWritable(graph, old).catch(() => undefined);
    },
  };
}
