import { BlockError, toBlockError } from '../base/error.js';
import {
  canSnapshot,
  findByName,
  goToSnapshot,
  snapshotNow,
  snapshotsOf,
} from '../block/internal-snapshots.js';
import type { Node } from '../block/node.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';
import { listDisks } from './query.js';
import { stop } from './run-state.js';
import { checkVmState, encodeVmState } from './vm-state.js';

export type VmSnapshots = Parts<'graph' | 'host' | 'devices' | 'drives' | 'runState' | 'moves'>;

/** Which images a snapshot of the machine is of; undefined: all that are writable, and the first has its state. */
export interface SnapshotPlaces {
  readonly vmstate?: string | undefined;
  readonly devices?: readonly string[] | undefined;
}

/** Snapshots of a machine, as jobs. */
export function registerVmSnapshots(engine: VmSnapshots & Parts<'command' | 'jobs' | 'kind'>): void {
  if (engine.kind !== 'machine') return;
  const start = (
    type: 'snapshot-save' | 'snapshot-load' | 'snapshot-delete',
    id: string,
    work: () => Promise<void>,
  ): void => engine.jobs.startStep(type, id, work);
  engine.command('snapshot-save', (args) =>
    start('snapshot-save', args['job-id'], async () => {
      await saveVm(engine, args.tag, { places: placesOf(args), replaces: false });
    }),
  );
  engine.command('snapshot-load', (args) =>
    start('snapshot-load', args['job-id'], () => loadVm(engine, args.tag, placesOf(args))),
  );
  engine.command('snapshot-delete', (args) =>
    start('snapshot-delete', args['job-id'], () => deleteVm(engine, args.tag, placesOf(args))),
  );
}

function placesOf(
  args: CommandArguments<'snapshot-save'> | CommandArguments<'snapshot-delete'>,
): SnapshotPlaces {
  return { devices: args.devices, vmstate: 'vmstate' in args ? args.vmstate : undefined };
}

/** Errors: busy while the machine moves. */
function assertStays({ moves }: Parts<'moves'>): void {
  if (moves.source.isUnderWay) throw new BlockError('busy', "There's a migration process in progress");
}

/**
 * A snapshot of all images at one moment, with the machine's state in one of them. The guest rests meanwhile.
 * Errors: unsupported, exists, those of the images; in QEMU's words. What was made of it is deleted again.
 */
export async function saveVm(
  engine: VmSnapshots,
  name: string,
  { places = {}, replaces }: { places?: SnapshotPlaces; replaces: boolean },
): Promise<void> {
  assertStays(engine);
  const nodes = imagesOf(engine, places);
  checkCanSnapshot(nodes);
  if (replaces) await deleteVm(engine, name, places);
  else if (nodes.every((node) => findByName(node, name)))
    throw new BlockError('exists', `Snapshot '${name}' already exists in one or more devices`);
  const first = vmStateNode(engine, nodes, places);
  const { status, isRunning } = engine.runState;
  await stop(engine, 'save-vm');
  try {
    await engine.graph.drained(engine.graph.nodesInUse(), async () => {
      const snapshot = snapshotNow(engine.host.clock, name);
      try {
        for (const node of nodes) {
          const vmState = node === first ? { vmState: encodeVmState(status) } : {};
          await told(`Could not create snapshot '${name}' on '${node.label}'`, async () =>
            snapshotsOf(node)?.take({ ...snapshot, ...vmState }),
          );
        }
      } catch (error) {
        for (const node of nodes) await deleteNamed(node, name).catch(() => undefined);
        throw error;
      }
    });
  } finally {
    if (isRunning) engine.runState.resume();
  }
}

/**
 * All images go back to a snapshot. A guest that ran goes on; after a failure it stays stopped.
 * Errors: not-found, unsupported, those of the images; in QEMU's words.
 */
export async function loadVm(engine: VmSnapshots, name: string, places: SnapshotPlaces = {}): Promise<void> {
  assertStays(engine);
  const wasRunning = engine.runState.isRunning;
  await stop(engine, 'restore-vm');
  const nodes = imagesOf(engine, places);
  checkCanSnapshot(nodes);
  // Of no images at all there is none that lacks it.
  if (nodes.some((node) => !findByName(node, name)))
    throw new BlockError('not-found', `Snapshot '${name}' does not exist in one or more devices`);
  const first = vmStateNode(engine, nodes, places);
  await engine.graph.drained(engine.graph.nodesInUse(), async () => {
    const found = findByName(first, name);
    const snapshots = snapshotsOf(first);
    if (!found || !snapshots || found.vmStateBytes === 0)
      throw new BlockError(
        'unsupported',
        'This is a disk-only snapshot. Revert to it  offline using qemu-img',
      );
    await checkVmState(snapshots, found);
    for (const node of nodes) {
      const id = findByName(node, name)?.id ?? '';
      await told(`Could not load snapshot '${name}' on '${node.label}'`, () => goToSnapshot(node, id));
    }
  });
  if (wasRunning) engine.runState.resume();
}

/** Of those images that have it. */
export async function deleteVm(
  engine: VmSnapshots,
  name: string,
  places: SnapshotPlaces = {},
): Promise<void> {
  const nodes = imagesOf(engine, places);
  checkCanSnapshot(nodes);
  await engine.graph.drained(nodes, async () => {
    for (const node of nodes)
      await told(`Could not delete snapshot '${name}' on '${node.label}'`, () => deleteNamed(node, name));
  });
}

async function deleteNamed(node: Node, name: string): Promise<void> {
  const found = findByName(node, name);
  if (found) await snapshotsOf(node)?.delete(found.id);
}

async function told<T>(what: string, body: () => Promise<T>): Promise<T> {
  try {
    return await body();
  } catch (error) {
    const { kind, message } = toBlockError(error);
    throw new BlockError(kind, `${what}: ${message}`, { cause: error });
  }
}

/** Every writable image of a disk, and those that only the user has. Errors: not-found, invalid. */
export function imagesOf(engine: VmSnapshots, { devices }: SnapshotPlaces = {}): Node[] {
  const { graph } = engine;
  if (devices?.length === 0) throw new BlockError('invalid', 'At least one device is required for snapshot');
  const named = devices?.map((name) => {
    const node = graph.find(name);
    if (!node) throw new BlockError('not-found', `No block device node '${name}'`);
    return node;
  });
  const all =
    named ??
    [
      ...listDisks(engine).flatMap(({ backend }) => backend.root?.node.skipImplicitFilters() ?? []),
      ...[...graph.nodes.values()].filter((node) => node.monitorOwned && node.parents.size === 0),
    ].filter((node) => !node.readOnly);
  return [...new Set(all)];
}

function checkCanSnapshot(nodes: readonly Node[]): void {
  const unable = nodes.find((node) => !canSnapshot(node));
  if (unable) {
    const text = `Device '${unable.label}' is writable but does not support snapshots`;
    throw new BlockError('unsupported', text);
  }
}

/** Errors: not-found, unsupported. */
export function vmStateNode(
  { graph }: VmSnapshots,
  nodes: readonly Node[],
  { vmstate }: SnapshotPlaces = {},
): Node {
  if (vmstate === undefined) {
    const first = nodes.find((node) => canSnapshot(node));
    if (first) return first;
    throw new BlockError('unsupported', 'no block device can store vmstate for snapshot');
  }
  const node = graph.find(vmstate);
  if (!node || !nodes.includes(node))
    throw new BlockError('not-found', `vmstate block device '${vmstate}' does not exist`);
  if (!canSnapshot(node))
    throw new BlockError('unsupported', `vmstate block device '${vmstate}' does not support snapshots`);
  return node;
}
