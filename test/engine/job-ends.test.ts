import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import type { BlockBackend } from '../../src/block/backend.js';
import { createImage } from '../../src/block/create.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { createRealHost } from '../../src/host/real.js';
import { FaultyHost } from '../kit/faulty-host.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

/** A read-only [A] <-- [B] below a writable [C], the disk; flushes of `failing` fail. */
async function chainWithFailingFlush(context: TestContext, failing: 'A' | 'B'): Promise<EngineBed> {
  const bed = new EngineBed(context);
  let below: string | undefined;
  for (const name of ['A', 'B', 'C']) {
    const filename = bed.path(`${name}.qcow2`);
    const backing =
      below === undefined ? {} : { backingFile: bed.path(`${below}.qcow2`), backingFormat: 'qcow2' };
    await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES, ...backing });
    const image = { driver: 'file', filename, 'auto-read-only': true };
    const debug = { driver: 'blkdebug', image, 'inject-error': [{ event: 'flush_to_disk' }] };
    await bed.engine.addNode({
      ...{ driver: 'qcow2', 'node-name': name, file: name === failing ? debug : image },
      ...{ 'read-only': name !== 'C', backing: below ?? null },
    });
    below = name;
  }
  await bed.device('C');
  return bed;
}

/** Of the job; the engine then closes, since nothing was written. */
async function assertNothingLeft({ engine }: EngineBed): Promise<void> {
  for (const node of engine.graph.nodes.values()) {
    assert.ok(!/commit_top|copy-on-read|mirror_top/.test(node.driver.name), node.driver.name);
    assert.ok(!node.isBlocked, node.name);
  }
  assert.deepEqual(
    [...engine.graph.backends].map(({ description }) => description).filter((d) => / job /.test(d)),
    [],
  );
  await engine.close();
  assert.equal(engine.graph.nodes.size, 0);
}

test('a stream with nothing to copy has nothing to do, and its end can be left to the user', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const manual = { 'auto-finalize': false, 'auto-dismiss': false };
  await bed.execute('block-stream', { device: 'B', 'base-node': 'A', 'job-id': 's', ...manual });
  while (bed.engine.jobs.find('s')?.status !== 'pending') await bed.engine.host.clock.macrotask();
  const notPaused = "Can't resume a job that was not paused";
  assert.equal(await bed.refusal('job-resume', { id: 's' }), notPaused);
  await bed.execute('job-finalize', { id: 's' });
  const { len, offset } = await bed.event('BLOCK_JOB_COMPLETED', 's');
  assert.deepEqual({ len, offset }, { len: 0, offset: 0 });
  assert.equal(await bed.refusal('job-resume', { id: 's' }), notPaused);
  await bed.execute('job-dismiss', { id: 's' });
});

test('a base whose file the user keeps read-only is not written by jobs', async (t) => {
  const bed = new EngineBed(t);
  for (const [name, backing] of [['A'], ['B', 'A'], ['C', 'B']] as const) {
    const filename = bed.path(`${name}.qcow2`);
    const below =
      backing === undefined ? {} : { backingFile: bed.path(`${backing}.qcow2`), backingFormat: 'qcow2' };
    await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES, ...below });
    const readOnly = { 'read-only': name !== 'C' };
    const file = { driver: 'file', filename, ...readOnly };
    await bed.engine.addNode({
      driver: 'qcow2',
      'node-name': name,
      file,
      backing: backing ?? null,
      ...readOnly,
    });
  }
  await bed.device('C');
  const commit = { device: 'C', 'top-node': 'B', 'base-node': 'A', 'job-id': 'j' };
  assert.equal(await bed.refusal('block-commit', commit), 'Block node is read-only');
  assert.equal(await bed.refusal('block-stream', { device: 'B', 'job-id': 'j' }), 'Block node is read-only');
  assert.ok(![...bed.engine.graph.nodes.values()].some((node) => node.isBlocked || node.isFilter));
});

