import { BlockError } from '../base/error.js';
import type { ThrottleGroup } from '../block/objects/throttle-group.js';
import { type AllLimits, areLimited, checkedLimits, NO_LIMITS } from '../block/objects/throttle-limits.js';
import type { Json } from '../block/driver.js';
import type { BlockBackend } from '../block/backend.js';
import type { CommandArguments } from '../schema/commands.js';
import { type LimitName, LIMITS, RATES } from '../schema/io-throttle.js';
import type { Parts } from './parts.js';

type Disks = Parts<'graph' | 'devices' | 'drives'>;

export function registerIoThrottle(engine: Disks & Parts<'command'>): void {
  engine.command('block_set_io_throttle', (args) => setLimits(engine, args));
}

const NAMES = Object.keys(LIMITS) as LimitName[];

/** Limits of the guest's reads and writes; all zero: none. Errors: invalid, device-not-found; in QEMU's words. */
function setLimits(engine: Disks, args: CommandArguments<'block_set_io_throttle'>): void {
  const { backend, name } = findDisk(engine, args.id, args.device);
  const given = NAMES.filter((name) => args[name] !== undefined).map((name) => [LIMITS[name], args[name]]);
  const limits = checkedLimits(Object.fromEntries(given) as { [name: string]: number });
  if (!areLimited(limits)) {
    backend.throttleGroup = undefined;
    return;
  }
  const group =
    args.group === undefined
      ? (backend.throttleGroup ?? engine.graph.objects.groupNamed(name))
      : engine.graph.objects.groupNamed(args.group);
  backend.throttleGroup = group;
  group.limits = limits;
}

/** `name`: of a group that is made for it. */
interface NamedDisk {
  backend: BlockBackend;
  name: string;
}

function findDisk(engine: Disks, id: string | undefined, device: string | undefined): NamedDisk {
  if ((id === undefined) === (device === undefined))
    throw new BlockError('invalid', "Need exactly one of 'device' and 'id'");
  const drive = device === undefined ? undefined : engine.drives.get(device);
  if (drive) return { backend: drive.backend, name: drive.id };
  const disks = [...engine.devices.values()];
  const disk = disks.find(({ qdevPath }) => qdevPath === id);
  if (disk)
    return { backend: disk.backend, name: disk.backend.name === '' ? disk.qdevPath : disk.backend.name };
  // A disk of virtio is behind the device that has the id.
  if (disks.some((other) => id !== undefined && [other.id, `/machine/peripheral/${other.id}`].includes(id)))
    throw new BlockError('invalid', 'Device does not have a block device backend');
  throw new BlockError('device-not-found', `Device '${id ?? device}' not found`);
}

/** As query-block shows limits: rates always, all else where it is set. */
export function limitsInfo(group: ThrottleGroup | undefined): { readonly [name: string]: Json } {
  return group ? { ...infoOf(group.limits), group: group.id } : WITHOUT_GROUP;
}

function infoOf(limits: AllLimits): { [name: string]: Json } {
  const shown = NAMES.filter((name) => name in RATES || limits[LIMITS[name]] !== NO_LIMITS[LIMITS[name]]);
  return Object.fromEntries(shown.map((name) => [name, limits[LIMITS[name]]]));
}

const WITHOUT_GROUP = infoOf(NO_LIMITS);
