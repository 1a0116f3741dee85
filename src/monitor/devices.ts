import { deferred } from '../base/async.js';
import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import { GRACE_MS } from '../block/graph.js';
import { MAIN_THREAD } from '../block/home-thread.js';
import type { Node } from '../block/node.js';
import type { Job } from '../jobs/job.js';
import { type ErrorAction, type FrontEndProperties, GuestDevice } from '../attach/device.js';
import { type DeviceModel, deviceModel, type DiskModel } from '../attach/device-models.js';
import type { Drive } from '../attach/drive.js';
import { type DiskAppearance, type Endpoint, parseEndpoint } from '../attach/endpoint.js';
import type { Bus, Plugged } from '../attach/machine.js';
import { type InputMode, type JsonObject, type JsonValue, optional, struct, str } from '../schema/types.js';
import type { Parts } from './parts.js';

type Devices = Parts<
  | 'graph'
  | 'jobs'
  | 'devices'
  | 'drives'
  | 'machine'
  | 'runState'
  | 'isIncoming'
  | 'moves'
  | 'takeImages'
  | 'ioError'
  | 'emit'
  | 'whileOpen'
  | 'lost'
  | 'guestProgram'
  | 'host'
>;

export function registerDevices(engine: Devices & Parts<'command'>): void {
  const assertStays = (name: string): void => {
    if (engine.moves.source.isUnderWay) throw new BlockError('busy', `${name} not allowed while migrating`);
  };
  engine.command('device_add', (args) => {
    assertStays('device_add');
    return addDevice(engine, textsOf(args), { mode: 'keyval', hot: true });
  });
  engine.command('device_del', ({ id }) => {
    assertStays('device_del');
    deleteDevice(engine, id);
  });
}

export interface AddOptions {
  mode: Exclude<InputMode, 'flat'>;
  /** The machine is there already. */
  hot: boolean;
  /** It belongs to the machine itself. */
  isOnBoard?: boolean;
}

/** What QMP gives as JSON, as a command line would. */
export function textsOf(input: JsonObject): JsonObject {
  const texts = Object.entries(input).map(([key, value]): [string, JsonValue] => {
    if (typeof value === 'boolean') return [key, value ? 'on' : 'off'];
    return [key, typeof value === 'string' ? value : `${value as number}`];
  });
  return Object.fromEntries(texts);
}

/** -device and device_add. Errors: in QEMU's words and order. */
export async function addDevice(engine: Devices, input: JsonObject, options: AddOptions): Promise<void> {
  await plugDevice(engine, input, options);
}

/** The same; answers what has been plugged in. */
export async function plugDevice(engine: Devices, input: JsonObject, options: AddOptions): Promise<Plugged> {
  const { mode, hot } = options;
  const { driver, id, bus: asked, ...rest } = input;
  if (typeof driver !== 'string') throw new BlockError('invalid', "Parameter 'driver' is missing");
  const model = deviceModel(driver);
  const { id: name, bus: busName } = IDENTITY.parse(given({ id, bus: asked }), '', mode);
  const bus = engine.machine.busFor(model, busName, hot);
  checkId(engine, name, hot);
  const properties = parseProperties(model, rest, mode);
  const bootIndex = checkBootIndex(engine, properties['bootindex']);
  const origin = { options: input, mode, isOnBoard: options.isOnBoard ?? false };
  const place = { model, id: name, bus, given: rest, origin, ...given({ bootIndex }) };
  if (!model.disk) return engine.machine.plug({ ...place, path: engine.machine.newPath(name) });
  checkBlockSizes(properties);
  checkThread(engine, properties['iothread']);
  const thread = threadFor(engine, properties, bus);
  const where = { isOnBoard: options.isOnBoard ?? false, thread };
  const disk = await addDisk(engine, model, model.disk, name, properties, where);
  return engine.machine.plug({ ...place, path: disk.path });
}

const IDENTITY = struct('DeviceIdentity', { id: optional(str), bus: optional(str) });

function checkId(engine: Devices, id: string | undefined, hot: boolean): void {
  if (id === undefined) return;
  if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id))
    throw new BlockError('invalid', "Parameter 'id' expects an identifier", {
      hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    });
  if (!engine.machine.find(id) && !engine.devices.has(id)) return;
  throw new BlockError('exists', hot ? `Duplicate device ID '${id}'` : `Duplicate ID '${id}' for device`);
}

type Properties = { readonly [name: string]: unknown };

function parseProperties(
  { name, properties }: DeviceModel,
  input: JsonObject,
  mode: AddOptions['mode'],
): Properties {
  if (!properties) return {};
  for (const key of Object.keys(input))
    if (!Object.hasOwn(properties, key))
      throw new BlockError('invalid', `Property '${name}.${key}' not found`);
  return struct(name, properties).parse(input, '', mode);
}

