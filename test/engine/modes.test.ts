import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { Json } from '../../src/block/driver.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const DISCARD_AND_ZERO = ['discard 1M 1M', 'write -z -u 2M 1M'];

/** Which nodes say unmap, top first, and whether the top and the file below follow. */
interface Modes {
  discard?: 'ignore' | 'unmap';
}

const LEVELS: ReadonlyArray<{ top: Modes; file: Modes; frees: boolean; punches: boolean }> = [
  { top: {}, file: {}, frees: false, punches: false },
  { top: { discard: 'ignore' }, file: { discard: 'unmap' }, frees: false, punches: false },
  { top: { discard: 'unmap' }, file: {}, frees: true, punches: true },
  { top: { discard: 'unmap' }, file: { discard: 'unmap' }, frees: true, punches: true },
  { top: { discard: 'unmap' }, file: { discard: 'ignore' }, frees: true, punches: false },
];

for (const driver of ['raw', 'qcow2', 'blkdebug'] as const) {
  for (const { top, file, frees, punches } of LEVELS) {
    const what = `${driver} ${top.discard ?? 'default'} over file ${file.discard ?? 'default'}`;
    test(`discards of ${what} ${frees ? 'arrive' : 'change nothing'}`, async (t) => {
      const bed = new EngineBed(t);
      const filename = bed.path('image');
      await createImage(bed.engine.opener, filename, driver === 'qcow2' ? 'qcow2' : 'raw', {
        sizeBytes: DISK_BYTES,
      });
      const role = driver === 'blkdebug' ? 'image' : 'file';
      const below = { driver: 'file', filename, ...file };
      await bed.engine.addNode({ driver, 'node-name': 'A', ...top, [role]: below });
      await bed.device('A');
      await bed.guest('write -P 7 0 4M');
      await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'bits', granularity: 65536 });
      await bed.guest('discard 1M 1M');
      const [info] = (await bed.execute('query-named-block-nodes', { flat: true })) as JsonObject[];
      const [bitmap] = info?.['dirty-bitmaps'] as JsonObject[];
      assert.equal(bitmap?.['count'], frees ? MiB : 0);
      const kept = !frees || (driver !== 'qcow2' && !punches);
      await bed.guest(`read -P ${kept ? 7 : 0} 1M 1M`);
      await bed.guest('write -z -u 2M 1M');
      await bed.guest('read -P 0 2M 1M');
      await bed.guest('flush');
      const allocated = statSync(filename).blocks * 512;
      // Users may ask for zeroes that free space where discards are ignored; the file below has its own say.
      const expected = punches
        ? 2 * MiB
        : driver !== 'qcow2' && file.discard !== 'ignore'
          ? 3 * MiB
          : 4 * MiB;
      assert.ok(Math.abs(allocated - expected) < MiB / 2, `${allocated} bytes allocated`);
    });
  }
}

test('a file node that was added by itself has the default of its own', async (t) => {
  const bed = new EngineBed(t);
  const filename = bed.path('image');
  await createImage(bed.engine.opener, filename, 'raw', { sizeBytes: DISK_BYTES });
  await bed.engine.addNode({ driver: 'file', 'node-name': 'F', filename });
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'A', discard: 'unmap', file: 'F' });
  await bed.device('A');
  await bed.guest('write -P 7 0 4M');
  for (const command of DISCARD_AND_ZERO) await bed.guest(command);
  await bed.guest('read -P 7 1M 1M');
  assert.ok(statSync(filename).blocks * 512 >= 4 * MiB);
});

test('an overlay and the target of a drive command do with discards as the disk does', async (t) => {
  for (const discard of ['ignore', 'unmap'] as const) {
    const bed = new EngineBed(t);
    await bed.image('A', { discard });
    await bed.device('A');
    await bed.snapshot('A', 'B');
    const job = { 'job-id': 'j', device: 'B', target: bed.path('copy'), sync: 'full', format: 'qcow2' };
    await bed.execute('drive-mirror', { ...job, 'node-name': 'T' });
    for (const name of ['B', 'T']) assert.equal(bed.engine.graph.node(name).modes.discard, discard);
  }
});

