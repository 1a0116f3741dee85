import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DEVICE_PROPERTIES } from '../../src/attach/device-properties.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { scratch } from '../kit/program.js';
import { type Command, converse, hasQemu, type Side } from './machine-side.js';

const skip = hasQemu ? false : 'not installed: qemu-system-x86_64';

interface Property {
  name: string;
  type: string;
}

/** What a list of properties says, but for what only QEMU has: descriptions, defaults, and its order. */
function types(answer: JsonValue | undefined): JsonValue | undefined {
  const list = (answer as { return?: Property[] } | undefined)?.return;
  if (!list) return answer;
  return list
    .filter(({ name }) => name !== 'x-endpoint')
    .map(({ name, type }) => `${name}: ${type}`)
    .sort();
}

test(
  'what devices may be given is told with the names and types of QEMU',
  { skip, timeout: 300_000 },
  async (t) => {
    const models = [
      ...Object.keys(DEVICE_PROPERTIES),
      ...['virtio-blk-pci-transitional', 'virtio-blk-pci-non-transitional', 'virtio-scsi-pci-transitional'],
      ...['nope', 'secret', 'pc-i440fx-7.2-machine', 'scsi-disk'],
    ];
    const commands = models.map((typename): Command => ['device-list-properties', { typename }]);
    const folder = scratch(t);
    const ours = await converse('ours', folder, [], commands);
    const theirs = await converse('theirs', folder, [], commands);
    for (const [i, model] of models.entries())
      assert.deepEqual(types(ours[i + 1]), types(theirs[i + 1]), model);
  },
);

test('machines tell what they may be given as QEMU', { skip, timeout: 300_000 }, async (t) => {
  const commands = ['none-machine', 'pc-i440fx-7.2-machine', 'nope-machine'].map((typename): Command => [
    'qom-list-properties',
    { typename },
  ]);
  const folder = scratch(t);
  const ours = await converse('ours', folder, [], commands);
  const theirs = await converse('theirs', folder, [], commands);
  for (const i of commands.keys()) assert.deepEqual(types(ours[i + 1]), types(theirs[i + 1]));
});

/** QEMU tells memory in no order. */
function byId(answer: JsonValue): JsonValue {
  const list = (answer as { return?: unknown }).return;
  if (!Array.isArray(list) || (list[0] as { id?: unknown } | undefined)?.id === undefined) return answer;
  return (list as Array<{ id: string }>).sort((a, b) => (a.id < b.id ? -1 : 1));
}

const add = (type: string, id: string, more: JsonObject = {}): Command => [
  'object-add',
  { 'qom-type': type, id, ...more },
];
const get = (id: string, property: string): Command => ['qom-get', { path: `/objects/${id}`, property }];

test(
  "a guest's memory and random numbers are objects as QEMU has them",
  { skip, timeout: 300_000 },
  async (t) => {
    const commands: Command[] = [
      add('memory-backend-ram', 'm', { size: 1048576 }),
      add('memory-backend-ram', 'none', { size: 0 }),
      add('memory-backend-ram', 'unsized'),
      add('memory-backend-ram', 'bound', { size: 4096, share: true, policy: 'bind', 'host-nodes': [0] }),
      add('memory-backend-ram', 'unbound', { size: 4096, policy: 'bind' }),
      add('memory-backend-ram', 'both', { size: 4096, 'host-nodes': [0] }),
      add('memory-backend-file', 'f', { size: 4096 }),
      add('memory-backend-file', 'f', { size: 4096, 'mem-path': 'FOLDER/memory', share: true }),
      add('memory-backend-memfd', 'd', { size: 4096, seal: true }),
      add('memory-backend-memfd', 'empty', { size: 0 }),
      add('rng-random', 'r'),
      add('rng-random', 'missing', { filename: '/nonexistent' }),
      add('rng-builtin', 'b'),
      ...'size policy host-nodes share merge dump prealloc prealloc-threads reserve'
        .split(' ')
        .map((property) => get('m', property)),
      ...'align pmem discard-data readonly mem-path'.split(' ').map((property) => get('f', property)),
      ...'hugetlb hugetlbsize seal'.split(' ').map((property) => get('d', property)),
      ...'filename opened'.split(' ').map((property) => get('r', property)),
      ['qom-set', { path: '/objects/m', property: 'size', value: 4096 }],
      ['qom-set', { path: '/objects/m', property: 'merge', value: false }],
      get('m', 'merge'),
      ['query-memdev'],
      ['object-del', { id: 'm' }],
      ['query-memdev'],
    ];
    const said = async (side: Side): Promise<JsonValue[]> =>
      (await converse(side, scratch(t), ['-M', 'none'], commands)).map(byId);
    assert.deepEqual(await said('ours'), await said('theirs'));
  },
);

test(
  "a device's disk becomes another node, by qom-set as with QEMU",
  { skip, timeout: 300_000 },
  async (t) => {
    const set = (path: string, property: string, value: JsonValue): Command => [
      'qom-set',
      { path: `/machine/peripheral/${path}`, property, value },
    ];
    const drive = (path: string): Command => [
      'qom-get',
      { path: `/machine/peripheral/${path}`, property: 'drive' },
    ];
    const commands: Command[] = [
      ['object-add', { 'qom-type': 'throttle-group', id: 'g' }],
      ['blockdev-add', { driver: 'throttle', 'node-name': 'filter', 'throttle-group': 'g', file: 'a' }],
      set('v', 'drive', 'filter'),
      drive('v'),
      drive('v/virtio-backend'),
      ['blockdev-del', { 'node-name': 'filter' }],
      set('v/virtio-backend', 'drive', 'a'),
      drive('v'),
      ['blockdev-del', { 'node-name': 'filter' }],
      set('v', 'drive', 'b'),
      ['blockdev-del', { 'node-name': 'a' }],
      ...['nope', '', 5].map((value) => set('v', 'drive', value)),
      set('v', 'serial', 'x'),
      set('v/virtio-backend', 'serial', 'x'),
      set('v', 'nope', 'x'),
      set('s', 'drive', 'b'),
      drive('s'),
    ];
    const nodes = ['a', 'b', 'c'].flatMap((name) => [
      '-blockdev',
      `null-co,size=1M,read-zeroes=on,node-name=${name}`,
    ]);
    const devices = ['virtio-blk-pci,id=v,drive=a', 'virtio-scsi-pci', 'scsi-hd,id=s,drive=c'];
    const args = [...nodes, ...devices.flatMap((device) => ['-device', device])];
    const ours = await converse('ours', scratch(t), args, commands);
    assert.deepEqual(ours, await converse('theirs', scratch(t), args, commands));
  },
);
