import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { createImage } from '../../src/block/create.js';
import { filesBelow, findBackingImage } from '../../src/block/find-node.js';
import type { Node } from '../../src/block/node.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

test('only what the user has added and nobody uses is deleted', async (t) => {
  const bed = new EngineBed(t);
  await createImage(bed.engine.opener, bed.path('r'), 'raw', { sizeBytes: DISK_BYTES });
  const file = { driver: 'file', filename: bed.path('r') };
  await bed.engine.addNode({ ...file, 'node-name': 'f' });
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'r', file: 'f' });
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'f' }), 'Block device f is in use');
  await bed.execute('blockdev-del', { 'node-name': 'r' });
  await bed.execute('blockdev-del', { 'node-name': 'f' });
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'r', file });
  const { name } = bed.engine.graph.node('r').child('file').node;
  const words = `Node ${name} is not owned by the monitor`;
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': name }), words);
});

test('a node that is being closed is closed once, whoever names it meanwhile', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('low');
  await bed.image('top');
  await bed.execute('blockdev-del', { 'node-name': 'top' });
  const low = bed.engine.graph.node('low');
  const [flushed, close] = [deferred(), low.close.bind(low)];
  let closes = 0;
  low.close = async () => {
    closes++;
    await flushed.promise;
    await close();
  };
  const isGone = bed.execute('blockdev-del', { 'node-name': 'low' });
  while (closes === 0) await bed.engine.host.clock.macrotask();
  const file = { driver: 'file', filename: bed.path('top.qcow2') };
  const gone = { message: "Cannot find device='' nor node-name='low'" };
  for (const options of [
    { driver: 'qcow2', file, backing: 'low' },
    { driver: 'raw', file: 'low' },
    { driver: 'raw', file: { driver: 'raw', file: 'low' } },
  ])
    await assert.rejects(bed.engine.addNode({ ...options, 'node-name': 'top' }), gone);
  flushed.resolve();
  await isGone;
  assert.deepEqual([closes, [...bed.engine.graph.nodes.keys()]], [1, []]);
});

test('change-backing-file rewrites what a header says, also of a layer below the disk', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  const change = { device: 'C', 'image-node-name': 'B', 'backing-file': 'other.qcow2' };
  await bed.execute('change-backing-file', change);
  const { graph } = bed.engine;
  assert.deepEqual(graph.node('B').instance.backing, { filename: 'other.qcow2', format: 'qcow2' });
  assert.equal(graph.node('B').readOnly, true);
  const nodes = (await bed.execute('query-named-block-nodes', { flat: true })) as JsonObject[];
  const { image, backing_file: told } = nodes.find((node) => node['node-name'] === 'B') ?? {};
  assert.deepEqual(
    [told, (image as JsonObject)['backing-filename'], (image as JsonObject)['full-backing-filename']],
    [bed.path('A.qcow2'), 'other.qcow2', bed.path('other.qcow2')],
  );
  assert.deepEqual(await bed.layers(), ['C', 'B', 'A']);
  await bed.image('spare');
  await bed.snapshot('spare', 'lost');
  const filename = bed.path('lost.qcow2');
  await bed.engine.addNode({
    ...{ driver: 'qcow2', 'node-name': 'lost', file: { driver: 'file', filename }, backing: 'spare' },
  });
  for (const [name, words] of [
    ['A', 'not allowing backing file change on an image without a backing file'],
    ['lost', "'C' and image file are not in the same chain"],
  ])
    assert.equal(
      await bed.refusal('change-backing-file', { ...change, 'image-node-name': name ?? '' }),
      words,
    );
  await bed.execute('block-stream', { device: 'B', 'job-id': 's', 'auto-finalize': false });
  // As in QEMU a job below the disk keeps nobody from the header; the job has the last word.
  await bed.execute('change-backing-file', { ...change, 'backing-file': 'third.qcow2' });
  assert.deepEqual(graph.node('B').instance.backing, { filename: 'third.qcow2', format: 'qcow2' });
  while (bed.engine.jobs.find('s')?.status !== 'pending') await bed.engine.host.clock.macrotask();
  await bed.execute('job-finalize', { id: 's' });
  await bed.engine.jobs.find('s')?.concluded;
  assert.equal(graph.node('B').instance.backing, undefined);
  assert.deepEqual(await bed.layers(), ['C', 'B']);
});