test('what the disk does not discard, a mirror that follows each write does not discard either', async (t) => {
  for (const [source, target, reads] of [
    ['ignore', 'unmap', 7],
    ['unmap', 'unmap', 0],
  ] as const) {
    const bed = new EngineBed(t);
    await bed.image('A', { discard: source });
    await bed.image('T', { discard: target });
    await bed.device('A');
    await bed.guest('write -P 7 0 4M');
    const job = { 'job-id': 'j', device: 'A', target: 'T', sync: 'full', 'copy-mode': 'write-blocking' };
    await bed.execute('blockdev-mirror', job);
    await bed.event('BLOCK_JOB_READY', 'j');
    await bed.guest('discard 1M 1M');
    await bed.execute('block-job-complete', { device: 'j' });
    await bed.event('BLOCK_JOB_COMPLETED', 'j');
    await bed.guest(`read -P ${reads} 1M 1M`);
  }
});

/** What becomes of 64 KiB of zeroes written over data: the allocation of the cluster, and what queries say. */
for (const [mode, allocated] of [
  ['off', true],
  ['on', false],
  ['unmap', false],
] as const) {
  test(`detect-zeroes=${mode}: written zeroes ${allocated ? 'are data' : 'become a zero cluster'}`, async (t) => {
    const bed = new EngineBed(t);
    await bed.image('A', { 'detect-zeroes': mode, discard: 'unmap' });
    await bed.device('A');
    for (const command of ['write -P 7 0 4M', 'write -P 0 0 1M', 'write -P 0 5M 64k', 'write -P 0 2M 512']) {
      await bed.guest(command);
    }
    for (const [command, at] of [
      ['read -P 0 0 1M', 0],
      ['read -P 0 5M 64k', 5 * MiB],
    ] as const) {
      await bed.guest(command);
      const status = await bed.engine.graph.node('A').statusThroughChain(at, 65536);
      assert.deepEqual([status.data, status.zero], [allocated, !allocated]);
    }
    await bed.guest('read -P 7 2098176 1024');
    await bed.guest('flush');
    const blocks = statSync(bed.path('A.qcow2')).blocks * 512;
    const expected = { off: 4 * MiB, on: 4 * MiB, unmap: 3 * MiB }[mode];
    assert.ok(Math.abs(blocks - expected) < 0.75 * MiB, `${blocks} bytes allocated`);
    const [info] = (await bed.execute('query-named-block-nodes')) as JsonObject[];
    assert.equal(info?.['detect_zeroes'], mode);
  });
}

test('a copy onto a node that detects zeroes has none of them as data', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  await bed.guest('write -P 0 0 4M');
  await bed.guest('write -P 7 4M 64k');
  for (const [name, command] of [
    ['B', 'blockdev-backup'],
    ['M', 'blockdev-mirror'],
  ] as const) {
    await bed.image(name, { 'detect-zeroes': 'on' });
    await bed.execute(command, { 'job-id': name, device: 'A', target: name, sync: 'full' });
    await bed.event(command === 'blockdev-mirror' ? 'BLOCK_JOB_READY' : 'BLOCK_JOB_COMPLETED', name);
    const status = await bed.engine.graph.node(name).statusThroughChain(0, 4 * MiB);
    assert.deepEqual([status.data, status.lengthBytes], [false, 4 * MiB], name);
  }
});

test('detect-zeroes=unmap needs discard=unmap, at every level', async (t) => {
  const bed = new EngineBed(t);
  const text = 'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap';
  const wrong: { [key: string]: Json } = { 'detect-zeroes': 'unmap' };
  const node = { driver: 'null-co', 'node-name': 'n' };
  for (const options of [
    { ...node, ...wrong },
    { ...node, ...wrong, discard: 'ignore' },
    { driver: 'raw', 'node-name': 'r', ...wrong, file: { driver: 'null-co' } },
    { driver: 'raw', 'node-name': 'r', file: { driver: 'null-co', discard: 'ignore', ...wrong } },
  ])
    assert.equal(await bed.refusal('blockdev-add', options), text);
  const fine = { driver: 'raw', 'node-name': 'r', file: { ...node, ...wrong } };
  await bed.execute('blockdev-add', fine);
});
