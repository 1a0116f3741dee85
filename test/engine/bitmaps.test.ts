import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const KiB = 1024;

/** What query-named-block-nodes tells of a node's bitmaps. */
async function bitmapsOf(bed: EngineBed, name: string): Promise<JsonObject[] | undefined> {
  const nodes = (await bed.execute('query-named-block-nodes', { flat: true })) as JsonObject[];
  return nodes.find((node) => node['node-name'] === name)?.['dirty-bitmaps'] as JsonObject[] | undefined;
}

test('a bitmap records while it is enabled, and is cleared and removed', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const bits = { node: 'A', name: 'bits' };
  const state = async (): Promise<unknown[]> => {
    const [bitmap] = (await bitmapsOf(bed, 'A')) ?? [];
    return [bitmap?.['recording'], bitmap?.['count']];
  };
  await bed.execute('block-dirty-bitmap-add', { ...bits, granularity: 512, disabled: true });
  const [bitmap] = (await bitmapsOf(bed, 'A')) ?? [];
  assert.deepEqual(bitmap, {
    ...{ name: 'bits', recording: false, persistent: false, busy: false, granularity: 512, count: 0 },
  });
  await bed.guest('write 0 4k');
  assert.deepEqual(await state(), [false, 0]);
  await bed.execute('block-dirty-bitmap-enable', bits);
  await bed.guest('write 4k 512');
  assert.deepEqual(await state(), [true, 512]);
  await bed.execute('block-dirty-bitmap-disable', bits);
  await bed.guest('write 8k 4k');
  assert.deepEqual(await state(), [false, 512]);
  await bed.execute('block-dirty-bitmap-clear', bits);
  assert.deepEqual(await state(), [false, 0]);
  await bed.execute('block-dirty-bitmap-remove', bits);
  assert.equal(await bitmapsOf(bed, 'A'), undefined);
  assert.equal(await bed.refusal('block-dirty-bitmap-clear', bits), "Dirty bitmap 'bits' not found");
});

test('all that changes a disk is recorded: zeroes and discards too', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A', { discard: 'unmap' });
  await bed.device('A');
  const bits = { node: 'A', name: 'bits' };
  await bed.execute('block-dirty-bitmap-add', { ...bits, granularity: 65536 });
  for (const command of ['write 0 1', 'write -z 1M 64k', 'discard 2M 64k', 'write -z 3M 512']) {
    await bed.execute('block-dirty-bitmap-clear', bits);
    await bed.guest(command);
    const [bitmap] = (await bitmapsOf(bed, 'A')) ?? [];
    assert.equal(bitmap?.['count'], 65536, command);
  }
});

test("a bitmap's granularity is by default the image's cluster size, 4 to 64 KiB", async (t) => {
  const bed = new EngineBed(t);
  for (const [clusterBytes, granularity] of [
    [512, 4 * KiB],
    [16 * KiB, 16 * KiB],
    [2048 * KiB, 64 * KiB],
  ] as const) {
    const name = `c${clusterBytes}`;
    const filename = bed.path(name);
    const options = { 'cluster-size': clusterBytes };
    await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES, options });
    await bed.engine.addNode({ driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename } });
    await bed.engine.addNode({ driver: 'copy-on-read', 'node-name': `above-${name}`, file: name });
    for (const node of [name, `above-${name}`]) {
      await bed.execute('block-dirty-bitmap-add', { node, name: 'bits' });
      assert.equal((await bitmapsOf(bed, node))?.[0]?.['granularity'], granularity, node);
    }
  }
  await bed.engine.addNode({ driver: 'null-co', 'node-name': 'n' });
  await bed.execute('block-dirty-bitmap-add', { node: 'n', name: 'bits' });
  assert.equal((await bitmapsOf(bed, 'n'))?.[0]?.['granularity'], 64 * KiB);
});

test('a bitmap that cannot be is refused', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'bits' });
  const granularity = 'Granularity must be power of 2 and at least 512';
  const long = 'x'.repeat(1024);
  for (const [more, words] of [
    [{ name: '' }, 'Bitmap name cannot be empty'],
    [{ name: 'bits' }, 'Bitmap already exists: bits'],
    [{ name: long }, `Bitmap name too long: ${long}`],
    [{ name: 'x', granularity: 256 }, granularity],
    [{ name: 'x', granularity: 1000 }, granularity],
  ] as const)
    assert.equal(await bed.refusal('block-dirty-bitmap-add', { node: 'A', ...more }), words);
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'x'.repeat(1023) });
  assert.equal((await bitmapsOf(bed, 'A'))?.length, 2);
});

