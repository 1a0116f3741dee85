import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { FaultyHost } from '../kit/faulty-host.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';
import type { JsonObject } from '../../src/schema/types.js';

/** What the guest wrote into the chain A, B, C. */
async function assertContent(bed: EngineBed): Promise<void> {
  await bed.guest('read -P 0x11 0 1M');
  await bed.guest('read -P 0x21 1M 1M');
  await bed.guest('read -P 0x22 2M 1M');
  await bed.guest('read -P 0x11 3M 1M');
  await bed.guest('read -P 0 4M 4M');
}

test('snapshots grow the chain, print what QEMU prints, and query-block tells it', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  assert.deepEqual(await bed.layers(), ['C', 'B', 'A']);
  assert.match(
    bed.printed.join('\n'),
    /^Formatting '.*B\.qcow2', fmt=qcow2 cluster_size=65536 .*backing_file=/m,
  );
  const [disk] = (await bed.execute('query-block')) as JsonObject[];
  const inserted = disk?.['inserted'] as JsonObject;
  assert.equal(inserted['node-name'], 'C');
  assert.equal(inserted['backing_file_depth'], 2);
  assert.equal((inserted['image'] as JsonObject)['virtual-size'], DISK_BYTES);
  await assertContent(bed);
});

test('stream pulls everything up, and the chain is one image', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.execute('block-stream', { device: 'C', 'job-id': 'j' });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
  assert.deepEqual(await bed.layers(), ['C']);
  await assertContent(bed);
});

test('commit of a middle layer and of the active layer', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.execute('block-commit', { device: 'C', 'job-id': 'j', top: bed.path('B.qcow2') });
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  assert.deepEqual(await bed.layers(), ['C', 'A']);
  await bed.execute('block-commit', { device: 'C', 'job-id': 'k' });
  await bed.event('BLOCK_JOB_READY', 'k');
  await bed.execute('block-job-complete', { device: 'k' });
  await bed.event('BLOCK_JOB_COMPLETED', 'k');
  assert.deepEqual(await bed.layers(), ['A']);
  await assertContent(bed);
});

test('a full mirror into a new image pivots to it and leaves no backing file', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  const target = bed.path('E.qcow2');
  await bed.execute('drive-mirror', { device: 'C', 'job-id': 'm', target, sync: 'full', 'node-name': 'E' });
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('block-job-complete', { device: 'm' });
  await bed.event('BLOCK_JOB_COMPLETED', 'm');
  assert.deepEqual(await bed.layers(), ['E']);
  await assertContent(bed);
  assert.ok(!bed.engine.graph.nodes.has('C'), 'the old disk is closed');
});

test('a mirror copies an image whose clusters lie in any order', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.snapshot('A', 'B');
  const clusters = Array.from({ length: 32 }, (_, i) => (i * 13) % 32);
  for (const at of clusters) await bed.guest(`write -P ${at + 1} ${at * 64}k 64k`);
  const target = bed.path('E.qcow2');
  await bed.execute('drive-mirror', { device: 'B', 'job-id': 'm', target, sync: 'full', 'node-name': 'E' });
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('block-job-complete', { device: 'm' });
  await bed.event('BLOCK_JOB_COMPLETED', 'm');
  assert.deepEqual(await bed.layers(), ['E']);
  for (const at of clusters) await bed.guest(`read -P ${at + 1} ${at * 64}k 64k`);
  await bed.guest('read -P 0x11 2M 2M');
});

test('a mirror of the top goes onto the same backing file', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  const target = bed.path('E.qcow2');
  await bed.execute('drive-mirror', { device: 'C', 'job-id': 'm', target, sync: 'top', 'node-name': 'E' });
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('block-job-complete', { device: 'm' });
  await bed.event('BLOCK_JOB_COMPLETED', 'm');
  assert.deepEqual(await bed.layers(), ['E', 'B', 'A']);
  await assertContent(bed);
});

test('a backup holds the moment of its start, whatever the guest writes', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const args = { device: 'B', 'job-id': 'b', target: bed.path('copy.qcow2'), sync: 'full', speed: 65536 };
  await bed.execute('drive-backup', args);
  await bed.guest('write -P 0x77 0 3M');
  await bed.guest('write -P 0x77 4M 4M');
  // The job has a quarter of a minute's work left at this speed.
  await bed.execute('block-job-set-speed', { device: 'b', speed: 0 });
  await bed.event('BLOCK_JOB_COMPLETED', 'b');
  const file = { driver: 'file', filename: bed.path('copy.qcow2') };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'copy', file, 'read-only': true });
  const before = bed.printed.length;
  for (const command of ['read -P 0x11 0 1M', 'read -P 0x21 1M 1M', 'read -P 0x11 2M 2M', 'read -P 0 4M 4M'])
    await bed.execute('human-monitor-command', { 'command-line': `qemu-io copy "${command}"` });
  assert.doesNotMatch(bed.printed.slice(before).join('\n'), /failed/);
});