test('a concluded amend job keeps its node until it is dismissed', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.execute('x-blockdev-amend', { 'job-id': 'j', 'node-name': 'A', options: { driver: 'qcow2' } });
  await bed.engine.jobs.find('j')?.concluded;
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'A' }), 'Block device A is in use');
  await bed.execute('job-dismiss', { id: 'j' });
  await bed.execute('blockdev-del', { 'node-name': 'A' });
});

test('of a window that is too long and no multiple of a sector the length is told', async (t) => {
  const bed = new EngineBed(t);
  writeFileSync(bed.path('r'), Buffer.alloc(MiB));
  const raw = { driver: 'raw', 'node-name': 'r', file: { driver: 'file', filename: bed.path('r') } };
  const words = /^The sum of offset \(512\) and size \(99999999\) has to be smaller/;
  await assert.rejects(bed.engine.addNode({ ...raw, offset: 512, size: 99999999 }), { message: words });
  const sector = { message: 'Specified size is not multiple of 512' };
  await assert.rejects(bed.engine.addNode({ ...raw, size: 513 }), sector);
});

test('blockdev-create makes what its options say, and keeps no node open', async (t) => {
  const bed = new EngineBed(t);
  const file = { driver: 'file', filename: bed.path('new') };
  await bed.execute('blockdev-create', { 'job-id': 'f', options: { ...file, size: 0 } });
  await bed.engine.jobs.find('f')?.concluded;
  const backing = { 'backing-file': '/base', 'backing-fmt': 'raw' };
  const options = { driver: 'qcow2', file, size: DISK_BYTES, ...backing };
  await bed.execute('blockdev-create', { 'job-id': 'q', options });
  await bed.engine.jobs.find('q')?.concluded;
  assert.deepEqual([...bed.engine.graph.nodes.keys()], []);
  const node = await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'n', file, backing: null });
  assert.deepEqual(node.instance.backing, { filename: '/base', format: 'raw' });
  await bed.execute('blockdev-create', { 'job-id': 'odd', options: { ...options, file: 'n', size: 100 } });
  await bed.engine.jobs.find('odd')?.concluded;
  assert.equal(bed.engine.jobs.find('odd')?.error, 'Image size must be a multiple of 512 bytes');
  const verb = await bed.refusal('block-job-cancel', { device: 'odd' });
  assert.equal(verb, "Block job 'odd' not found");
  assert.deepEqual(bed.events.filter(({ event }) => event !== 'JOB_STATUS_CHANGE'), []); // prettier-ignore
});

