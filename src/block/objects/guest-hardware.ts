import { HOST_MEMORY_POLICY } from '../../schema/objects.js';
import { arrayOf, bool, type JsonValue, size, str, type Type, uint32 } from '../../schema/types.js';
import { BlockError } from '../../base/error.js';
import { invalid, type ObjectType, type Property, type PropertyValues, UserObject } from './object.js';

/**
 * Objects that a machine has for its guest: its memory, and where its random numbers come from. No guest runs here, so they
 * take nothing; they are there for tools that make them with the machine, and ask for them.
 */

function property(name: string, qomType: string, type: Type<unknown>, initial?: JsonValue): Property {
  return { name, qomType, type: type as Type<JsonValue>, ...(initial === undefined ? {} : { initial }) };
}

const flag = (name: string, initial: boolean): Property => property(name, 'bool', bool, initial);

const memory = (type: string, isShared: boolean): readonly Property[] => [
  flag('share', isShared),
  {
    ...property('size', 'int', size),
    check(value) {
      if (value === 0) throw invalid(`property 'size' of ${type} doesn't take value '0'`);
    },
  },
  flag('dump', true),
  property('prealloc-threads', 'int', uint32, 1),
  flag('x-use-canonical-path-for-ramblock-id', false),
  property('policy', 'HostMemPolicy', HOST_MEMORY_POLICY, 'default'),
  flag('prealloc', false),
  flag('reserve', true),
  property('host-nodes', 'int', arrayOf(uint32), []),
  flag('merge', true),
];

function checkMemory({ policy = 'default', 'host-nodes': nodes = [] }: PropertyValues): void {
  const hasNodes = (nodes as JsonValue[]).length > 0;
  if (policy === 'default' && hasNodes)
    throw invalid(
      'host-nodes must be empty for policy default, or you should explicitly specify a policy other than default',
    );
  if (policy !== 'default' && !hasNodes)
    throw invalid(`host-nodes must be set for policy ${policy as string}`);
}

/** Its size stays what it was made with. */
class GuestMemory extends UserObject {
  override set(name: string, value: JsonValue): void {
    if (name === 'size') throw invalid(`cannot change property size of ${this.type.name} `);
    super.set(name, value);
  }
}

function memoryType(name: string, own: readonly Property[] = [], isShared = false): ObjectType {
  const type: ObjectType = {
    name,
    parents: ['memory-backend', 'object'],
    properties: [...memory(name, isShared), ...own],
    ofMachines: true,
    check: checkMemory,
    make: (id, values) => new GuestMemory(id, type, values),
  };
  return type;
}

const RNG_BUILTIN: ObjectType = {
  name: 'rng-builtin',
  parents: ['rng-backend', 'object'],
  properties: [flag('opened', true)],
  ofMachines: true,
  make: (id, values) => new UserObject(id, RNG_BUILTIN, values),
};

const RNG_RANDOM: ObjectType = {
  name: 'rng-random',
  parents: ['rng-backend', 'object'],
  properties: [flag('opened', true), property('filename', 'string', str, '/dev/urandom')],
  ofMachines: true,
  async make(id, values, { host }) {
    const path = (values['filename'] ?? '/dev/urandom') as string;
    if (!(await host.files.stat(path))) {
      const text = `Could not open '${path}': No such file or directory`;
      throw new BlockError('not-found', text, { errno: 'ENOENT', path });
    }
    return new UserObject(id, RNG_RANDOM, values);
  },
};

export const GUEST_HARDWARE: readonly ObjectType[] = [
  memoryType('memory-backend-ram'),
  memoryType('memory-backend-file', [
    flag('readonly', false),
    property('align', 'int', size, 0),
    flag('pmem', false),
    property('mem-path', 'string', str),
    flag('discard-data', false),
  ]),
  memoryType(
    'memory-backend-memfd',
    [flag('hugetlb', false), flag('seal', true), property('hugetlbsize', 'int', size, 0)],
    true,
  ),
  RNG_BUILTIN,
  RNG_RANDOM,
];
