import { BlockError } from '../base/error.js';
import type { UserObject } from '../block/objects/object.js';
import type { GuestDevice } from '../attach/device.js';
import { type DeviceModel, deviceModel } from '../attach/device-models.js';
import { propertyTypes } from '../attach/property-types.js';
import type { Graph } from '../block/graph.js';
import type { JsonValue } from '../schema/types.js';
import type { Parts } from './parts.js';

/** A property that is no child: qom-list names its type. */
export interface TreeProperty {
  readonly name: string;
  readonly type: string;
}

/** What has a path: everything that users made, and the machine's devices. */
export interface TreeObject {
  readonly type: string;
  readonly properties: readonly TreeProperty[];
  readonly children: ReadonlyMap<string, TreeObject>;
  /** Errors: invalid when it has no such property. */
  get(property: string): JsonValue;
  /** Errors: invalid when it has none, or the value is wrong. */
  set(property: string, value: JsonValue): void | Promise<void>;
}

export type TreeSource = Parts<'graph' | 'devices' | 'machine' | 'kind'>;

/** The tree as it is now. */
export function objectTree(engine: TreeSource): TreeObject {
  const objects = engine.graph.objects
    .list()
    .map((object): [string, TreeObject] => [object.id, userObject(object)]);
  const children: Array<[string, TreeObject]> = [['objects', container(objects)]];
  if (engine.kind === 'machine') children.push(['machine', machine(engine)]);
  return container(children);
}

/** An object and where it is. */
interface Found {
  readonly object: TreeObject;
  readonly path: string;
}

/**
 * What is at a path; without a slash at its beginning, the one object whose path ends so.
 * Errors: device-not-found; invalid when there are several.
 */
export function findObject(root: TreeObject, path: string): Found {
  const parts = path.split('/').filter((part) => part !== '');
  const found = path.startsWith('/') ? [walk({ object: root, path: '' }, parts)] : anywhere(root, parts);
  const there = found.filter((one) => one !== undefined);
  if (there.length > 1) throw new BlockError('invalid', `Path '${path}' is ambiguous`);
  const [one] = there;
  if (one) return one;
  throw new BlockError('device-not-found', `Device '${path}' not found`);
}

function walk(from: Found, parts: readonly string[]): Found | undefined {
  let at: Found | undefined = from;
  for (const part of parts) {
    const object: TreeObject | undefined = at?.object.children.get(part);
    at = object && { object, path: `${at?.path}/${part}` };
  }
  return at;
}

function anywhere(root: TreeObject, parts: readonly string[]): Array<Found | undefined> {
  const found: Array<Found | undefined> = [];
  const visit = (from: Found): void => {
    found.push(walk(from, parts));
    for (const [name, object] of from.object.children) visit({ object, path: `${from.path}/${name}` });
  };
  visit({ object: root, path: '' });
  return found;
}

function container(children: Iterable<readonly [string, TreeObject]>, type = 'container'): TreeObject {
  return fixed(type, {}, children);
}

/** One whose properties nobody changes. */
function fixed(
  type: string,
  values: { readonly [property: string]: { type: string; value: JsonValue } },
  children: Iterable<readonly [string, TreeObject]> = [],
): TreeObject {
  const below = new Map(children);
  const has = (property: string): boolean => property in values || property === 'type' || below.has(property);
  return {
    type,
    properties: Object.entries(values).map(([name, one]) => ({ name, type: one.type })),
    children: below,
    get(property) {
      const found = values[property];
      if (!found) throw new BlockError('invalid', `Property '${type}.${property}' not found`);
      return found.value;
    },
    set(property) {
      const what = has(property) ? 'is not writable' : 'not found';
      throw new BlockError('invalid', `Property '${type}.${property}' ${what}`);
    },
  };
}

function userObject(object: UserObject): TreeObject {
  return {
    type: object.type.name,
    properties: object.type.properties.map(({ name, qomType }) => ({ name, type: qomType })),
    children: new Map(),
    get: (property) => object.get(property),
    set: (property, value) => object.set(property, value),
  };
}

/** A device that is there: it takes another node for its disk, and nothing else. `id`: the user's, of the device itself. */
function diskObject(
  graph: Graph,
  device: GuestDevice,
  { type, id }: { type: string; id: string | undefined },
  children: Iterable<readonly [string, TreeObject]> = [],
): TreeObject {
  const { backend } = device;
  const drive = { type: 'str', value: backend.name || (backend.root?.node.name ?? '') };
  const object = fixed(type, { realized: { type: 'bool', value: true }, drive }, children);
  const settable = new Set(propertyTypes(deviceModel(type)).map(({ name }) => name));
  return {
    ...object,
    set(property, value) {
      if (property === 'drive') return changeDrive(graph, device, value);
      if (!settable.has(property)) return object.set(property, value);
      const who = id === undefined ? 'anonymous device' : `device '${id}'`;
      const text = `Attempt to set property '${property}' on ${who} (type '${type}') after it was realized`;
      throw new BlockError('invalid', text);
    },
  };
}

async function changeDrive(graph: Graph, device: GuestDevice, value: JsonValue): Promise<void> {
  if (typeof value !== 'string')
    throw new BlockError('invalid', "Invalid parameter type for 'drive', expected: string");
  const node = graph.find(value);
  if (!node) throw new BlockError('not-found', `Cannot find device='' nor node-name='${value}'`);
  await device.changeNode(node);
}

/** No machine runs; what belongs to it is where tools look for it. */
function machine({ graph, devices, machine: { type, devices: plugged } }: TreeSource): TreeObject {
  const disks = new Map([...devices.values()].map((device) => [device.path, device]));
  const places = new Map(['peripheral', 'peripheral-anon', 'unattached'].map((name) => [name, placed([])]));
  for (const [place, found] of places)
    for (const { model, path } of plugged) {
      const [, , under, name] = path.split('/');
      if (under === place && name !== undefined)
        found.push([name, pluggedObject(model, graph, disks.get(path))]);
    }
  const children = [...places].map(([name, found]): [string, TreeObject] => [name, container(found)]);
  return container(children, `${type}-machine`);
}

function placed(list: Array<[string, TreeObject]>): Array<[string, TreeObject]> {
  return list;
}

function pluggedObject(
  { name, disk }: DeviceModel,
  graph: Graph,
  device: GuestDevice | undefined,
): TreeObject {
  if (!device) return fixed(name, { realized: { type: 'bool', value: true } });
  const self = { type: name, id: device.id };
  const inner = disk?.inner?.('', device.id ?? '').slice(1);
  if (inner === undefined || inner.includes('/')) return diskObject(graph, device, self);
  const below = { type: disk?.driveOwner ?? name, id: undefined };
  return diskObject(graph, device, self, [[inner, diskObject(graph, device, below)]]);
}