test('a base that cannot grow ends its commit, in the words of the errno', async (t) => {
  for (const isActive of [true, false]) {
    const bed = new EngineBed(t);
    await createImage(bed.engine.opener, bed.path('A'), 'raw', { sizeBytes: DISK_BYTES / 2 });
    const file = { driver: 'file', filename: bed.path('A') };
    await bed.engine.addNode({ driver: 'raw', 'node-name': 'A', file, size: DISK_BYTES / 2 });
    await bed.image('B', { backing: 'A' });
    await bed.image('C', { backing: 'B' });
    await bed.device('C');
    const commit = { device: 'C', 'base-node': 'A', 'job-id': 'j', ...(!isActive && { 'top-node': 'B' }) };
    await bed.execute('block-commit', commit);
    assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], 'Operation not supported');
  }
});

test('a stream hears of errors that are injected where its backing file is read', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.engine.close();
  const fresh = new EngineBed(t);
  const image = { driver: 'file', filename: bed.path('A.qcow2') };
  const base = { driver: 'blkdebug', image, 'inject-error': [{ event: 'read_aio' }] };
  await fresh.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file: base, 'read-only': true });
  const file = { driver: 'file', filename: bed.path('B.qcow2') };
  await fresh.engine.addNode({ driver: 'qcow2', 'node-name': 'B', file, backing: 'A' });
  await fresh.execute('block-stream', { device: 'B', 'job-id': 's' });
  assert.equal((await fresh.event('BLOCK_JOB_COMPLETED', 's'))['error'], 'Input/output error');
});

test('a full backup that ends early leaves in its bitmap what the target lacks', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('spare');
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'bits' });
  await bed.execute('blockdev-backup', {
    ...{ device: 'A', target: 'spare', 'job-id': 'b', sync: 'full', speed: MiB },
    ...{ bitmap: 'bits', 'bitmap-mode': 'always' },
  });
  const progress = (): number => Number(bed.engine.jobs.find('b')?.jobInfo()['current-progress']);
  while (progress() === 0) await bed.engine.host.clock.macrotask();
  await bed.execute('job-cancel', { id: 'b' });
  const { offset } = await bed.event('BLOCK_JOB_CANCELLED', 'b');
  assert.equal(bed.engine.graph.node('A').findBitmap('bits')?.dirtyBytes, DISK_BYTES - Number(offset));
});

test('a full drive-mirror to a device that was there before leaves nothing of what it held', async (t) => {
  const there = new EngineBed(t);
  const filename = there.path('device.raw');
  writeFileSync(filename, Buffer.alloc(DISK_BYTES, 0x55));
  await there.engine.addNode({ driver: 'raw', 'node-name': 'device', file: { driver: 'file', filename } });
  const path = there.path('nbd.sock');
  await there.execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  await there.execute('nbd-server-add', { device: 'device', writable: true });
  const bed = new EngineBed(t);
  await bed.chain('A');
  const target = `nbd+unix:///device?socket=${path}`;
  await bed.execute('drive-mirror', { device: 'A', target, 'job-id': 'm', sync: 'full', format: 'raw' });
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('block-job-cancel', { device: 'm' });
  await bed.event('BLOCK_JOB_COMPLETED', 'm');
  const expected = Buffer.concat([Buffer.alloc(4 * MiB, 0x11), Buffer.alloc(DISK_BYTES - 4 * MiB)]);
  assert.ok(readFileSync(filename).equals(expected));
});

test('a filter that a user has named is busy like the nodes of its job', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.image('spare');
  const mirror = { device: 'B', target: 'spare', 'job-id': 'm', sync: 'full', 'filter-node-name': 'f' };
  await bed.execute('blockdev-mirror', mirror);
  const busy = "Node 'f' is busy: block device is in use by block job: mirror";
  const grown = { 'node-name': 'f', size: 2 * DISK_BYTES };
  assert.equal(await bed.refusal('block_resize', grown), "Device '(null)' is in use");
  const overlay = { 'node-name': 'f', 'snapshot-file': bed.path('x'), 'snapshot-node-name': 'x' };
  assert.equal(await bed.refusal('blockdev-snapshot-sync', overlay), busy);
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'f' }), 'Node f is in use');
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'spare' }), 'Node spare is in use');
  const second = { device: 'f', 'job-id': 's' };
  assert.equal(await bed.refusal('block-stream', second), busy);
  assert.equal(await bed.refusal('blockdev-backup', { ...second, target: 'A', sync: 'full' }), busy);
  await bed.execute('job-cancel', { id: 'm' });
});