test('a bitmap that a backup uses is left alone until the backup has ended', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('copy');
  await bed.image('other');
  const bits = { node: 'A', name: 'bits' };
  await bed.execute('block-dirty-bitmap-add', { ...bits, granularity: 65536 });
  await bed.guest('write 0 1M');
  const backup = { device: 'A', 'job-id': 'b', sync: 'incremental', bitmap: 'bits' };
  await bed.execute('blockdev-backup', { ...backup, target: 'copy', speed: 1 });
  const inUse = "Bitmap 'bits' is currently in use by another operation and cannot be used";
  for (const verb of ['clear', 'remove', 'enable', 'disable'])
    assert.equal(await bed.refusal(`block-dirty-bitmap-${verb}`, bits), inUse);
  assert.equal((await bitmapsOf(bed, 'A'))?.find(({ name }) => name === 'bits')?.['busy'], true);
  await bed.execute('block-job-set-speed', { device: 'b', speed: 0 });
  await bed.event('BLOCK_JOB_COMPLETED', 'b');
  await bed.execute('block-dirty-bitmap-clear', bits);
});

for (const [mode, sync] of [
  ['on-success', 'incremental'],
  ['on-success', 'bitmap'],
  ['always', 'bitmap'],
  ['always', 'full'],
  ['never', 'bitmap'],
] as const)
  for (const enabled of [true, false])
    test(`a backup (${sync}, ${mode}) leaves a bitmap ${enabled ? 'on' : 'off'} as it was`, async (t) => {
      const bed = new EngineBed(t);
      await bed.chain('A');
      await bed.image('copy');
      const bits = { node: 'A', name: 'bits' };
      await bed.execute('block-dirty-bitmap-add', { ...bits, granularity: 65536 });
      await bed.guest('write 0 64k');
      if (!enabled) await bed.execute('block-dirty-bitmap-disable', bits);
      const backup = { device: 'A', target: 'copy', sync, bitmap: 'bits', 'bitmap-mode': mode };
      await bed.execute('blockdev-backup', { ...backup, 'job-id': 'b', 'auto-finalize': false });
      await bed.guest('write 1M 128k');
      const state = async (): Promise<unknown> => {
        const found = (await bitmapsOf(bed, 'A'))?.find((bitmap) => bitmap['name'] === 'bits');
        return { recording: found?.['recording'], count: found?.['count'] };
      };
      // What is written meanwhile is the successor's.
      assert.deepEqual(await state(), { recording: enabled, count: 65536 });
      const job = bed.engine.jobs.find('b');
      while (job?.status !== 'pending') await bed.engine.host.clock.macrotask();
      await bed.execute('job-finalize', { id: 'b' });
      await job?.concluded;
      const written = enabled ? 131072 : 0;
      const kept = mode === 'never' ? 65536 : 0;
      assert.deepEqual(await state(), { recording: enabled, count: kept + written });
    });

test('a backup that fails to write zeroes leaves them in a bitmap that it always settles', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  await bed.guest('write -P 1 0 4M');
  const bits = { node: 'A', name: 'bits' };
  await bed.execute('block-dirty-bitmap-add', { ...bits, granularity: 64 * KiB });
  await bed.guest('write -z 1M 2M');
  const filename = bed.path('T.raw');
  await writeFile(filename, Buffer.alloc(DISK_BYTES, 2));
  const failing = [{ event: 'none', iotype: 'write-zeroes', errno: 5 }];
  const image = { driver: 'file', filename };
  const file = { driver: 'blkdebug', image, 'inject-error': failing };
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'T', file });
  await bed.execute('blockdev-backup', {
    ...{ 'job-id': 'b', device: 'A', target: 'T', sync: 'bitmap', bitmap: 'bits', 'bitmap-mode': 'always' },
  });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'b'))['error'], 'Input/output error');
  const [bitmap] = (await bitmapsOf(bed, 'A')) ?? [];
  assert.deepEqual([bitmap?.['busy'], bitmap?.['count']], [false, 2 * MiB]);
});

