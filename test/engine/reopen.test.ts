import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { Json } from '../../src/block/driver.js';
import type { Node } from '../../src/block/node.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

type Options = { [key: string]: Json };

async function file(
  bed: EngineBed,
  name: string,
  format: 'raw' | 'qcow2',
  more: Options = {},
): Promise<Options> {
  const filename = bed.path(name);
  await createImage(bed.engine.opener, filename, format, { sizeBytes: DISK_BYTES });
  const options = { driver: 'file', 'node-name': name, filename, ...more };
  await bed.engine.addNode(options);
  return options;
}

function reopen(bed: EngineBed, ...options: JsonObject[]): Promise<unknown> {
  return bed.execute('blockdev-reopen', { options });
}

function nodeOf(bed: EngineBed, name: string): Node {
  const node = bed.engine.graph.nodes.get(name);
  assert.ok(node, name);
  return node;
}

const firstByte = async (node: Node): Promise<number> => {
  const buffer = Buffer.alloc(512);
  await node.io.readBuffer(0, buffer);
  return buffer[0] ?? -1;
};

test('all nodes are reopened or none, whatever is wrong with the last', async (context) => {
  const bed = new EngineBed(context);
  const below = await file(bed, 'f', 'raw');
  const raw = { driver: 'raw', 'node-name': 'r', file: 'f' };
  await bed.engine.addNode(raw);
  const changed = { ...raw, offset: MiB, 'read-only': true, 'detect-zeroes': 'on' };
  const before = nodeOf(bed, 'r').configuration;
  for (const [last, message] of [
    [{ ...below, filename: bed.path('other') }, "Cannot change the option 'filename'"],
    [{ ...below, 'node-name': 'nope' }, "Failed to find node with node-name='nope'"],
    [{ ...below, aio: 'native' }, "Cannot change the option 'aio'"],
  ] as const) {
    assert.equal(await bed.refusal('blockdev-reopen', { options: [changed, last] }), message);
    assert.deepEqual(nodeOf(bed, 'r').configuration, before);
    assert.equal(nodeOf(bed, 'r').lengthBytes, DISK_BYTES);
  }
  // One that only its driver finds wrong, after the other's has prepared.
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'second', file: { driver: 'null-co', size: 4096 } });
  const beyond = { driver: 'raw', 'node-name': 'second', file: '#', offset: 8192 };
  beyond.file = nodeOf(bed, 'second').child('file').node.name;
  assert.match(await bed.refusal('blockdev-reopen', { options: [changed, beyond] }), /^Offset \(8192\)/);
  assert.deepEqual(nodeOf(bed, 'r').configuration, before);
  assert.equal(nodeOf(bed, 'r').lengthBytes, DISK_BYTES);
  await reopen(bed, changed);
  assert.equal(nodeOf(bed, 'r').lengthBytes, DISK_BYTES - MiB);
  assert.equal(nodeOf(bed, 'r').readOnly, true);
});

test('what the guest wrote is there under every new way to be open, and it may write where it could', async (context) => {
  const bed = new EngineBed(context);
  const below = await file(bed, 'f', 'qcow2');
  const image = { driver: 'qcow2', 'node-name': 'q', file: 'f' };
  await bed.engine.addNode(image);
  await bed.device('q');
  for (const [i, more] of [
    { 'l2-cache-size': 65536 },
    { cache: { 'no-flush': true } },
    { 'detect-zeroes': 'on' },
    { 'refcount-cache-size': 65536, discard: 'unmap' },
    {},
  ].entries()) {
    await bed.guest(`write -P ${i + 1} ${i}M 1M`);
    await reopen(bed, { ...image, ...more }, { ...below, 'detect-zeroes': i % 2 === 0 ? 'on' : 'off' });
    for (let j = 0; j <= i; j++) await bed.guest(`read -P ${j + 1} ${j}M 1M`);
  }
  assert.match(
    await bed.refusal('blockdev-reopen', { options: [{ ...image, 'read-only': true }] }),
    /^Read-only block node 'q' cannot support read-write users$/,
  );
  await bed.guest('write -P 9 0 1M');
});

for (const [command, args] of [
  ['block-stream', { device: 'B' }],
  ['block-commit', { device: 'C', 'top-node': 'B', 'base-node': 'A' }],
  ['block-commit', { device: 'C', 'base-node': 'A' }],
] as const)
  test(`a node below itself is told as that also where a job keeps what is below: ${command} ${JSON.stringify(args)}`, async (context) => {
    const bed = new EngineBed(context);
    await bed.chain('A', 'B', 'C');
    await bed.image('other');
    await bed.execute(command, { 'job-id': 'j', ...args, speed: 1 });
    const below = { driver: 'qcow2', 'node-name': 'B', file: nodeOf(bed, 'B').child('file').node.name };
    for (const [backing, message] of [
      ['B', "Making 'B' a backing child of 'B' would create a cycle"],
      ['other', "Cannot change frozen 'backing' link from 'B' to 'A'"],
    ] as const)
      assert.equal(await bed.refusal('blockdev-reopen', { options: [{ ...below, backing }] }), message);
  });

