import { BlockError } from '../base/error.js';
import { findDevice } from '../block/find-node.js';
import type { Node } from '../block/node.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';

/** Snapshots inside an image are read and shown; none is made or deleted. */
export function registerInternalSnapshots(engine: Parts<'command' | 'graph'>): void {
  engine.command('blockdev-snapshot-internal-sync', (args) => refuseSnapshot(engine, args));
  engine.command('blockdev-snapshot-delete-internal-sync', ({ device, id, name }) => {
    const node = findDevice(engine.graph, device);
    if (id === undefined && name === undefined)
      throw new BlockError('invalid', 'Name or id must be provided');
    findSnapshot(node, device, { id, name });
    throw cannotDelete(node);
  });
}

/** Errors: unsupported, after those of what is asked, in QEMU's words. */
export function refuseSnapshot(
  { graph }: Parts<'graph'>,
  { device, name }: CommandArguments<'blockdev-snapshot-internal-sync'>,
): never {
  const node = findDevice(graph, device);
  const format = node.driver.name;
  if (name === '' && node.instance.info().snapshots !== undefined)
    throw new BlockError('invalid', 'Name is empty');
  throw new BlockError(
    'unsupported',
    `Block format '${format}' used by device '${device}' does not support internal snapshots`,
  );
}

/** Errors: not-found; unsupported where the format has none. */
function findSnapshot(
  node: Node,
  device: string,
  wanted: { id?: string | undefined; name?: string | undefined },
): void {
  const { snapshots } = node.instance.info();
  if (!snapshots)
    throw new BlockError('unsupported', 'Failed to get a snapshot list: Operation not supported');
  const isWanted = (one: { id?: unknown; name?: unknown }): boolean =>
    one.id === (wanted.id ?? one.id) && one.name === (wanted.name ?? one.name);
  if (snapshots.some((one) => isWanted(one as { id?: unknown; name?: unknown }))) return;
  const { id = 'null', name = 'null' } = wanted;
  const text = `Snapshot with id '${id}' and name '${name}' does not exist on device '${device}'`;
  throw new BlockError('not-found', text);
}

function cannotDelete(node: Node): BlockError {
  return new BlockError(
    'unsupported',
    `Block format '${node.driver.name}' used by device '${node.label}' does not support internal snapshot deletion`,
  );
}