test('blockdev-create refuses what it cannot make, and what somebody uses', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const filename = bed.path('A.qcow2');
  const before = readFileSync(filename);
  const failure = async (options: JsonObject): Promise<string | undefined> => {
    await bed.execute('blockdev-create', { 'job-id': 'c', options });
    const job = bed.engine.jobs.find('c');
    await job?.concluded;
    await bed.execute('job-dismiss', { id: 'c' });
    return job?.error;
  };
  const file = { driver: 'file', filename };
  assert.equal(await failure({ ...file, size: 512 }), 'Failed to get "write" lock');
  assert.equal(await failure({ driver: 'qcow2', file, size: 512 }), 'Failed to get "write" lock');
  assert.deepEqual(readFileSync(filename), before);
  const raw = { driver: 'file', 'node-name': 'r', filename: bed.path('raw') };
  await failure({ driver: 'file', filename: bed.path('raw'), size: MiB });
  await bed.engine.addNode(raw);
  const format = { driver: 'qcow2', file: 'r', size: MiB, 'backing-fmt': 'qcow2' };
  assert.equal(await failure(format), 'Backing format cannot be used without backing file');
  assert.deepEqual(readFileSync(bed.path('raw')), Buffer.alloc(MiB));
  const huge = (size: bigint): Promise<string | undefined> =>
    failure({ driver: 'qcow2', file: 'r', size: size });
  const resize = 'Could not resize image';
  assert.equal(await huge(2n ** 63n), `${resize}: Image size cannot be negative`);
  assert.equal(
    await huge(2n ** 63n - 512n),
    `${resize}: offset(9223372036854775296) exceeds maximum(9223372035781033984)`,
  );
  assert.equal(await huge(2n ** 60n), `${resize}: Failed to grow the L1 table: File too large`);
  assert.deepEqual(readFileSync(bed.path('raw')), Buffer.alloc(MiB));
  const hugeFile = (size: bigint): Promise<string | undefined> =>
    failure({ driver: 'file', filename: bed.path('huge'), size });
  assert.equal(await hugeFile(2n ** 64n - 1n), 'Could not resize file: Invalid argument');
  assert.equal(await hugeFile(2n ** 62n), 'Could not resize file: File too large');
  const refusal = (options: JsonObject): Promise<string> =>
    bed.refusal('blockdev-create', { 'job-id': 'c', options });
  assert.equal(await refusal({ driver: 'raw' }), 'Driver does not support blockdev-create');
  assert.equal(await refusal({ driver: 'null-co' }), 'Driver does not support blockdev-create');
  assert.equal(await refusal({ driver: 'raw', size: MiB }), "Parameter 'options.size' is unexpected");
});

test('a node whose last flush fails is deleted as asked', async (t) => {
  const bed = new EngineBed(t);
  writeFileSync(bed.path('raw'), Buffer.alloc(MiB));
  const image = { driver: 'file', filename: bed.path('raw') };
  const failing = [{ event: 'none', iotype: 'flush', errno: 5 }];
  await bed.engine.addNode({ driver: 'blkdebug', 'node-name': 'd', image, 'inject-error': failing });
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'n', file: 'd' });
  assert.deepEqual(await bed.execute('blockdev-del', { 'node-name': 'n' }), {});
  assert.deepEqual([...bed.engine.graph.nodes.values()].filter(({ name }) => name === 'n'), []); // prettier-ignore
  assert.deepEqual(await bed.execute('blockdev-del', { 'node-name': 'd' }), {});
  assert.equal(bed.engine.graph.nodes.size, 0);
});

test('a layer is found by the name that its overlay has for it, by its path, however it is spelt', async (t) => {
  const bed = new EngineBed(t);
  const sizeBytes = DISK_BYTES;
  for (const folder of ['x', 'y', 'y/z']) mkdirSync(bed.path(folder));
  symlinkSync(bed.path('y/z'), bed.path('link'));
  await createImage(bed.engine.opener, bed.path('A'), 'qcow2', { sizeBytes });
  const backing = { backingFile: './A', backingFormat: 'qcow2' };
  await createImage(bed.engine.opener, bed.path('B'), 'qcow2', { sizeBytes, ...backing });
  const filename = bed.path('B');
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'B', file: { driver: 'file', filename } });
  const { graph } = bed.engine;
  const top = graph.node('B');
  const below = top.backingNode();
  assert.ok(below);
  const find = async (name: string): Promise<Node | undefined> =>
    findBackingImage(top, name, await filesBelow(graph, 'B', [name]));
  for (const name of ['./A', 'A', bed.path('A'), 'x/../A', bed.path('x/../A'), below.filename])
    assert.equal((await find(name))?.name, below.name, name);
  // Not what the text says, but what the file system does.
  for (const name of ['B', bed.path('B'), 'nbd://h/A', '../A', 'none/../A', 'link/../A'])
    assert.equal((await find(name))?.name, undefined, name);
});