test('a stream whose node cannot become read-only again leaves the graph', async (t) => {
  const bed = await chainWithFailingFlush(t, 'B');
  await bed.execute('block-stream', { device: 'B', 'job-id': 's' });
  await bed.event('BLOCK_JOB_COMPLETED', 's');
  await assertNothingLeft(bed);
});

test('a commit whose base cannot become read-only again leaves the graph', async (t) => {
  const bed = await chainWithFailingFlush(t, 'A');
  await bed.execute('block-commit', { device: 'C', 'top-node': 'B', 'base-node': 'A', 'job-id': 'c' });
  await bed.event('BLOCK_JOB_COMPLETED', 'c');
  await assertNothingLeft(bed);
});

test('a pivot that fails leaves the backing file closed that it had opened for the target', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const base = bed.path('base.qcow2');
  const target = bed.path('copy.qcow2');
  await createImage(bed.engine.opener, base, 'qcow2', { sizeBytes: DISK_BYTES });
  const backing = { backingFile: base, backingFormat: 'qcow2' };
  await createImage(bed.engine.opener, target, 'qcow2', { sizeBytes: DISK_BYTES, ...backing });
  const mirror = { device: 'A', target, 'job-id': 'm', sync: 'top', mode: 'existing', 'node-name': 'copy' };
  await bed.execute('drive-mirror', mirror);
  await bed.event('BLOCK_JOB_READY', 'm');
  const { graph } = bed.engine;
  // Two users that get along with the mirror, not with each other.
  const user = (perm: number, shared: number): BlockBackend =>
    graph.createBackend({ description: 'a user', perm, shared });
  const ofCopy = user(Permission.writeUnchanged, ALL_PERMISSIONS);
  const ofDisk = user(Permission.consistentRead, ALL_PERMISSIONS - Permission.writeUnchanged);
  const device = bed.engine.devices.get('virtio0');
  assert.ok(device);
  await graph.transaction((transaction) => {
    transaction.attach(ofCopy, 'root', graph.node('copy'));
    transaction.attach(ofDisk, 'root', device.backend.node);
  });
  const lines: string[] = [];
  graph.onDriverLine = (line) => void lines.push(line);
  await bed.execute('job-complete', { id: 'm' });
  const { error } = await bed.event('BLOCK_JOB_COMPLETED', 'm');
  assert.equal(error, 'Operation not permitted');
  assert.match(lines.join(), /^Permission conflict on node/);
  assert.ok(![...graph.nodes.values()].some(({ filename }) => filename === base));
  await graph.transaction((transaction) => {
    for (const { root } of [ofCopy, ofDisk]) if (root) transaction.detach(root);
  });
  await graph.collect([graph.node('copy')]);
});

test('a job that has no place is announced only where QEMU announces it', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.image('spare');
  const base = { device: 'B', 'job-id': 'j', 'filter-node-name': 'A' };
  const duplicate = "Duplicate nodes with node-name='A'";
  const to = { target: 'spare', sync: 'full' };
  assert.equal(await bed.refusal('block-stream', base), `Could not create node: ${duplicate}`);
  assert.equal(
    await bed.refusal('blockdev-backup', { ...base, ...to }),
    `Could not create node: ${duplicate}`,
  );
  assert.equal(await bed.refusal('blockdev-mirror', { ...base, ...to }), duplicate);
  assert.deepEqual(bed.events, []);
  const slow = { device: 'B', 'job-id': 'j', speed: -1 };
  for (const command of ['block-stream', 'blockdev-backup', 'blockdev-mirror']) {
    await bed.refusal(command, command === 'block-stream' ? slow : { ...slow, ...to });
    assert.deepEqual(
      bed.events.splice(0).map(({ data }) => data['status']),
      ['created', 'null'],
      command,
    );
  }
});

test('a commit whose base somebody else reads is announced only below the active layer', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  const reader = new EngineBed(t);
  const file = { driver: 'file', filename: bed.path('A.qcow2') };
  await reader.engine.addNode({ driver: 'qcow2', 'node-name': 'A', 'read-only': true, file });
  const commit = { device: 'C', 'base-node': 'A', 'job-id': 'j' };
  bed.events.splice(0);
  const told = (): unknown[] => bed.events.splice(0).map(({ data }) => data['status']);
  for (const named of [{}, { 'filter-node-name': 'filter' }]) {
    assert.equal(await bed.refusal('block-commit', { ...commit, ...named }), 'Failed to get "write" lock');
    assert.deepEqual(told(), []);
  }
  assert.equal(
    await bed.refusal('block-commit', { ...commit, 'top-node': 'B' }),
    'Failed to get "write" lock',
  );
  assert.deepEqual(told(), ['created', 'null']);
  await reader.engine.close();
  await bed.execute('block-commit', commit);
  await bed.event('BLOCK_JOB_READY', 'j');
});