test('the overlay of a node without users is made, and stays open only for the rest of its transaction', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  const overlay = (name: string): JsonObject => ({
    ...{ 'node-name': 'A', 'snapshot-file': bed.path(`${name}.qcow2`), 'snapshot-node-name': name },
  });
  await bed.execute('blockdev-snapshot-sync', overlay('B'));
  assert.deepEqual([...bed.engine.graph.nodes.keys()].length, 2);
  assert.match(await bed.refusal('block-stream', { device: 'B', 'job-id': 's' }), /Cannot find device='B'/);
  const bitmap = { type: 'block-dirty-bitmap-add', data: { node: 'C', name: 'bits' } };
  const snapshot = { type: 'blockdev-snapshot-sync', data: overlay('C') };
  await bed.execute('transaction', { actions: [snapshot, bitmap] });
  assert.ok(!bed.engine.graph.nodes.has('C'));
});

test('a transaction that fails takes back what was done before', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const snapshot = { 'node-name': 'B', 'snapshot-file': bed.path('C.qcow2'), 'snapshot-node-name': 'C' };
  const actions = [
    { type: 'block-dirty-bitmap-add', data: { node: 'B', name: 'bits' } },
    { type: 'blockdev-snapshot-sync', data: snapshot },
    { type: 'abort', data: {} },
  ];
  assert.equal(await bed.refusal('transaction', { actions }), 'Transaction aborted using Abort action');
  assert.deepEqual(await bed.layers(), ['B', 'A']);
  assert.equal(bed.engine.graph.node('B').dirtyBitmaps.length, 0);
  await bed.guest('write -P 0x55 0 64k');
  assert.deepEqual(await bed.execute('transaction', { actions: actions.slice(0, 2) }), {});
  assert.deepEqual(await bed.layers(), ['C', 'B', 'A']);
  await bed.guest('read -P 0x55 0 64k');
});

test('a backup of a transaction that fails is announced and withdrawn, and never runs', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.image('spare');
  const backup = { device: 'B', target: 'spare', 'job-id': 'b', sync: 'full' };
  const actions = [
    { type: 'blockdev-backup', data: backup },
    { type: 'abort', data: {} },
  ];
  await bed.refusal('transaction', { actions });
  const statuses = bed.events.map(({ event, data }) =>
    event === 'JOB_STATUS_CHANGE' ? data['status'] : event,
  );
  assert.deepEqual(statuses, ['created', 'aborting', 'concluded', 'null']);
  assert.ok(![...bed.engine.graph.nodes.values()].some((node) => node.isBlocked || node.isFilter));
  await bed.execute('transaction', { actions: actions.slice(0, 1) });
  await bed.event('BLOCK_JOB_COMPLETED', 'b');
});

test('a transaction with a backup fails while a mirror takes over', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  for (let turns = 0; turns < 10; turns++) {
    const [disk = ''] = await bed.layers();
    await bed.image(`copy${turns}`);
    await bed.image(`spare${turns}`);
    await bed.image(`other${turns}`);
    const mirror = { device: disk, target: `copy${turns}`, 'job-id': `m${turns}`, sync: 'full' };
    await bed.execute('blockdev-mirror', mirror);
    await bed.event('BLOCK_JOB_READY', `m${turns}`);
    const backup = { device: `other${turns}`, target: `spare${turns}`, 'job-id': `b${turns}`, sync: 'full' };
    await bed.execute('job-complete', { id: `m${turns}` });
    for (let i = 0; i < turns; i++) await Promise.resolve();
    const actions = [
      { type: 'blockdev-backup', data: backup },
      { type: 'abort', data: {} },
    ];
    await bed.refusal('transaction', { actions });
    await bed.event('BLOCK_JOB_COMPLETED', `m${turns}`);
    assert.deepEqual(await bed.layers(), [`copy${turns}`]);
  }
});

test('bitmap actions in a transaction are taken back one by one', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'bits', granularity: 65536 });
  await bed.guest('write -P 1 0 128k');
  const bits = { node: 'A', name: 'bits' };
  for (const type of ['clear', 'disable', 'remove']) {
    const actions = [
      { type: `block-dirty-bitmap-${type}`, data: bits },
      { type: 'abort', data: {} },
    ];
    await bed.refusal('transaction', { actions });
    const bitmap = bed.engine.graph.node('A').findBitmap('bits');
    assert.equal(bitmap?.dirtyBytes, 128 * 1024, type);
    assert.equal(bitmap.enabled, true, type);
  }
});

