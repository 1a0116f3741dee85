import { deviceModel, deviceModelNames } from '../attach/device-models.js';
import { propertyTypes } from '../attach/property-types.js';
import { BlockError } from '../base/error.js';
import type { Json } from '../block/driver.js';
import type { ObjectType } from '../block/objects/object.js';
import { OBJECT_TYPES } from '../block/objects/types.js';
import type { JsonValue } from '../schema/types.js';
import { findObject, objectTree, type TreeObject, type TreeSource } from './object-tree.js';
import { MACHINES } from './machine.js';
import { machineProperties } from './machine-properties.js';
import type { Parts } from './parts.js';

/** Making objects, and looking at whatever has a path. */
export function registerObjects(engine: TreeSource & Parts<'command'>): void {
  const { objects } = engine.graph;
  const at = (path: string): TreeObject => findObject(objectTree(engine), path).object;
  engine.command('object-add', async (options) => void (await objects.add(options)));
  engine.command('object-del', ({ id }) => objects.delete(id));
  engine.command('qom-list', ({ path }) => listProperties(at(path)));
  engine.command('qom-get', ({ path, property }) => getProperty(engine, path, property));
  engine.command('qom-set', ({ path, property, value }) => setProperty(at(path), property, value));
  engine.command('qom-list-types', ({ implements: base, abstract = false }) => [
    ...listTypes(base, abstract),
    ...(engine.kind === 'machine' ? machineTypes(base) : []),
  ]);
  engine.command('device-list-properties', ({ typename }) => deviceProperties(typename));
  engine.command('qom-list-properties', ({ typename }) => {
    if (typename === 'container') return [TYPE_PROPERTY];
    const machine = MACHINES.find(({ name }) => `${name}-machine` === typename);
    if (machine && engine.kind === 'machine') return machineProperties(machine.name);
    const type = OBJECT_TYPES.find(({ name }) => name === typename);
    if (!type) throw new BlockError('device-not-found', `Class '${typename}' not found`);
    return typeProperties(type);
  });
}

/** Models of devices, and what -accel takes; what they stand on in QEMU is not told. */
function machineTypes(base: string | undefined): Json[] {
  const devices = deviceModelNames().map((name) => ({ name, parent: 'device' }));
  return [...devices, { name: 'tcg-accel', parent: 'accel' }].filter(({ name, parent }) =>
    [name, parent].includes(base ?? name),
  );
}

/** Of a model that has no part in what livedisk does, none: it takes what it is given. */
function deviceProperties(name: string): Json[] {
  if (deviceModelNames().includes(name)) return propertyTypes(deviceModel(name));
  if (OBJECT_TYPES.some((type) => type.name === name) || name.endsWith('-machine'))
    throw new BlockError('invalid', "Parameter 'typename' expects a non-abstract device type");
  throw new BlockError('device-not-found', `Device '${name}' not found`);
}

const TYPE_PROPERTY = { name: 'type', type: 'string' } as const;

function typeProperties({ properties }: ObjectType): Json[] {
  return [TYPE_PROPERTY, ...properties.map(({ name, qomType }) => ({ name, type: qomType }))];
}

function listProperties({ properties, children }: TreeObject): Json[] {
  const below = [...children].map(([name, { type }]) => ({ name, type: `child<${type}>` }));
  return [TYPE_PROPERTY, ...properties.map(({ name, type }) => ({ name, type })), ...below];
}

function getProperty(engine: TreeSource, path: string, property: string): JsonValue {
  const { object, path: full } = findObject(objectTree(engine), path);
  if (property === 'type') return object.type;
  // A child's value is its path.
  return object.children.has(property) ? `${full}/${property}` : object.get(property);
}

function setProperty(object: TreeObject, property: string, value: JsonValue): void | Promise<void> {
  if (property !== 'type') return object.set(property, value);
  throw new BlockError('invalid', `Property '${object.type}.type' is not writable`);
}

/** Types that only others stand on. */
const ABSTRACT: ReadonlyMap<string, string> = new Map([
  ['authz', 'object'],
  ['event-loop-base', 'object'],
  ['secret_common', 'object'],
  ['tls-creds', 'object'],
  ['user-creatable', 'interface'],
]);

function listTypes(base: string | undefined, abstract: boolean): Json[] {
  const concrete = OBJECT_TYPES.filter(({ name, parents }) =>
    [name, 'user-creatable', ...parents].includes(base ?? name),
  ).map(({ name, parents }) => ({ name, parent: parents[0] ?? 'object' }));
  if (!abstract) return concrete;
  const others = [...ABSTRACT]
    .filter(([name, parent]) =>
      [name, parent, isUserCreatable(name) ? 'user-creatable' : name].includes(base ?? name),
    )
    .map(([name, parent]) => ({ name, abstract: true, parent }));
  return [...concrete, ...others];
}

/** Of the abstract ones, QEMU calls these so. */
function isUserCreatable(name: string): boolean {
  return name === 'event-loop-base' || name === 'secret_common';
}