test('a backup whose filter has no place is not announced, though nobody uses its source', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('spare');
  await bed.image('other');
  await bed.execute('blockdev-backup', { device: 'A', target: 'spare', 'job-id': 'j', sync: 'none' });
  const onto = { device: 'other', target: 'A', 'job-id': 'k', sync: 'full' };
  assert.match(await bed.refusal('blockdev-backup', onto), /^Could not create node: Permission conflict/);
  assert.deepEqual(
    bed.events.filter(({ data }) => data['id'] === 'k'),
    [],
  );
});

test('a file that the user has added keeps its own say on what it is opened for', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.engine.close();
  const fresh = new EngineBed(t);
  const file = { driver: 'file', 'auto-read-only': true };
  await fresh.engine.addNode({ ...file, 'node-name': 'a-file', filename: bed.path('A.qcow2') });
  await fresh.engine.addNode({
    ...file,
    ...{ 'node-name': 'b-file', filename: bed.path('B.qcow2'), 'read-only': true },
  });
  await fresh.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file: 'a-file', 'read-only': true });
  await fresh.engine.addNode({
    driver: 'qcow2',
    'node-name': 'B',
    file: 'b-file',
    'read-only': true,
    backing: 'A',
  });
  assert.equal(
    await fresh.refusal('block-stream', { device: 'B', 'job-id': 's' }),
    'Block node is read-only',
  );
  await fresh.execute('block-stream', { device: 'A', 'job-id': 's' });
  await fresh.event('BLOCK_JOB_COMPLETED', 's');
  assert.equal(fresh.engine.graph.node('A').readOnly, true);
  assert.equal(fresh.engine.graph.node('a-file').readOnly, false);
});

test('jobs that wait to be dismissed are gone when the engine is closed', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('spare');
  const job = { device: 'A', target: 'spare', 'job-id': 'b', sync: 'full', 'auto-dismiss': false };
  await bed.execute('blockdev-backup', job);
  await bed.event('BLOCK_JOB_COMPLETED', 'b');
  await bed.engine.close();
  const states = bed.events.filter(({ event }) => event === 'JOB_STATUS_CHANGE');
  assert.deepEqual(
    states.slice(-2).map(({ data }) => data['status']),
    ['concluded', 'null'],
  );
  assert.deepEqual(bed.engine.jobs.list(), []);
});

test('a stream that a person starts has the name of its node', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const answer = await bed.execute('human-monitor-command', { 'command-line': 'block_stream B' });
  assert.equal(answer, '');
  await bed.event('BLOCK_JOB_COMPLETED', 'B');
});

test('an image that was only read has nothing to lose: its end is no failure, one that was written fails', async (t) => {
  for (const isWritten of [false, true]) {
    const bed = new EngineBed(t);
    await bed.image('spare');
    await bed.execute('blockdev-del', { 'node-name': 'spare' });
    const image = { driver: 'file', filename: bed.path('spare.qcow2') };
    const failing = [{ event: 'none', iotype: 'flush', errno: 5 }];
    const file = { driver: 'blkdebug', image, 'inject-error': failing };
    await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
    await bed.execute('human-monitor-command', { 'command-line': `qemu-io A "read 0 64k"` });
    if (isWritten) await bed.execute('human-monitor-command', { 'command-line': `qemu-io A "write 0 64k"` });
    if (isWritten) await assert.rejects(bed.engine.close(), { errno: 'EIO' });
    else await bed.engine.close();
  }
});

