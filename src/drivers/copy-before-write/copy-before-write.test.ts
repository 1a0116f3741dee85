import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import type { NodeOptions } from '../../block/driver.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { Permission } from '../../block/permissions.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { filterConformance } from '../../../test/kit/conformance.js';
import { assertSameBytes, TestBed, type TestDisk } from '../../../test/kit/test-disk.js';
import { allDrivers } from '../index.js';
import { copyBeforeWriteDriver } from './index.js';
import { nullCoDriver } from '../null-co/index.js';

const KiB = 1024;
const CLUSTER = 64 * KiB;
const SIZE = 20 * CLUSTER + 3 * KiB;

const above = (file: NodeOptions): NodeOptions => ({
  driver: 'copy-before-write',
  file,
  target: { driver: 'null-co', size: 2 ** 30 },
});
filterConformance('copy-before-write', [copyBeforeWriteDriver, nullCoDriver], above);

type Random = (below: number) => number;

/** A disk over a base, both with data here and there, and an empty image for what it held, `kept`. */
async function withImages(
  seed: number,
  targetFormat: 'raw' | 'qcow2',
  body: (bed: TestBed, random: Random) => Promise<void>,
): Promise<void> {
  const simulation = createSimulatedHost({ seed, refuseProbability: 0.3 });
  await simulation.run(async () => {
    const bed = new TestBed(simulation.host, allDrivers, '/tmp');
    const random: Random = (below) => simulation.host.random.bytes(4).readUInt32BE() % below;
    await createImage(bed.opener, '/tmp/base', 'qcow2', { sizeBytes: SIZE });
    await createImage(bed.opener, '/tmp/disk', 'qcow2', {
      sizeBytes: SIZE,
      backingFile: '/tmp/base',
      backingFormat: 'qcow2',
    });
    await createImage(bed.opener, '/tmp/kept', targetFormat, { sizeBytes: SIZE });
    for (const filename of ['/tmp/base', '/tmp/disk']) {
      const disk = await bed.open({ driver: 'qcow2', file: { driver: 'file', filename } });
      for (let i = 0; i < 6; i++) await change(disk, random);
      await disk.close();
    }
    await body(bed, random);
  });
}

const image = (format: string, name: string): NodeOptions => ({
  driver: format,
  'node-name': name,
  file: { driver: 'file', filename: `/tmp/${name}` },
});

/** Answers where. */
async function change(disk: TestDisk, random: Random): Promise<readonly [number, number]> {
  const offset = random(SIZE);
  const length = Math.min(1 + random(2 * CLUSTER), SIZE - offset);
  const kind = random(4);
  if (kind === 0) await disk.backend.writeZeroes(offset, length);
  else if (kind === 1) await disk.backend.discard(offset, length);
  else await disk.write(offset, Buffer.alloc(length, 1 + random(250)));
  return [offset, length];
}

for (const format of ['raw', 'qcow2'] as const)
  for (let seed = 1; seed <= 3; seed++)
    test(`what a disk held is read while it changes (kept in ${format}, seed ${seed})`, () =>
      withImages(seed, format, async (bed, random) => {
        const disk = await bed.open({
          driver: 'copy-before-write',
          'node-name': 'cbw',
          file: image('qcow2', 'disk'),
          target: image(format, 'kept'),
        });
        const model = await disk.readAll();
        const kept = await bed.open({ driver: 'snapshot-access', file: 'cbw' });
        const statuses = async (): Promise<void> => {
          for (let at = 0; at < SIZE;) {
            const status = await kept.backend.status(at, SIZE - at);
            const bytes = model.subarray(at, at + status.lengthBytes);
            assert.equal(status.allocated, true);
            if (status.zero) assert.ok(bytes.every((byte) => byte === 0));
            at += status.lengthBytes;
          }
        };
        for (let round = 0; round < 8; round++) {
          const changes = Array.from({ length: 4 }, () => change(disk, random));
          const offset = random(SIZE);
          const length = 1 + random(SIZE - offset);
          const held = kept.read(offset, length);
          assertSameBytes(await held, model.subarray(offset, offset + length), `round ${round}`);
          await Promise.all([...changes, statuses()]);
        }
        assertSameBytes(await kept.readAll(), model, 'at the end');
        await kept.close();
        await disk.close();
      }));