test('bitmaps are merged whatever their granularities, or none of them', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const add = (name: string, granularity: number): Promise<unknown> =>
    bed.execute('block-dirty-bitmap-add', { node: 'A', name, granularity });
  await add('coarse', 128 * KiB);
  await add('fine', 512);
  await bed.guest('write 1M 512');
  await bed.execute('block-dirty-bitmap-disable', { node: 'A', name: 'fine' });
  await bed.guest('write 2M 512');
  await add('sum', 4096);
  const merge = { node: 'A', target: 'sum' };
  const countOf = async (name: string): Promise<unknown> =>
    (await bitmapsOf(bed, 'A'))?.find((bitmap) => bitmap['name'] === name)?.['count'];
  const gone = "Dirty bitmap 'gone' not found";
  assert.equal(await bed.refusal('block-dirty-bitmap-merge', { ...merge, bitmaps: ['fine', 'gone'] }), gone);
  assert.equal(await countOf('sum'), 0);
  await bed.execute('block-dirty-bitmap-merge', { ...merge, bitmaps: ['fine'] });
  assert.equal(await countOf('sum'), 4096);
  const actions = [
    { type: 'block-dirty-bitmap-merge', data: { ...merge, bitmaps: [{ node: 'A', name: 'coarse' }] } },
  ];
  const aborted = { actions: [...actions, { type: 'abort', data: {} }] };
  assert.equal(await bed.refusal('transaction', aborted), 'Transaction aborted using Abort action');
  assert.equal(await countOf('sum'), 4096);
  await bed.execute('transaction', { actions });
  assert.equal(await countOf('sum'), 256 * KiB);
});

test('a granule counts whole, even the last, and one larger than the disk', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const granularity = 2 * 1024 * 1024 * KiB;
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'bits', granularity });
  await bed.guest('write 0 4k');
  assert.equal((await bitmapsOf(bed, 'A'))?.[0]?.['count'], granularity);
});

test('what a bitmap has as dirty is told some stretches at a time', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const bits = { node: 'A', name: 'bits' };
  await bed.execute('block-dirty-bitmap-add', { ...bits, granularity: 4 * KiB });
  const read = (more: JsonObject = {}): Promise<unknown> =>
    bed.execute('x-bitmap-extents', { ...bits, ...more });
  const granularity = 4 * KiB;
  assert.deepEqual(await read(), { granularity, extents: [] });
  for (const write of ['write 1 1', 'write 8k 5k', `write ${DISK_BYTES - 512} 512`]) await bed.guest(write);
  const extents = [
    { start: 0, length: 4 * KiB },
    { start: 8 * KiB, length: 8 * KiB },
    { start: DISK_BYTES - 4 * KiB, length: 4 * KiB },
  ];
  assert.deepEqual(await read(), { granularity, extents });
  assert.deepEqual(await read({ most: 1 }), { granularity, extents: extents.slice(0, 1), next: 8 * KiB });
  assert.deepEqual(await read({ start: 8 * KiB, most: 1 }), {
    ...{ granularity, extents: extents.slice(1, 2), next: DISK_BYTES - 4 * KiB },
  });
  assert.deepEqual(await read({ start: DISK_BYTES - 512 }), { granularity, extents: extents.slice(2) });
  assert.deepEqual(await read({ start: DISK_BYTES * 2 }), { granularity, extents: [] });
  const refusal = (args: JsonObject): Promise<string> => bed.refusal('x-bitmap-extents', args);
  assert.equal(await refusal({ node: 'A', name: 'none' }), "Dirty bitmap 'none' not found");
  assert.match(await refusal({ ...bits, start: -1 }), /start/);
  assert.match(await refusal({ node: 'none', name: 'bits' }), /none/);
});

test('the bitmap of a mirror that writes to both sides is told as one that does not record', async (t) => {
  const bed = new EngineBed(t);
  for (const name of ['top', 'target']) await bed.image(name);
  const recording = async (mode: string): Promise<unknown> => {
    await bed.execute('blockdev-mirror', {
      ...{ 'job-id': mode, device: 'top', target: 'target', sync: 'full', 'copy-mode': mode },
    });
    await bed.event('BLOCK_JOB_READY', mode);
    const bitmaps = (await bitmapsOf(bed, 'top')) ?? [];
    await bed.execute('block-job-cancel', { device: mode });
    await bed.event('BLOCK_JOB_COMPLETED', mode);
    return bitmaps.map(({ recording: is }) => is);
  };
  assert.deepEqual(await recording('background'), [true]);
  assert.deepEqual(await recording('write-blocking'), [false]);
});
