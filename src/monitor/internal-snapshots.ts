import { BlockError, errnoOf, errnoText } from '../base/error.js';
import type { Json } from '../block/driver.js';
import { findRoot } from '../block/find-node.js';
import {
  canSnapshot,
  findByIdAndName,
  findByName,
  snapshotNow,
  snapshotsOf,
} from '../block/internal-snapshots.js';
import type { Node } from '../block/node.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';
import type { DoneAction } from './snapshot.js';

type Engine = Parts<'graph' | 'host'>;
type Taken = CommandArguments<'blockdev-snapshot-internal-sync'>;

/** Snapshots inside an image, of one disk. */
export function registerInternalSnapshots(engine: Engine & Parts<'command'>): void {
  engine.command('blockdev-snapshot-internal-sync', async (args) => {
    await takeInternal(engine, args);
  });
  engine.command('blockdev-snapshot-delete-internal-sync', (args) => deleteInternal(engine, args));
}

/** Errors: those of arguments that are wrong whatever is in flight, in QEMU's words. Answers the node. */
function checkTaken({ graph }: Engine, { device, name }: Taken): Node {
  const node = findRoot(graph, device);
  node.assertNotBlocked();
  if (node.readOnly) throw new BlockError('permission', `Device '${device}' is read only`);
  if (!canSnapshot(node)) {
    const what = `Block format '${node.driver.name}' used by device '${device}'`;
    throw new BlockError('unsupported', `${what} does not support internal snapshots`);
  }
  if (name === '') throw new BlockError('invalid', 'Name is empty');
  if (findByName(node, name)) {
    const text = `Snapshot with name '${name}' already exists on device '${device}'`;
    throw new BlockError('exists', text);
  }
  return node;
}

/** One disk at one moment; taking it back deletes the snapshot. */
export async function takeInternal(engine: Engine, args: Taken): Promise<DoneAction> {
  const { graph, host } = engine;
  const { device, name } = args;
  return graph.drainedUnless(
    () => void checkTaken(engine, args),
    [findRoot(graph, device)],
    async () => {
      const node = checkTaken(engine, args);
      const snapshots = snapshotsOf(node);
      const before = new Set(snapshots?.list.map(({ id }) => id));
      try {
        await snapshots?.take(snapshotNow(host.clock, name));
      } catch (error) {
        const text = `Failed to create snapshot '${name}' on device '${device}': ${errnoText(errnoOf(error))}`;
        throw new BlockError('io', text, { cause: error });
      }
      const taken = snapshots?.list.find(({ id }) => !before.has(id));
      return {
        undo: async () => {
          if (taken) await graph.drained([node], async () => snapshots?.delete(taken.id));
        },
      };
    },
  );
}

async function deleteInternal(
  { graph }: Engine,
  { device, id, name }: CommandArguments<'blockdev-snapshot-delete-internal-sync'>,
): Promise<{ [key: string]: Json }> {
  const node = findRoot(graph, device);
  if (id === undefined && name === undefined) throw new BlockError('invalid', 'Name or id must be provided');
  return graph.drained([node], async () => {
    node.assertNotBlocked();
    const snapshots = snapshotsOf(node);
    if (!snapshots)
      throw new BlockError('unsupported', 'Failed to get a snapshot list: Operation not supported');
    const found = findByIdAndName(node, { id, name });
    if (!found) {
      const which = `id '${id ?? 'null'}' and name '${name ?? 'null'}'`;
      throw new BlockError('not-found', `Snapshot with ${which} does not exist on device '${device}'`);
    }
    await deleteFound(node, found.id);
    return found.info;
  });
}

async function deleteFound(node: Node, id: string): Promise<void> {
  if (!canSnapshot(node)) throw new BlockError('permission', `Device '${node.label}' is read only`);
  await snapshotsOf(node)?.delete(id);
}