test('a full drive-mirror copies again no more than the granularity that was asked for', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.execute('drive-mirror', {
    ...{ device: 'A', 'job-id': 'm', target: bed.path('copy.qcow2'), format: 'qcow2' },
    ...{ sync: 'full', granularity: 4096 },
  });
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('job-pause', { id: 'm' });
  await bed.guest('write -P 0x44 6M 4k');
  const [job] = (await bed.execute('query-block-jobs')) as [{ len: number; offset: number }];
  assert.equal(job.len - job.offset, 4096);
});

test('incremental backup copies only what was written since', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'bits' });
  await bed.guest('write -P 0x33 6M 64k');
  await bed.execute('drive-backup', {
    ...{ device: 'A', 'job-id': 'i', target: bed.path('inc.qcow2'), format: 'qcow2' },
    ...{ sync: 'incremental', bitmap: 'bits' },
  });
  const { len } = await bed.event('BLOCK_JOB_COMPLETED', 'i');
  assert.equal(len, 65536);
  assert.equal(bed.engine.graph.node('A').findBitmap('bits')?.dirtyBytes, 0);
});

test('nodes in use are not deleted, and who uses them is told', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'B' }), 'Node B is in use');
  const busy = "Node 'A' is busy: node is used as backing hd of 'B'";
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'A' }), busy);
  assert.equal(
    await bed.refusal('blockdev-snapshot-sync', {
      'node-name': 'A',
      'snapshot-file': 'x',
      'snapshot-node-name': 'X',
    }),
    busy,
  );
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'spare', size: MiB });
  await bed.execute('blockdev-del', { 'node-name': 'spare' });
  assert.ok(!bed.engine.graph.nodes.has('spare'));
});

test('blockdev-create makes a file and formats it; the job waits to be dismissed', async (t) => {
  const bed = new EngineBed(t);
  const file = { driver: 'file', filename: bed.path('new.qcow2') };
  await bed.execute('blockdev-create', { 'job-id': 'f', options: { ...file, size: 0 } });
  await bed.engine.jobs.find('f')?.concluded;
  await bed.execute('job-dismiss', { id: 'f' });
  const options = { driver: 'qcow2', file, size: DISK_BYTES, 'cluster-size': 4096 };
  await bed.execute('blockdev-create', { 'job-id': 'q', options });
  await bed.engine.jobs.find('q')?.concluded;
  assert.deepEqual(await bed.execute('query-jobs'), [
    { id: 'q', type: 'create', status: 'concluded', 'current-progress': 1, 'total-progress': 1 },
  ]);
  await bed.execute('job-dismiss', { id: 'q' });
  const node = await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'n', file });
  assert.equal(node.lengthBytes, DISK_BYTES);
  assert.equal(node.instance.info().clusterSizeBytes, 4096);
});

test('block_resize grows a disk in use, with zeroes', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.execute('block_resize', { 'node-name': 'B', size: 2 * DISK_BYTES });
  await bed.guest(`read -P 0 ${DISK_BYTES} 8M`);
  await bed.guest(`write -P 3 ${2 * DISK_BYTES - 512} 512`);
  assert.equal(
    await bed.refusal('block_resize', { 'node-name': 'B', size: -1 }),
    "Parameter 'size' expects a >0 size",
  );
});

test('an action that cannot be taken back keeps no other from being taken back', async (t) => {
  const faulty = new FaultyHost(createRealHost());
  const bed = new EngineBed(t, { host: faulty.host });
  for (const name of ['A', 'B', 'C', 'copy']) await bed.image(name);
  const snapshot = (node: string): JsonObject => ({
    type: 'blockdev-snapshot-sync',
    data: {
      'node-name': node,
      'snapshot-file': bed.path(`${node}.overlay`),
      'snapshot-node-name': `${node}-overlay`,
    },
  });
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  for (const device of ['A', 'B']) await bed.execute('nbd-server-add', { device });
  // B cannot be opened for writing again.
  const fault = { op: 'open', file: 'B.qcow2', errno: 'EACCES' } as const;
  bed.engine.onEvent(() => void faulty.faults.add(fault));
  const backup = { device: 'C', target: 'copy', 'job-id': 'b', sync: 'full' };
  const actions = [
    snapshot('A'),
    snapshot('B'),
    { type: 'blockdev-backup', data: backup },
    { type: 'abort', data: {} },
  ];
  assert.equal(await bed.refusal('transaction', { actions }), 'Transaction aborted using Abort action');
  const exported = (await bed.execute('query-block-exports')) as JsonObject[];
  assert.deepEqual(
    exported.map((e) => e['node-name']),
    ['B-overlay', 'A'],
  );
  assert.deepEqual(await bed.execute('query-jobs'), []);
});