test('of a bitmap only what is dirty in it is kept', () =>
  withImages(1, 'raw', async (bed) => {
    const source = await bed.open(image('qcow2', 'disk'), { perm: Permission.consistentRead });
    const bitmap = new DirtyBitmap(SIZE, CLUSTER, 'bits');
    bitmap.set(2 * CLUSTER, CLUSTER);
    source.node.dirtyBitmaps.push(bitmap);
    const options = { driver: 'copy-before-write', 'node-name': 'cbw', file: 'disk' };
    const target = image('raw', 'kept');
    const refused = (bits: NodeOptions, message: RegExp): Promise<void> =>
      assert.rejects(bed.open({ ...options, target, bitmap: bits }), { message });
    await refused({ node: 'none', name: 'bits' }, /^Node 'none' not found$/);
    await refused({ node: 'disk', name: 'none' }, /^Dirty bitmap 'none' not found$/);
    const disk = await bed.open({ ...options, target, bitmap: { node: 'disk', name: 'bits' } });
    const model = await disk.readAll();
    const kept = await bed.open({ driver: 'snapshot-access', file: 'cbw' });
    await disk.write(0, Buffer.alloc(5 * CLUSTER, 0x55));
    assertSameBytes(
      await kept.read(2 * CLUSTER, CLUSTER),
      model.subarray(2 * CLUSTER, 3 * CLUSTER),
      'in the bitmap',
    );
    for (const at of [0, 2 * CLUSTER - 1, 3 * CLUSTER - 1, SIZE - 2])
      await assert.rejects(kept.read(at, 2), { errno: 'EACCES' });
    await assert.rejects(kept.backend.status(0, CLUSTER), { errno: 'EACCES' });
    const status = await kept.backend.status(2 * CLUSTER, SIZE - 2 * CLUSTER);
    assert.equal(status.lengthBytes, CLUSTER);
    for (const one of [kept, disk, source]) await one.close();
  }));

test('what does not fit into a smaller target fails its write, or breaks the moment, and nothing else', () =>
  withImages(1, 'raw', async (bed) => {
    for (const onError of ['break-guest-write', 'break-snapshot'] as const) {
      await createImage(bed.opener, '/tmp/kept', 'raw', { sizeBytes: SIZE - 2 * CLUSTER });
      const disk = await bed.open({
        ...{ driver: 'copy-before-write', 'node-name': 'cbw', 'on-cbw-error': onError },
        ...{ file: image('qcow2', 'disk'), target: image('raw', 'kept') },
      });
      const model = await disk.readAll();
      const kept = await bed.open({ driver: 'snapshot-access', file: 'cbw' });
      const isBroken = onError === 'break-snapshot';
      await disk.write(0, Buffer.alloc(CLUSTER, 0x55));
      const beyond = disk.write(SIZE - CLUSTER, Buffer.alloc(CLUSTER, 0x66));
      await (isBroken ? beyond : assert.rejects(beyond, { errno: 'EIO' }));
      await disk.write(CLUSTER, Buffer.alloc(CLUSTER, 0x77));
      const held = kept.readAll();
      if (isBroken) await assert.rejects(held, { errno: 'EACCES' });
      else assertSameBytes(await held, model, 'the moment');
      for (const one of [kept, disk]) await one.close();
    }
  }));

test('what nobody can tell the status of is kept as data', () =>
  withImages(5, 'raw', async (bed) => {
    const { file } = image('raw', 'disk');
    const debug = {
      ...{ driver: 'blkdebug', image: file as NodeOptions },
      'inject-error': [{ event: 'none', iotype: 'block-status' }],
    };
    const disk = await bed.open({
      ...{ driver: 'copy-before-write', 'node-name': 'cbw' },
      ...{ file: { driver: 'raw', file: debug }, target: image('raw', 'kept') },
    });
    await assert.rejects(disk.backend.status(0, CLUSTER), { errno: 'EIO' });
    const before = await disk.read(0, 2 * CLUSTER);
    const kept = await bed.open({ driver: 'snapshot-access', file: 'cbw' });
    await disk.write(0, Buffer.alloc(2 * CLUSTER, 0x55));
    assertSameBytes(await kept.read(0, 2 * CLUSTER), before, 'the moment');
    for (const one of [kept, disk]) await one.close();
  }));