test('the target of a disk that nobody uses is closed when the mirror has pivoted', async (t) => {
  for (const command of ['drive-mirror', 'blockdev-mirror'] as const) {
    const bed = new EngineBed(t);
    await bed.image('A');
    await bed.image('T');
    const isDrive = command === 'drive-mirror';
    if (isDrive) await bed.execute('blockdev-del', { 'node-name': 'T' });
    const target = isDrive ? bed.path('T.qcow2') : 'T';
    const how = isDrive ? { mode: 'existing', format: 'qcow2' } : {};
    await bed.execute(command, { device: 'A', target, sync: 'full', 'job-id': 'j', ...how });
    await bed.event('BLOCK_JOB_READY', 'j');
    await bed.execute('job-complete', { id: 'j' });
    await bed.event('BLOCK_JOB_COMPLETED', 'j');
    await bed.engine.jobs.find('j')?.concluded;
    await bed.execute('blockdev-del', { 'node-name': 'A' });
    // What the user has added stays.
    const left = [...bed.engine.graph.nodes.values()].filter(({ driver }) => driver.name === 'qcow2');
    assert.deepEqual(
      left.map(({ name }) => name),
      isDrive ? [] : ['T'],
    );
  }
});

/** Runs `fail` when the job has nothing left to do but to end, and lets it end then; answers its error. */
async function endAfter(bed: EngineBed, fail: () => void): Promise<string | undefined> {
  const job = bed.engine.jobs.find('j');
  assert.ok(job);
  while (job.status !== 'pending') {
    if (job.isReady) job.complete();
    await bed.engine.host.clock.macrotask();
  }
  fail();
  await bed.execute('job-finalize', { id: 'j' });
  await job.concluded;
  return job.error;
}

const MANUAL = { 'job-id': 'j', 'auto-finalize': false };
const INCREMENT = { ...MANUAL, device: 'D', sync: 'incremental', bitmap: 'bits' };

/** A disk D, of which a bitmap has 1 MiB, on a host whose files fail as they are told to. */
async function trackedDisk(t: TestContext): Promise<{ bed: EngineBed; faulty: FaultyHost }> {
  const faulty = new FaultyHost(createRealHost());
  const bed = new EngineBed(t, { host: faulty.host });
  await bed.image('D');
  await bed.device('D');
  await bed.execute('block-dirty-bitmap-add', { node: 'D', name: 'bits' });
  await bed.guest('write -P 0x77 1M 1M');
  return { bed, faulty };
}

const dirtyBytesOf = (bed: EngineBed): number | undefined =>
  bed.engine.graph.node('D').findBitmap('bits')?.dirtyBytes;

test('a backup whose manifest cannot be written fails, and its bitmap stays as it was', async (t) => {
  const { bed, faulty } = await trackedDisk(t);
  await bed.image('T');
  const manifest = bed.path('manifest');
  await bed.execute('blockdev-backup', { ...INCREMENT, target: 'T', 'x-manifest': manifest });
  const fault = { op: 'write', file: 'manifest', errno: 'ENOSPC' } as const;
  assert.match((await endAfter(bed, () => faulty.faults.add(fault))) ?? '', /No space left/);
  assert.equal(dirtyBytesOf(bed), MiB);
  assert.equal(existsSync(manifest), false);
});

test('a backup whose target is durable has done well, however the target is closed', async (t) => {
  const { bed, faulty } = await trackedDisk(t);
  await createImage(bed.engine.opener, bed.path('T'), 'raw', { sizeBytes: DISK_BYTES });
  const target = { target: bed.path('T'), mode: 'existing', format: 'raw' };
  await bed.execute('drive-backup', { ...INCREMENT, ...target });
  const fault = { op: 'flush', file: 'T', errno: 'EIO' } as const;
  assert.equal(await endAfter(bed, () => faulty.faults.add(fault)), undefined);
  assert.ok(faulty.struck.has(fault));
  assert.equal(dirtyBytesOf(bed), 0);
  assert.equal(bed.engine.graph.nodes.size, 2);
});

test('a mirror that has moved the guest has done well, however its source is closed', async (t) => {
  const { bed, faulty } = await trackedDisk(t);
  await bed.image('T');
  const mirror = { device: 'D', target: 'T', sync: 'full' };
  await bed.execute('blockdev-mirror', { ...MANUAL, ...mirror });
  bed.engine.graph.node('D').monitorOwned = false;
  const fault = { op: 'flush', file: 'D.qcow2', errno: 'EIO' } as const;
  assert.equal(await endAfter(bed, () => faulty.faults.add(fault)), undefined);
  assert.ok(faulty.struck.has(fault));
  assert.deepEqual(await bed.layers(), ['T']);
  assert.equal(bed.engine.graph.find('D'), undefined);
});
