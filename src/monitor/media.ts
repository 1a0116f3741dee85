import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { BlockBackend } from '../block/backend.js';
import { checkNotBlocked } from '../block/find-node.js';
import type { Node } from '../block/node.js';
import { openNamed } from '../block/open-named.js';
import type { GuestDevice } from '../attach/device.js';
import { IDLE, takeMedium } from '../attach/drive.js';
import type { CommandArguments } from '../schema/commands.js';
import { FlatOptions } from '../schema/flat.js';
import type { Parts } from './parts.js';
import { type Disk, listDisks } from './query.js';

type Media = Parts<'graph' | 'opener' | 'exports' | 'devices' | 'drives' | 'machine' | 'emit' | 'isIncoming'>;

/** Media that come and go: trays, and what lies in them. */
export function registerMedia(engine: Media & Parts<'command'>): void {
  engine.command('eject', (args) => eject(engine, args));
  engine.command('blockdev-open-tray', (args) => openTray(engine, removable(findDisk(engine, args), args)));
  engine.command('blockdev-close-tray', (args) => closeTray(engine, removable(findDisk(engine, args), args)));
  engine.command('blockdev-remove-medium', ({ id }) => remove(engine, findDisk(engine, { id }), id));
  engine.command('blockdev-insert-medium', ({ id, 'node-name': name }) =>
    insertNamed(engine, findDisk(engine, { id }), id, name),
  );
  engine.command('blockdev-change-medium', (args) => change(engine, args));
}

interface DiskName {
  device?: string;
  id?: string;
}

/** By a drive's id, or by that of a device. Errors: device-not-found, invalid. */
function findDisk(engine: Media, { device, id }: DiskName): Disk {
  if ((device === undefined) === (id === undefined))
    throw new BlockError('invalid', "Need exactly one of 'device' and 'id'");
  if (id !== undefined) return diskOfDevice(engine, id);
  const drive = engine.drives.get(device ?? '');
  const disk = listDisks(engine).find(({ backend }) => backend === drive?.backend);
  if (!disk) throw notFound(device ?? '');
  return disk;
}

/** By a device's id, its path, or that of the object in it. */
export function diskOfDevice(
  engine: Parts<'devices' | 'machine'>,
  id: string,
): { backend: BlockBackend; device: GuestDevice } {
  const found = [...engine.devices.values()].find((device) => {
    return (
      device.id === id || device.path === id || device.qdevPath === id || `${device.id}/virtio-backend` === id
    );
  });
  if (found) return { backend: found.backend, device: found };
  if (engine.machine.find(id)) throw new BlockError('invalid', 'Device does not have a block device backend');
  throw notFound(id);
}

function notFound(name: string): BlockError {
  return new BlockError('device-not-found', `Device '${name}' not found`);
}

/** The disk. Errors: invalid where its medium stays for good. */
function removable(disk: Disk, { device, id }: DiskName): Disk {
  if (disk.device && !disk.device.disk.removable)
    throw new BlockError('invalid', `Device '${device ?? id ?? ''}' is not removable`);
  return disk;
}

async function eject(engine: Media, args: CommandArguments<'eject'>): Promise<void> {
  const disk = removable(findDisk(engine, args), args);
  openTray(engine, disk);
  await remove(engine, disk, args.device ?? args.id ?? '');
}

function openTray(engine: Media, disk: Disk): void {
  moveTray(engine, disk, true);
}

function closeTray(engine: Media, disk: Disk): void {
  moveTray(engine, disk, false);
}

function moveTray(engine: Media, { backend, device }: Disk, isOpen: boolean): void {
  if (device?.disk.tray !== true || device.isTrayOpen === isOpen) return;
  device.isTrayOpen = isOpen;
  engine.emit('DEVICE_TRAY_MOVED', { device: backend.name, 'tray-open': isOpen, id: device.qdevPath });
}

/** Exports that were made of the disk go with its medium. Errors: busy while a job works on it. */
async function remove(engine: Media, disk: Disk, name: string): Promise<void> {
  const { backend, device } = removable(disk, { id: name });
  if (device?.disk.tray === true && !device.isTrayOpen)
    throw new BlockError('invalid', `Tray of device '${name}' is not open`);
  if (!backend.root) return;
  checkNotBlocked(backend.node);
  backend.mediumWasReadOnly = backend.node.readOnly;
  await engine.exports.removeOf(backend);
  await takeMedium(engine.graph, backend);
}

async function insertNamed(engine: Media, disk: Disk, id: string, name: string): Promise<void> {
  const node = engine.graph.find(name);
  if (!node) throw new BlockError('not-found', `Node '${name}' not found`);
  const hasUser = [...node.parents].some(({ role }) => role === 'root');
  if (hasUser) throw new BlockError('busy', `Node '${name}' is already in use`);
  await insert(engine, removable(disk, { id }), node);
}

async function insert(engine: Media, { backend, device }: Disk, node: Node): Promise<void> {
  if (device?.disk.tray === true && !device.isTrayOpen)
    throw new BlockError('invalid', 'Tray of the device is not open');
  if (backend.root) throw new BlockError('exists', 'There already is a medium in the device');
  const { perm, shared } = device ? device.permissionsFor(node, engine.isIncoming) : IDLE;
  await engine.graph.transaction((transaction) => {
    transaction.setPermissions(backend, perm, shared);
    transaction.attach(backend, 'root', node);
  });
}

/** The new medium is opened first: when that fails the old one stays. */
async function change(engine: Media, args: CommandArguments<'blockdev-change-medium'>): Promise<void> {
  const disk = findDisk(engine, args);
  const { backend } = disk;
  const mode = args['read-only-mode'] ?? 'retain';
  const wasReadOnly = backend.root?.node.readOnly ?? backend.mediumWasReadOnly;
  const readOnly = mode === 'retain' ? wasReadOnly : mode === 'read-only';
  const options = FlatOptions.of(given({ driver: args.format }));
  const node = await openNamed(engine.opener, args.filename, options, {
    readOnly,
    inactive: engine.isIncoming,
  });
  const name = given({ device: args.device, id: args.id });
  try {
    openTray(engine, removable(disk, name));
    await remove(engine, disk, args.device ?? args.id ?? '');
    await insert(engine, disk, node);
  } catch (error) {
    await engine.graph.release([node]);
    throw error;
  }
  closeTray(engine, disk);
}