test('what is discarded is kept no longer, in whole clusters', () =>
  withImages(2, 'raw', async (bed) => {
    const disk = await bed.open({
      ...{ driver: 'copy-before-write', 'node-name': 'cbw' },
      ...{ file: image('qcow2', 'disk'), target: { ...image('raw', 'kept'), discard: 'unmap' } },
    });
    const model = await disk.readAll();
    const kept = await bed.open({ driver: 'snapshot-access', file: 'cbw', discard: 'unmap' });
    await kept.backend.discard(CLUSTER - 512, 2 * CLUSTER);
    await assert.rejects(kept.read(CLUSTER, 512), { errno: 'EACCES' });
    for (const at of [0, 2 * CLUSTER])
      assertSameBytes(await kept.read(at, CLUSTER), model.subarray(at, at + CLUSTER), 'is kept');
    // Nothing is copied for it.
    await disk.write(0, Buffer.alloc(3 * CLUSTER, 0x77));
    const target = await bed.attach(disk.node.child('target').node, { readOnly: true });
    assert.deepEqual(await target.read(CLUSTER, CLUSTER), Buffer.alloc(CLUSTER));
    await assert.rejects(kept.write(0, Buffer.alloc(512)), { errno: 'ENOTSUP' });
    await assert.rejects(kept.backend.writeZeroes(0, 512), { errno: 'ENOTSUP' });
    for (const one of [target, kept, disk]) await one.close();
  }));

test('a disk that is cut off keeps what it held there', () =>
  withImages(3, 'raw', async (bed) => {
    await createImage(bed.opener, '/tmp/plain', 'raw', { sizeBytes: SIZE });
    const file = image('raw', 'plain');
    const filled = await bed.open(file);
    await filled.write(0, Buffer.alloc(SIZE, 0x5a));
    await filled.close();
    const disk = await bed.open({
      ...{ driver: 'copy-before-write', 'node-name': 'cbw', file, target: image('raw', 'kept') },
    });
    const kept = await bed.open({ driver: 'snapshot-access', file: 'cbw' });
    // The target does not share this with the filter's users.
    await disk.node.instance.truncate?.(CLUSTER);
    assertSameBytes(await kept.readAll(), Buffer.alloc(SIZE, 0x5a), 'all of it');
    await kept.close();
    await disk.close();
  }));

for (const policy of ['break-guest-write', 'break-snapshot'] as const)
  for (const cause of ['error', 'timeout'] as const)
    test(`${policy}: a copy that fails by ${cause}`, () =>
      withImages(4, 'qcow2', async (bed) => {
        const trouble =
          cause === 'error'
            ? { 'inject-error': [{ event: 'none', iotype: 'write', once: true }] }
            : { 'x-delay': [{ iotype: 'write', 'delay-ms': 3000 }] };
        const { clock } = bed.host;
        const disk = await bed.open({
          ...{ driver: 'copy-before-write', 'node-name': 'cbw', 'on-cbw-error': policy, 'cbw-timeout': 1 },
          file: image('qcow2', 'disk'),
          target: { driver: 'blkdebug', image: image('qcow2', 'kept'), ...trouble },
        });
        const model = await disk.readAll();
        const kept = await bed.open({ driver: 'snapshot-access', file: 'cbw' });
        const at = model.findIndex((byte) => byte !== 0);
        const startedMs = clock.nowMs();
        const write = disk.write(at, Buffer.alloc(1, 0xff));
        await Promise.allSettled([write]);
        if (cause === 'timeout') assert.equal(Math.round(clock.nowMs() - startedMs), 1000);
        if (policy === 'break-guest-write') {
          await assert.rejects(write, { errno: cause === 'error' ? 'EIO' : 'ETIMEDOUT' });
          assertSameBytes(await disk.readAll(), model, 'the disk');
          assertSameBytes(await kept.readAll(), model, 'what it held');
        } else {
          await write;
          assert.equal((await disk.read(at, 1))[0], 0xff);
          await assert.rejects(kept.read(at, 1), { errno: 'EACCES' });
          await assert.rejects(kept.read(SIZE - 1, 1), { errno: 'EACCES' });
        }
        for (const one of [kept, disk]) await one.close();
      }));

test('a snapshot-access above what keeps none fails at each request', () =>
  withImages(5, 'raw', async (bed) => {
    const disk = await bed.open({ driver: 'snapshot-access', file: image('qcow2', 'disk') });
    await assert.rejects(disk.read(0, 512), { errno: 'ENOTSUP' });
    await disk.close();
  }));
