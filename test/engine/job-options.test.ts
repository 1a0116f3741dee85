import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { Json } from '../../src/block/driver.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const KiB = 1024;

interface BitmapInfo {
  name?: string;
  recording: boolean;
  granularity: number;
  count: number;
}

/** Nodes A <-- B, the guest's disk, and an empty T. */
async function bedWithTarget(context: TestContext, target: { [key: string]: Json } = {}): Promise<EngineBed> {
  const bed = new EngineBed(context);
  await bed.chain('A', 'B');
  await bed.image('T', target);
  return bed;
}

async function bitmapsOf(bed: EngineBed, name: string): Promise<BitmapInfo[]> {
  const nodes = (await bed.execute('query-named-block-nodes')) as JsonObject[];
  const node = nodes.find((one) => one['node-name'] === name);
  return (node?.['dirty-bitmaps'] ?? []) as unknown as BitmapInfo[];
}

async function jobInfo(bed: EngineBed): Promise<JsonObject> {
  const [info = {}] = (await bed.execute('query-block-jobs')) as JsonObject[];
  return info;
}

const change = (bed: EngineBed, mode: string, type = 'mirror'): Promise<JsonValue> =>
  bed.execute('block-job-change', { id: 'j', type, ...(type === 'mirror' && { 'copy-mode': mode }) });