/** It serves nothing, but must be there; see home-thread. */
function checkThread({ graph }: Devices, id: unknown): void {
  if (typeof id !== 'string') return;
  if (graph.objects.list().some((object) => object.id === id)) return;
  throw new BlockError('device-not-found', `Device '${id}' not found`);
}

/** Its own, or that of the controller on whose bus it sits. */
function threadFor({ machine }: Devices, properties: Properties, bus: Bus | undefined): string {
  const controller = bus && [...machine.devices].find(({ brings }) => brings.includes(bus));
  const thread = properties['iothread'] ?? controller?.given?.['iothread'];
  return typeof thread === 'string' ? thread : MAIN_THREAD;
}

/** No two devices are the first to be booted from. Negative: not booted from. */
function checkBootIndex({ machine }: Devices, index: unknown): number | undefined {
  if (typeof index !== 'number' || index < 0) return undefined;
  if (![...machine.devices].some(({ bootIndex }) => bootIndex === index)) return index;
  throw new BlockError('exists', `The bootindex ${index} has already been used`);
}

const MAX_LOGICAL_BLOCK_BYTES = 2 * 1024 * 1024;

function checkBlockSizes(properties: Properties): void {
  for (const key of ['logical_block_size', 'physical_block_size', 'min_io_size', 'opt_io_size']) {
    const value = properties[key];
    if (typeof value !== 'number') continue;
    const isUnit = key.endsWith('block_size');
    if (isUnit && value !== 0 && (value < 512 || value > MAX_LOGICAL_BLOCK_BYTES))
      throw new BlockError(
        'invalid',
        `Property .${key} doesn't take value ${value} (minimum: 512, maximum: ${MAX_LOGICAL_BLOCK_BYTES})`,
      );
    if (isUnit && value !== 0 && !Number.isInteger(Math.log2(value)))
      throw new BlockError(
        'invalid',
        `Property .${key} doesn't take value '${value}', it's not a power of 2`,
      );
  }
  const logical = sizeOf(properties, 'logical_block_size') || 512;
  const physical = sizeOf(properties, 'physical_block_size') || Math.max(512, 0);
  if (logical > physical)
    throw new BlockError('invalid', 'logical_block_size > physical_block_size not supported');
  for (const key of ['min_io_size', 'opt_io_size'])
    if (sizeOf(properties, key) % logical !== 0)
      throw new BlockError('invalid', `${key} must be a multiple of logical_block_size`);
}

function sizeOf(properties: Properties, key: string): number {
  const value = properties[key];
  return typeof value === 'number' ? value : 0;
}

async function addDisk(
  engine: Devices,
  model: DeviceModel,
  disk: DiskModel,
  id: string | undefined,
  properties: Properties,
  { isOnBoard, thread }: { isOnBoard: boolean; thread: string },
): Promise<GuestDevice> {
  const { drive, node } = mediumOf(engine, disk, properties['drive'] as string | undefined);
  if (disk.requiresSerial === true && properties['serial'] === undefined)
    throw new BlockError('invalid', 'serial property not set');
  const medium = node ?? drive?.backend.root?.node;
  if (medium && medium.readOnly && !disk.takesReadOnly)
    throw new BlockError('permission', 'Block node is read-only');
  const path = engine.machine.newPath(id, isOnBoard);
  return plugDisk(engine, node, frontEndProperties(engine, model, id, properties), {
    model,
    disk,
    path,
    thread,
    ...given({ drive }),
  });
}

/** What `drive=` names: a drive, else a node. */
function mediumOf(
  engine: Devices,
  disk: DiskModel,
  name: string | undefined,
): { drive?: Drive; node?: Node } {
  if (name === undefined) {
    if (disk.mayBeEmpty) return {};
    throw new BlockError('invalid', 'drive property not set');
  }
  const drive = engine.drives.get(name);
  if (drive && [...engine.devices.values()].some((device) => device.drive === drive))
    throw new BlockError('busy', `Drive '${name}' is already in use by another device`);
  if (drive && !drive.backend.root && !disk.mayBeEmpty)
    throw new BlockError('invalid', 'Device needs media, but drive is empty');
  if (drive) return { drive };
  const node = engine.graph.find(name);
  if (node) return { node };
  throw new BlockError('not-found', `Property '${disk.driveOwner}.drive' can't find value '${name}'`);
}

/** A disk of the guest. Errors: busy when another user of the node conflicts; those of activate. */
export async function plugDisk(
  engine: Devices,
  node: Node | undefined,
  properties: FrontEndProperties,
  frontEnd: Parameters<typeof GuestDevice.create>[3],
): Promise<GuestDevice> {
  const medium = node ?? frontEnd.drive?.backend.root?.node;
  if (medium && !engine.isIncoming) await engine.takeImages([medium]);
  const device = await GuestDevice.create(
    engine.graph,
    node,
    properties,
    frontEnd,
    engine.runState,
    engine.lost,
    (event) => engine.ioError(event),
  );
  engine.devices.set(device.id ?? device.path, device);
  return device;
}