test('while a backup runs its disk can be backed up again, get an overlay and be streamed into', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const targets = ['x', 'y', 'z'];
  for (const name of targets) await bed.image(name);
  for (const [i, target] of targets.entries()) {
    await bed.execute('blockdev-backup', { device: 'B', target, 'job-id': `j${i}`, sync: 'full', speed: 1 });
    await bed.guest(`write -P ${0x31 + i} ${i}M 128k`);
  }
  await bed.snapshot('B', 'C');
  await bed.guest('write -P 0x41 5M 64k');
  await bed.execute('block-stream', { device: 'C', 'job-id': 's' });
  await bed.event('BLOCK_JOB_COMPLETED', 's');
  assert.deepEqual(await bed.layers(), ['C']);
  await bed.guest('write -P 0x42 6M 64k');
  for (const i of targets.keys()) await bed.execute('block-job-set-speed', { device: `j${i}`, speed: 0 });
  for (const i of targets.keys())
    assert.equal((await bed.event('BLOCK_JOB_COMPLETED', `j${i}`))['error'], undefined);
  for (const [i, target] of targets.entries()) {
    const io = (command: string): Promise<unknown> =>
      bed.execute('human-monitor-command', { 'command-line': `qemu-io ${target} "${command}"` });
    const before = bed.printed.length;
    for (const at of targets.keys())
      await io(`read -P ${at < i ? 0x31 + at : at === 1 ? 0x21 : 0x11} ${at}M 128k`);
    await io('read -P 0 5M 3M');
    assert.doesNotMatch(bed.printed.slice(before).join('\n'), /fail|rror/, target);
  }
});

test('the end of a backup closes an overlay that nobody but its filter used', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('copy');
  await bed.execute('human-monitor-command', { 'command-line': 'qemu-io A "write 0 1M"' });
  const backup = { device: 'A', target: 'copy', 'job-id': 'b', sync: 'full', speed: 1 };
  await bed.execute('blockdev-backup', backup);
  await bed.snapshot('A', 'B');
  await bed.execute('job-cancel', { id: 'b' });
  await bed.event('BLOCK_JOB_CANCELLED', 'b');
  await bed.engine.jobs.find('b')?.concluded;
  assert.equal(bed.engine.graph.nodes.get('B'), undefined);
  await bed.execute('blockdev-del', { 'node-name': 'A' });
});

test("what mirror's filter keeps others from is told of a backing file's place, as in QEMU's graph", async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('copy');
  const mirror = { device: 'A', target: 'copy', 'job-id': 'm', sync: 'full', 'filter-node-name': 'f' };
  await bed.execute('blockdev-mirror', mirror);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  assert.equal(
    await bed.refusal('nbd-server-add', { device: 'A', writable: true }),
    "Permission conflict on node 'A': permissions 'write' are both required by an unnamed block device " +
      "(uses node 'A' as 'root' child) and unshared by node 'f' (uses node 'A' as 'backing' child).",
  );
});

test('nobody writes past a running backup', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('copy');
  await bed.execute('human-monitor-command', { 'command-line': 'qemu-io A "write 0 1M"' });
  const backup = {
    device: 'A',
    target: 'copy',
    'job-id': 'b',
    sync: 'full',
    speed: 1,
    'filter-node-name': 'f',
  };
  await bed.execute('blockdev-backup', backup);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  const conflict = (perm: string): string =>
    `Permission conflict on node 'A': permissions '${perm}' are both required by an unnamed block device ` +
    "(uses node 'A' as 'root' child) and unshared by node 'f' (uses node 'A' as 'file' child).";
  assert.equal(await bed.refusal('nbd-server-add', { device: 'A', writable: true }), conflict('write'));
  assert.equal(
    await bed.refusal('block_resize', { 'node-name': 'A', size: 2 * DISK_BYTES }),
    conflict('resize'),
  );
  assert.equal(await bed.refusal('blockdev-del', { 'node-name': 'A' }), 'Block device A is in use');
  // What holds the filter up is the job alone.
  await bed.execute('nbd-server-add', { device: 'f', writable: true });
  await bed.execute('nbd-server-remove', { name: 'f' });
  await bed.execute('job-cancel', { id: 'b' });
  await bed.event('BLOCK_JOB_CANCELLED', 'b');
  await bed.execute('blockdev-del', { 'node-name': 'A' });
});
