import type { BlockBackend } from '../../block/backend.js';
import { Node } from '../../block/node.js';
import { hasPermission, Permission } from '../../block/permissions.js';
import type { Reversal } from '../../view/plan/points.js';
import { createOverlayFile } from '../blockdev.js';
import type { Parts } from '../parts.js';
import { type DiskSwitch, mayBeWritten } from './revert.js';

type Engine = Parts<'graph' | 'opener' | 'print' | 'runState' | 'devices' | 'exports'>;

/** A guest in these states has nothing of the disk in its memory. */
const WITHOUT_GUEST: ReadonlySet<string> = new Set(['prelaunch', 'shutdown']);

/** Users of this engine's disks go over to new images, in one transaction. */
export function diskSwitch(engine: Engine): DiskSwitch {
  return {
    check: (reversals) => reversals.forEach((reversal) => checkUsers(engine, reversal)),
    run: (reversals) => run(engine, reversals),
  };
}

/** Errors: busy, with all who may write. */
function checkUsers(engine: Engine, { top }: Reversal): void {
  const writers = usersAbove(engine.graph.node(top.id)).filter((user) => mayWrite(engine, user));
  if (writers.length === 0) return;
  const names = writers.map((writer) => nameOf(engine, writer)).join(', ');
  throw mayBeWritten(top, names);
}

function usersAbove(node: Node): BlockBackend[] {
  const users: BlockBackend[] = [];
  for (const { parent } of node.parents)
    if (parent instanceof Node) users.push(...usersAbove(parent));
    else users.push(parent);
  return [...new Set(users)];
}

function mayWrite({ runState, devices }: Engine, user: BlockBackend): boolean {
  if (!user.root || !hasPermission(user.root.perm, Permission.write)) return false;
  const isGuests = [...devices.values()].some(({ backend }) => backend === user);
  return !isGuests || !WITHOUT_GUEST.has(runState.status);
}

function nameOf({ devices, exports, runState }: Engine, user: BlockBackend): string {
  for (const [id, { backend }] of devices)
    if (backend === user) return `the guest's device '${id}' (the guest is ${runState.status})`;
  const id = exports.idOf(user);
  return id === undefined ? user.description : `export '${id}'`;
}

async function run(engine: Engine, reversals: readonly Reversal[]): Promise<void> {
  const { graph } = engine;
  const nodes = reversals.map(({ top }) => graph.node(top.id));
  const overlays: Node[] = [];
  await graph.drained(nodes, async () => {
    try {
      for (const reversal of reversals) overlays.push(await openOverlay(engine, reversal));
      // Nobody has come meanwhile.
      for (const reversal of reversals) checkUsers(engine, reversal);
      await graph.transaction((transaction) => {
        for (const [i, { top, image }] of reversals.entries()) {
          const overlay = overlays[i] as Node;
          transaction.attach(overlay, 'backing', graph.node(image.id));
          transaction.replaceNode(graph.node(top.id), overlay);
        }
      });
    } catch (error) {
      await graph.release(overlays);
      throw error;
    }
    for (const [i, node] of nodes.entries()) {
      const overlay = overlays[i] as Node;
      overlay.monitorOwned = node.monitorOwned;
      node.monitorOwned = false;
    }
  });
  await graph.release(nodes);
}

async function openOverlay(engine: Engine, { image, top, file, node }: Reversal): Promise<Node> {
  const { graph, opener } = engine;
  const old = graph.node(top.id);
  const shown = await createOverlayFile(
    engine,
    file,
    'qcow2',
    graph.node(image.id).lengthBytes,
    graph.node(image.id),
  );
  const context = { readOnly: old.readOnly, discard: old.modes.discard, noBacking: true };
  const overlay = await opener.openImage(file, 'qcow2', context, { 'node-name': node });
  overlay.automaticBacking = shown;
  return overlay;
}