test('an image whose file is another is read anew, and one that cannot be stays', async (context) => {
  const bed = new EngineBed(context);
  for (const name of ['one', 'two']) await file(bed, name, 'qcow2');
  await file(bed, 'noImage', 'raw');
  const image = { driver: 'qcow2', 'node-name': 'q', file: 'one' };
  await bed.engine.addNode(image);
  await bed.device('q');
  await bed.guest('write -P 1 0 64k');
  const wrong = await bed.refusal('blockdev-reopen', { options: [{ ...image, file: 'noImage' }] });
  assert.match(wrong, /not in qcow2 format/);
  await bed.guest('read -P 1 0 64k');
  await reopen(bed, { ...image, file: 'two' });
  await bed.guest('read -P 0 0 64k');
  await bed.guest('write -P 2 0 64k');
  await reopen(bed, image);
  await bed.guest('read -P 1 0 64k');
  await reopen(bed, { ...image, file: 'two' });
  await bed.guest('read -P 2 0 64k');
});

test('a node comes between two, and goes again', async (context) => {
  const bed = new EngineBed(context);
  await file(bed, 'f', 'qcow2');
  const image = { driver: 'qcow2', 'node-name': 'q', file: 'f' };
  await bed.engine.addNode(image);
  await bed.device('q');
  await bed.guest('write -P 1 0 64k');
  await bed.engine.addNode({ driver: 'blkdebug', 'node-name': 'filter', image: 'f' });
  await reopen(bed, { ...image, file: 'filter' });
  assert.equal(nodeOf(bed, 'q').child('file').node.name, 'filter');
  await bed.guest('write -P 2 64k 64k');
  await reopen(bed, image);
  await bed.execute('blockdev-del', { 'node-name': 'filter' });
  await bed.guest('read -P 1 0 64k');
  await bed.guest('read -P 2 64k 64k');
});

test('the window of a raw image moves, but not under who relies on its size', async (context) => {
  const bed = new EngineBed(context);
  await file(bed, 'f', 'raw');
  const raw = { driver: 'raw', 'node-name': 'r', file: 'f' };
  await bed.engine.addNode(raw);
  const node = nodeOf(bed, 'r');
  await bed.device('r');
  await bed.guest('write -P 7 1M 64k');
  await reopen(bed, { ...raw, offset: MiB, size: MiB });
  assert.equal(await firstByte(node), 7);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd.sock') } } });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'r' });
  const other = { options: [{ ...raw, offset: MiB }] };
  assert.match(
    await bed.refusal('blockdev-reopen', other),
    /^Cannot change the size of node 'r': .* relies on it$/,
  );
  await reopen(bed, { ...raw, offset: 0, size: MiB });
  assert.equal(await firstByte(node), 0);
});

test('a backing file that only its overlay used goes with its place', async (context) => {
  const bed = new EngineBed(context);
  await bed.image('base');
  const filename = bed.path('top.qcow2');
  const backing = { driver: 'qcow2', file: { driver: 'file', filename: bed.path('own.qcow2') } };
  for (const name of [filename, bed.path('own.qcow2')])
    await createImage(bed.engine.opener, name, 'qcow2', { sizeBytes: DISK_BYTES });
  const below = { driver: 'file', filename };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'top', file: below, backing });
  const nodes = bed.engine.graph.nodes.size;
  await reopen(bed, { driver: 'qcow2', 'node-name': 'top', file: below, backing: 'base' });
  assert.equal(bed.engine.graph.nodes.size, nodes - 2);
  await reopen(bed, { driver: 'qcow2', 'node-name': 'top', file: below, backing: null });
  assert.ok(bed.engine.graph.nodes.has('base'));
});

test('no node at all is reopened', async (context) => {
  const bed = new EngineBed(context);
  assert.deepEqual(await bed.execute('blockdev-reopen', { options: [] }), {});
});

for (const command of ['block-stream', 'block-commit'])
  test(`after ${command} options are those of the backing file that is left`, async (context) => {
    const bed = new EngineBed(context);
    const layer = (name: string): Options => ({
      ...{ driver: 'qcow2', 'node-name': name },
      file: { driver: 'file', 'node-name': `${name}-file`, filename: bed.path(name) },
    });
    for (const name of ['base', 'middle', 'top'])
      await createImage(bed.engine.opener, bed.path(name), 'qcow2', { sizeBytes: DISK_BYTES });
    const top = { ...layer('top'), backing: { ...layer('middle'), backing: layer('base') } };
    await bed.execute('blockdev-add', top);
    const what = command === 'block-stream' ? { 'base-node': 'base' } : { 'top-node': 'middle' };
    await bed.execute(command, { 'job-id': 'j', device: 'top', ...what });
    await bed.event('BLOCK_JOB_COMPLETED', 'j');
    assert.ok(!bed.engine.graph.nodes.has('middle'));
    await reopen(bed, { ...layer('top'), backing: { ...layer('base'), 'detect-zeroes': 'on' } });
    assert.equal(nodeOf(bed, 'base').modes.detectZeroes, 'on');
    const changed = { ...layer('top'), backing: { ...layer('base'), driver: 'raw' } };
    assert.equal(
      await bed.refusal('blockdev-reopen', { options: [changed] }),
      "Cannot change the option 'driver'",
    );
    await bed.execute('blockdev-del', { 'node-name': 'top' });
    assert.ok(!bed.engine.graph.nodes.has('base'));
  });

test('of several overlays the last that came is told to hold a node', async (context) => {
  const bed = new EngineBed(context);
  for (const name of ['base', 'one', 'two'])
    await bed.image(name, name === 'base' ? {} : { backing: 'base' });
  const held = (): Promise<string> => bed.refusal('blockdev-del', { 'node-name': 'base' });
  assert.equal(await held(), "Node 'base' is busy: node is used as backing hd of 'two'");
});