test('a mirror goes over to writing to both sides, and tells when it is in step', async (context) => {
  const bed = await bedWithTarget(context);
  const args = { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', speed: 1 };
  await bed.execute('blockdev-mirror', args);
  assert.equal('actively-synced' in (await jobInfo(bed)), false);
  await change(bed, 'background');
  await change(bed, 'write-blocking');
  await change(bed, 'write-blocking');
  assert.equal(
    await bed.refusal('block-job-change', { id: 'j', type: 'mirror', 'copy-mode': 'background' }),
    "Change to copy mode 'background' is not implemented",
  );
  assert.equal((await jobInfo(bed))['actively-synced'], false);
  await bed.execute('block-job-set-speed', { device: 'j', speed: 0 });
  await bed.event('BLOCK_JOB_READY', 'j');
  assert.equal((await jobInfo(bed))['actively-synced'], true);
  const { graph } = bed.engine;
  await bed.guest('write -P 0x77 5M 64k');
  // It is in the target before the guest hears of it.
  const bytes = Buffer.alloc(64 * KiB);
  await graph.node('T').io.readBuffer(5 * MiB, bytes);
  assert.ok(bytes.every((byte) => byte === 0x77));
  assert.equal((await jobInfo(bed))['actively-synced'], true);
  await bed.execute('job-cancel', { id: 'j' });
  await bed.event('BLOCK_JOB_CANCELLED', 'j');
});

for (const [how, command, args] of [
  ['completed', 'block-job-complete', {}],
  ['cancelled', 'block-job-cancel', {}],
  ['broken off', 'block-job-cancel', { force: true }],
] as const)
  test(`a mirror that writes to both sides and is ${how} when it is READY is told as in step until it is dismissed`, async (context) => {
    const bed = await bedWithTarget(context);
    const mode = { 'copy-mode': 'write-blocking', 'auto-dismiss': false };
    await bed.execute('blockdev-mirror', { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', ...mode });
    await bed.event('BLOCK_JOB_READY', 'j');
    await bed.execute(command, { device: 'j', ...args });
    await bed.event(how === 'broken off' ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED', 'j');
    assert.equal((await jobInfo(bed))['actively-synced'], true);
    await bed.execute('job-dismiss', { id: 'j' });
  });

test('a mirror that is broken off before it was READY has never been in step', async (context) => {
  const bed = await bedWithTarget(context);
  const mode = { 'copy-mode': 'write-blocking', 'auto-dismiss': false, speed: 1 };
  await bed.execute('blockdev-mirror', { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', ...mode });
  await bed.execute('block-job-cancel', { device: 'j', force: true });
  await bed.event('BLOCK_JOB_CANCELLED', 'j');
  assert.equal((await jobInfo(bed))['actively-synced'], false);
  await bed.execute('job-dismiss', { id: 'j' });
});

test('a READY mirror goes over, too; other jobs have nothing to change', async (context) => {
  const bed = await bedWithTarget(context);
  await bed.execute('blockdev-mirror', { 'job-id': 'j', device: 'B', target: 'T', sync: 'full' });
  await bed.event('BLOCK_JOB_READY', 'j');
  await change(bed, 'write-blocking');
  while ((await jobInfo(bed))['actively-synced'] !== true) await new Promise((done) => setImmediate(done));
  await bed.execute('job-cancel', { id: 'j' });
  await bed.event('BLOCK_JOB_CANCELLED', 'j');
  bed.events.splice(0);
  assert.equal(await bed.refusal('block-job-change', { id: 'j', type: 'backup' }), "Block job 'j' not found");
  await bed.execute('blockdev-backup', { 'job-id': 'j', device: 'B', target: 'T', sync: 'none' });
  for (const type of ['mirror', 'backup'])
    await assert.rejects(change(bed, 'write-blocking', type), {
      message: 'Job type does not support change',
    });
});

test('a mirror to a target that is known to be zero copies only what there is', async (context) => {
  for (const isZero of [false, true]) {
    const bed = await bedWithTarget(context);
    const args = { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', 'target-is-zero': isZero };
    await bed.execute('blockdev-mirror', args);
    const { len } = await bed.event('BLOCK_JOB_READY', 'j');
    assert.equal(len, isZero ? 4 * MiB : DISK_BYTES);
  }
});

test('a protocol as backing file is called raw where the user wants that', async (context) => {
  for (const [mask, format] of [
    [undefined, 'file'],
    [false, 'file'],
    [true, 'raw'],
  ] as const) {
    for (const command of ['block-stream', 'block-commit']) {
      const bed = new EngineBed(context);
      await createImage(bed.engine.opener, bed.path('plain'), 'raw', { sizeBytes: DISK_BYTES });
      await bed.engine.addNode({ driver: 'file', filename: bed.path('plain'), 'node-name': 'A' });
      await bed.device('A');
      await bed.snapshot('A', 'B');
      await bed.guest('write 0 64k');
      await bed.snapshot('B', 'C');
      await bed.execute(command, {
        ...{ 'job-id': 'j', device: 'C', 'base-node': 'A' },
        ...(command === 'block-commit' && { 'top-node': 'B' }),
        ...(mask !== undefined && { 'backing-mask-protocol': mask }),
      });
      assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
      assert.equal(bed.engine.graph.node('C').backingFormat, format, `${command} ${mask}`);
    }
  }
});

test('what a backup is told of its performance is honoured, or refused', async (context) => {
  const bed = await bedWithTarget(context);
  const args = { 'job-id': 'j', device: 'B', target: 'T', sync: 'none' };
  const refusal = (performance: JsonObject, more: JsonObject = {}): Promise<string> =>
    bed.refusal('blockdev-backup', { ...args, 'x-perf': performance, ...more });
  const workers = 'max-workers must be between 1 and 2147483647';
  assert.equal(await refusal({ 'max-workers': 0 }), workers);
  assert.equal(await refusal({ 'max-workers': 2 ** 31 }), workers);
  assert.equal(
    await refusal({ 'max-chunk': -1 }),
    'max-chunk must be zero (which means no limit) or positive',
  );
  const small = 'Required max-chunk (4096) is less than backup cluster size (65536)';
  assert.equal(await refusal({ 'max-chunk': 4096 }), small);
  // Before the job's own name, and after the filter's.
  assert.equal(await refusal({ 'max-chunk': 4096 }, { 'job-id': '-' }), small);
  assert.equal(
    await refusal({ 'max-chunk': 4096 }, { 'filter-node-name': 'T' }),
    "Could not create node: Duplicate nodes with node-name='T'",
  );
  assert.match(
    await refusal({ 'min-cluster-size': 3 }),
    /^Could not create node: .*needs to be a power of 2$/,
  );
  await bed.execute('blockdev-backup', { ...args, 'x-perf': { 'min-cluster-size': 128 * KiB } });
  assert.equal((await bitmapsOf(bed, 'B'))[0]?.granularity, 128 * KiB);
  await bed.execute('job-cancel', { id: 'j' });
  await bed.event('BLOCK_JOB_CANCELLED', 'j');
  bed.events.splice(0);
  const performance = { 'use-copy-range': false, 'max-workers': 1, 'max-chunk': 65536 };
  await bed.execute('blockdev-backup', { ...args, sync: 'full', 'x-perf': performance });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
});

test('two mistakes of a backup are told in QEMU’s order', async (context) => {
  const bed = await bedWithTarget(context);
  await createImage(bed.engine.opener, bed.path('raw'), 'raw', { sizeBytes: MiB });
  await bed.engine.addNode({ driver: 'file', filename: bed.path('raw'), 'node-name': 'R' });
  const refusal = (more: JsonObject): Promise<string> =>
    bed.refusal('blockdev-backup', { 'job-id': 'j', device: 'B', target: 'R', sync: 'full', ...more });
  const perf = { 'x-perf': { 'max-workers': 0 } };
  assert.match(await refusal({ compress: true, ...perf }), /^Compression is not supported for this drive/);
  assert.match(await refusal({ ...perf }), /^max-workers/);
  assert.match(await refusal({}), /different sizes$/);
  assert.match(await refusal({ target: 'B', compress: true }), /^Source and target cannot be the same$/);
  const bitmap = { sync: 'bitmap', bitmap: 'none' };
  assert.match(await refusal({ ...bitmap, target: 'B' }), /^Bitmap 'none' could not be found$/);
});

test('bitmaps of a backup’s filter are shown as QEMU shows them', async (context) => {
  const bed = await bedWithTarget(context);
  const args = { 'job-id': 'j', device: 'B', target: 'T', sync: 'none', 'filter-node-name': 'F' };
  await bed.execute('block-dirty-bitmap-add', { node: 'B', name: 'user' });
  await bed.execute('blockdev-backup', args);
  await bed.guest('write 0 96k');
  const shown = (list: BitmapInfo[]): unknown[] =>
    list.map(({ name, recording, count }) => [name, recording, count]);
  assert.deepEqual(shown(await bitmapsOf(bed, 'B')), [
    [undefined, false, DISK_BYTES - 128 * KiB],
    ['user', true, 128 * KiB],
  ]);
  assert.deepEqual(shown(await bitmapsOf(bed, 'F')), [
    [undefined, false, DISK_BYTES],
    [undefined, false, 128 * KiB],
  ]);
  await bed.execute('job-cancel', { id: 'j' });
  await bed.event('BLOCK_JOB_CANCELLED', 'j');
  assert.deepEqual(shown(await bitmapsOf(bed, 'B')), [['user', true, 128 * KiB]]);
});

test('a copy that a guest waits for breaks its write, or the backup', async (context) => {
  for (const policy of [undefined, 'break-guest-write', 'break-snapshot']) {
    const bed = await bedWithTarget(context);
    await bed.execute('blockdev-add', {
      ...{ driver: 'blkdebug', 'node-name': 'D', image: 'T' },
      'inject-error': [{ event: 'none', iotype: 'write', once: true }],
    });
    await bed.execute('blockdev-backup', {
      ...{ 'job-id': 'j', device: 'B', target: 'D', sync: 'none' },
      ...(policy !== undefined && { 'on-cbw-error': policy }),
    });
    const write = bed.guest('write -P 3 0 64k');
    if (policy === 'break-snapshot') {
      await write;
      assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], 'Input/output error');
    } else {
      await assert.rejects(write);
      assert.deepEqual(
        bed.events.filter(({ event }) => event === 'BLOCK_JOB_ERROR'),
        [],
      );
      assert.equal((await jobInfo(bed))['status'], 'running');
      await bed.guest('write -P 3 0 64k');
      await bed.execute('job-cancel', { id: 'j' });
      await bed.event('BLOCK_JOB_CANCELLED', 'j');
    }
    await bed.guest('read -P 3 0 64k');
  }
});

test('a backup of a moment that is kept gives the room back as it goes', async (context) => {
  const bed = await bedWithTarget(context);
  await createImage(bed.engine.opener, bed.path('kept'), 'raw', { sizeBytes: DISK_BYTES });
  await bed.engine.addNode({
    ...{ driver: 'file', filename: bed.path('kept'), 'node-name': 'K', discard: 'unmap' },
  });
  await bed.execute('blockdev-add', {
    ...{ driver: 'copy-before-write', 'node-name': 'cbw', file: 'B', target: 'K' },
  });
  await bed.execute('qom-set', { path: 'virtio0', property: 'drive', value: 'cbw' });
  assert.equal(await bed.execute('qom-get', { path: 'virtio0', property: 'drive' }), 'cbw');
  await bed.execute('blockdev-add', {
    ...{ driver: 'snapshot-access', 'node-name': 'moment', file: 'cbw', discard: 'unmap' },
  });
  const before = Buffer.alloc(DISK_BYTES);
  await bed.engine.graph.node('B').io.readBuffer(0, before);
  await bed.guest('write -P 0x99 0 2M');
  const kept = bed.engine.graph.node('K');
  assert.equal(kept.allocatedBytes(), 2 * MiB);
  const args = { 'job-id': 'j', device: 'moment', target: 'T', sync: 'full', 'discard-source': true };
  await bed.execute('blockdev-backup', args);
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
  const after = Buffer.alloc(DISK_BYTES);
  await bed.engine.graph.node('T').io.readBuffer(0, after);
  assert.ok(after.equals(before));
  assert.equal(kept.allocatedBytes(), 0);
  // Nothing of the moment is kept any more, so nothing is copied for it.
  await bed.guest('write -P 0x98 0 2M');
  assert.equal(kept.allocatedBytes(), 0);
  await bed.execute('blockdev-del', { 'node-name': 'moment' });
  await bed.execute('qom-set', { path: 'virtio0', property: 'drive', value: 'B' });
  for (const name of ['cbw', 'K']) await bed.execute('blockdev-del', { 'node-name': name });
  for (const [value, message] of [
    [5, "Invalid parameter type for 'drive', expected: string"],
    ['none', "Cannot find device='' nor node-name='none'"],
  ] as const)
    assert.equal(await bed.refusal('qom-set', { path: 'virtio0', property: 'drive', value }), message);
  await bed.guest('read -P 0x98 0 2M');
});