function frontEndProperties(
  engine: Devices,
  model: DeviceModel,
  id: string | undefined,
  properties: Properties,
): FrontEndProperties {
  const action = (name: string): ErrorAction | undefined => {
    const chosen = properties[name] as string | undefined;
    return chosen === 'auto' ? undefined : (chosen as ErrorAction | undefined);
  };
  const onOff = (name: string): boolean | undefined => {
    const value = properties[name];
    return value === undefined || value === 'auto' ? undefined : value === 'on';
  };
  const endpoint = properties['x-endpoint'] as string | undefined;
  return given({
    id,
    shareRw: properties['share-rw'] as boolean | undefined,
    writeCache: onOff('write-cache'),
    accountsInvalid: onOff('account-invalid'),
    accountsFailed: onOff('account-failed'),
    readErrors: action('rerror'),
    writeErrors: action('werror'),
    endpoint: endpointOf(engine, model, endpoint),
    appearance: appearanceOf(properties),
  });
}

/** What a guest sees of its disk, besides what is on it. */
function appearanceOf(properties: Properties): DiskAppearance {
  const bytesOf = (key: string): number | undefined => sizeOf(properties, key) || undefined;
  const flag = (key: string): boolean | undefined => properties[key] as boolean | undefined;
  return given({
    serial: properties['serial'] as string | undefined,
    blockSizeBytes: bytesOf('logical_block_size'),
    queueCount: bytesOf('num-queues'),
    physicalBlockBytes: bytesOf('physical_block_size'),
    minIoBytes: bytesOf('min_io_size'),
    optimalIoBytes: bytesOf('opt_io_size'),
    hasDiscard: flag('discard'),
    hasWriteZeroes: flag('write-zeroes'),
    hasCacheSwitch: flag('config-wce'),
  });
}

/** Errors: invalid; unsupported for a model that has no such form, or where it is known who the guest is. */
function endpointOf(
  { guestProgram }: Devices,
  model: DeviceModel,
  text: string | undefined,
): Endpoint | undefined {
  if (text === undefined) return guestProgram?.endpointFor(model);
  if (guestProgram)
    throw new BlockError(
      'unsupported',
      'x-endpoint: the guest of this machine is in the program that runs it',
    );
  const endpoint = parseEndpoint(text);
  if (endpoint.protocol === 'vhost-user' && !model.name.startsWith('virtio-blk'))
    throw new BlockError('unsupported', `x-endpoint: vhost-user is for virtio-blk, not for ${model.name}`);
  return endpoint;
}

/** device_del: the guest lets go of it at once, soon after the command's answer. */
export function deleteDevice(engine: Devices, name: string): void {
  const found = engine.machine.find(name);
  if (!found) throw new BlockError('device-not-found', `Device '${name}' not found`);
  if (found.isLeaving) throw new BlockError('busy', `Device ${name} is already in the process of unplug`);
  engine.machine.assertMayLeave(found);
  found.isLeaving = true;
  engine.host.clock.defer(() => void engine.whileOpen(() => unplug(engine, found)).catch(() => undefined));
}

/** What sits on its buses goes first. */
export async function unplug(engine: Devices, found: Plugged): Promise<void> {
  for (const child of engine.machine.childrenOf(found)) await unplug(engine, child);
  await takeOut(engine, found);
  const inner = innerPath(found);
  if (inner !== undefined) engine.emit('DEVICE_DELETED', { path: inner });
  engine.emit('DEVICE_DELETED', { ...given({ device: found.id }), path: found.path });
}

/** Without a word. */
export async function takeOut(engine: Devices, found: Plugged): Promise<void> {
  const device = diskOf(engine, found);
  if (device) {
    const medium = device.backend.root?.node;
    const jobs = device.drive && medium ? engine.jobs.at(medium) : [];
    await device.unplug();
    engine.devices.delete(device.id ?? device.path);
    if (device.drive) engine.drives.delete(device.drive.id);
    await endOf(engine, jobs);
  }
  engine.machine.unplug(found);
}

/** The disk that a device is. */
export function diskOf({ devices }: Parts<'devices'>, { path }: Plugged): GuestDevice | undefined {
  return [...devices.values()].find((device) => device.path === path);
}

/** A drive goes with its device, and so do its jobs: those that are ready end well. One that hangs is not waited for. */
async function endOf({ host }: Devices, jobs: readonly Job[]): Promise<void> {
  for (const job of jobs)
    await job.cancel({ force: false, softOnReady: true }).catch(() => void job.cancelNow());
  const late = deferred();
  const timer = host.clock.setTimer(GRACE_MS, () => late.resolve());
  await Promise.race([Promise.all(jobs.map((job) => job.concluded)), late.promise]);
  timer.cancel();
}

/** Devices that consist of two. */
function innerPath({ model, path, id }: Plugged): string | undefined {
  if (model.disk?.inner) return model.disk.inner(path, id ?? '');
  return /^virtio-.*-pci/.test(model.name) ? `${path}/virtio-backend` : undefined;
}