test('a name that queries show means that image, not one that overlays above would see there', async (t) => {
  const bed = new EngineBed(t);
  mkdirSync(bed.path('z'));
  const make = (name: string, backingFile?: string): Promise<void> =>
    createImage(bed.engine.opener, bed.path(name), 'qcow2', {
      sizeBytes: DISK_BYTES,
      ...(backingFile !== undefined && { backingFile, backingFormat: 'qcow2' }),
    });
  await make('b');
  await make('z/b', '../b');
  await make('z/c', 'b');
  const filename = bed.path('z/c');
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'C', file: { driver: 'file', filename } });
  const bottom = bed.engine.graph.node('C').backingNode()?.backingNode();
  assert.equal(bottom?.filename, `${bed.path('z')}/../b`);
  const find = async (name: string): Promise<Node | undefined> => {
    const { graph } = bed.engine;
    return findBackingImage(graph.node('C'), name, await filesBelow(graph, 'C', [name]));
  };
  assert.equal(await find(bottom.filename), bottom);
  assert.equal(await find('z/../b'), undefined);
});

test('an image found broken is told, with the place', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.engine.close();
  const filename = bed.path('A.qcow2');
  const bytes = readFileSync(filename);
  const l1Offset = Number(bytes.readBigUInt64BE(40));
  const l2Offset = Number(bytes.readBigUInt64BE(l1Offset) % 2n ** 56n);
  bytes.writeBigUInt64BE(BigInt(l2Offset + 512), l1Offset);
  writeFileSync(filename, bytes);
  const fresh = new EngineBed(t);
  const options = { driver: 'qcow2', 'node-name': 'A', file: { driver: 'file', filename } };
  for (const readOnly of [true, false]) {
    fresh.events.length = 0;
    const node = await fresh.engine.addNode({ ...options, 'read-only': readOnly });
    await assert.rejects(node.io.readBuffer(0, Buffer.alloc(512)), { kind: 'corrupt', errno: 'EIO' });
    await assert.rejects(node.io.readBuffer(0, Buffer.alloc(512)), { kind: 'corrupt', errno: 'EIO' });
    const at = `0x${(l2Offset + 512).toString(16)}`;
    const data = {
      ...{ device: '', 'node-name': 'A', msg: `L2 table offset ${at} unaligned (L1 index: 0)` },
      fatal: !readOnly,
    };
    assert.deepEqual(fresh.events, [{ event: 'BLOCK_IMAGE_CORRUPTED', data }]);
    const order = fresh.events.flatMap((event) => Object.keys(event.data));
    assert.deepEqual(order, ['device', 'msg', 'node-name', 'fatal']);
    await fresh.execute('blockdev-del', { 'node-name': 'A' });
  }
  assert.match(
    await fresh.refusal('blockdev-add', options),
    /Image is corrupt; cannot be opened read\/write/,
  );
});

test('an engine that closes cancels its jobs', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.execute('block-stream', { device: 'B', 'job-id': 's', speed: 1 });
  await bed.engine.close();
  const { event } = bed.events.filter(({ data }) => data['device'] === 's').at(-1) ?? {};
  assert.equal(event, 'BLOCK_JOB_CANCELLED');
  assert.deepEqual([...bed.engine.graph.nodes.keys()], []);
});

test('an image that becomes ours is activated from its file upwards', async (t) => {
  const bed = new EngineBed(t, { incoming: true });
  await bed.image('A');
  const node = bed.engine.graph.node('A');
  const order: string[] = [];
  for (const [name, { instance }] of [
    ['format', node],
    ['file', node.child('file').node],
  ] as const) {
    const prepare = instance.prepareActivation?.bind(instance);
    assert.ok(prepare);
    instance.prepareActivation = (mayWrite) => {
      order.push(name);
      return prepare(mayWrite);
    };
  }
  await bed.engine.activate(node);
  await bed.engine.activate(node);
  assert.deepEqual(order, ['file', 'format']);
  assert.equal(node.activity, 'active');
});
