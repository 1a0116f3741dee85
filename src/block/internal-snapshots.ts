import { BlockError, errnoError } from '../base/error.js';
import type { HostClock } from '../host/host.js';
import type { InternalSnapshot, InternalSnapshots, NewSnapshot } from './driver.js';
import { Node } from './node.js';
import { hasPermission, Permission } from './permissions.js';

/** Those of a node, or of what it filters; undefined: its format has none. */
export function snapshotsOf(node: Node): InternalSnapshots | undefined {
  const { instance } = node.skipFilters();
  return instance.snapshots;
}

/** The image that keeps a machine's state for a node: itself, or what holds its bytes. Errors: unsupported. */
export function vmStateKeeper(node: Node): InternalSnapshots {
  for (let at: Node | undefined = node; at; at = (at.filtered ?? at.children.get('file'))?.node) {
    const { snapshots } = at.instance;
    if (snapshots) return snapshots;
  }
  throw errnoError('ENOTSUP');
}

/** Whether snapshots of it can be made and deleted. */
export function canSnapshot(node: Node): boolean {
  return node.skipFilters().isWritable && snapshotsOf(node) !== undefined;
}

export function findByName(node: Node, name: string): InternalSnapshot | undefined {
  return snapshotsOf(node)?.list.find((one) => one.name === name);
}

/** The one that has both the id and the name, as far as they are given. */
export function findByIdAndName(
  node: Node,
  wanted: { id?: string | undefined; name?: string | undefined },
): InternalSnapshot | undefined {
  return snapshotsOf(node)?.list.find(
    ({ id, name }) => id === (wanted.id ?? id) && name === (wanted.name ?? name),
  );
}

/** By its id, else by its name. */
export function findByIdOrName(node: Node, text: string): InternalSnapshot | undefined {
  return findByIdAndName(node, { id: text }) ?? findByName(node, text);
}

/** A name for the present moment. The guest's own clock stands: no processor runs here. */
export function snapshotNow(clock: HostClock, name: string): NewSnapshot {
  const { seconds, microseconds } = clock.wallClock();
  return { name, dateSec: seconds, dateNsec: microseconds * 1000, clockNs: 0n, icount: -1n };
}

/**
 * In a drained section: the disk is again what it was. Errors: unsupported; busy while somebody relies on its content now
 * (dirty bitmaps, which would no longer tell what has changed, a job, a filter that keeps a point in time) or on its size;
 * those of the image.
 */
export async function goToSnapshot(node: Node, id: string): Promise<void> {
  const image = node.skipFilters();
  const snapshots = image.instance.snapshots;
  if (!snapshots)
    throw new BlockError('unsupported', 'Block driver does not support snapshots', { errno: 'ENOTSUP' });
  const { lengthBytes } = image;
  const target = snapshots.list.find((one) => one.id === id);
  for (const one of withFilters(image)) {
    if (one.dirtyBitmaps.length > 0)
      throw new BlockError('busy', 'Device has active dirty bitmaps', { errno: 'EBUSY' });
    one.assertNotBlocked();
    if (target && target.diskBytes !== lengthBytes) checkMayResize(one);
  }
  await snapshots.goTo(id).finally(() => image.contentReplaced());
  if (image.lengthBytes !== lengthBytes) image.resized();
}

/** The image, and what filters it, up to its users. */
function* withFilters(image: Node): Generator<Node> {
  yield image;
  for (const { parent } of image.parents)
    if (parent instanceof Node && parent.isFilter) yield* withFilters(parent);
}

/** Errors: permission, where a user relies on the size. */
function checkMayResize(node: Node): void {
  for (const { shared, parent } of node.parents)
    if (!hasPermission(shared, Permission.resize) && !(parent instanceof Node))
      throw new BlockError('permission', `The disk had another size, on which ${parent.description} relies`, {
        errno: 'EPERM',
      });
}

/** The node shows the disk as it was then; of nothing that is wanted there is none. Errors: unsupported, not-found; QEMU's words. */
export async function showSnapshot(
  node: Node,
  wanted: { readonly id?: string | undefined; readonly name?: string | undefined },
): Promise<void> {
  const image = node.skipFilters();
  const snapshots = image.instance.snapshots;
  if (!snapshots) {
    const what = `Block format '${node.driver.name}' used by device '${node.driveName}'`;
    throw new BlockError('unsupported', `${what} does not support temporarily loading internal snapshots`);
  }
  if (image.isWritable) throw new BlockError('invalid', 'Device is not readonly');
  const isNamed = wanted.id !== undefined || wanted.name !== undefined;
  const found = isNamed ? findByIdAndName(node, wanted) : undefined;
  if (!found) throw new BlockError('not-found', "Can't find snapshot");
  const { lengthBytes } = image;
  await snapshots.show(found.id);
  image.contentReplaced();
  if (image.lengthBytes !== lengthBytes) image.resized();
}
