import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { test } from 'node:test';
import { errnoError } from '../../../base/error.js';
import { createImage } from '../../../block/create.js';
import { createRealHost } from '../../../host/real.js';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf, type RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { TestBed, withFolder } from '../../../../test/kit/test-disk.js';
import { fileDriver } from '../../file/index.js';
import { checkQcow2 } from '../check/check.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { qcow2Driver } from '../driver.js';
import type { OpenImage } from '../open-image.js';

const CLUSTER = 512;
const MiB = 1024 * 1024;

/** Fails the event of this name that comes after `spared` others of it, once. */
function failing(name: string, spared: number): (event: string) => Promise<void> | undefined {
  let left = spared;
  return (event) => (event === name && left-- === 0 ? Promise.reject(errnoError('EIO')) : undefined);
}

async function fails(request: Promise<unknown>): Promise<boolean> {
  return request.then(
    () => false,
    () => true,
  );
}

for (const event of ['cluster_free', 'refblock_load']) {
  test(`freeing that fails half-way (${event}) goes on where it was: nothing is freed twice, nothing leaks`, async () => {
    // 64-bit refcounts in 512-byte clusters: 64 clusters a block, two blocks in memory. An L1 table of 100 clusters,
    // whose clusters are freed when it has moved, goes over several of them.
    let failures = 0;
    for (let spared = 0; spared < 12; spared++) {
      const shelf = new DiskShelf([qcow2Driver]);
      const file = shelf.put('image');
      await createQcow2(childOf(file), {
        sizeBytes: 200 * MiB,
        options: { 'cluster-size': CLUSTER, 'refcount-bits': 64 },
      });
      file.onEvent = () => undefined;
      const disk = await shelf.open('image', { 'refcount-cache-size': 0 });
      file.onEvent = failing(event, spared);
      if (await fails(disk.backend.truncate(210 * MiB))) failures++;
      file.onEvent = () => undefined;
      // What was freed is given out before the rest is.
      const stripes = [1, 2, 3, 4].map((value) => Buffer.alloc(30 * CLUSTER, value));
      for (const [index, stripe] of stripes.entries()) {
        await disk.backend.write(index * stripe.length, stripe);
        await disk.backend.flush();
      }
      const content = Buffer.concat(stripes);
      const what = `${event} ${spared}`;
      assert.ok((await disk.read(0, content.length)).equals(content), what);
      await disk.close();
      const found = await checkQcow2(childOf(file));
      assert.deepEqual([found.corruptions, found.leaks, found.messages.slice(0, 3)], [0, 0, []], what);
    }
    assert.ok(failures > 0, 'some freeing failed');
  });
}

test('a table that goes over more refcount blocks than are kept in memory finds its place', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image');
  const options = { 'cluster-size': CLUSTER, 'refcount-bits': 64 };
  await createQcow2(childOf(file), { sizeBytes: 200 * MiB, options });
  const disk = await shelf.open('image', { 'refcount-cache-size': 0 });
  await disk.backend.truncate(400 * MiB);
  await disk.backend.write(399 * MiB, Buffer.alloc(CLUSTER, 1));
  await disk.close();
  const found = await checkQcow2(childOf(file));
  assert.deepEqual([found.corruptions, found.leaks], [0, 0], found.messages.slice(0, 3).join('; '));
});

test('a table finds its place where more refcount blocks than are kept in memory describe the free end', async () => {
  // 256 clusters a block, 63 blocks in front; then the file is cut behind its tables.
  const image = new HandmadeQcow2({ sizeBytes: MiB, clusterBytes: CLUSTER, clusters: 16000 });
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes.subarray(0, 80 * CLUSTER));
  const disk = await shelf.open('image', { 'refcount-cache-size': 0 });
  await disk.backend.truncate(16 * 1024 * MiB);
  await disk.backend.write(16 * 1023 * MiB, Buffer.alloc(CLUSTER, 1));
  await disk.close();
  const found = await checkQcow2(childOf(file));
  assert.deepEqual([found.corruptions, found.leaks], [0, 0], found.messages.slice(0, 3).join('; '));
});

test('refcount blocks are written back before they take more memory than they may', async () => {
  // 64-bit refcounts in 512-byte clusters: a block for 32 KiB.
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image');
  const options = { 'cluster-size': CLUSTER, 'refcount-bits': 64 };
  await createQcow2(childOf(file), { sizeBytes: 16 * MiB, options });
  const disk = await shelf.open('image', { 'refcount-cache-size': 16 * CLUSTER });
  const { refcounts } = (disk.node.instance.map as unknown as { image: OpenImage }).image;
  let most = 0;
  const look = (): void => void (most = Math.max(most, refcounts.cache.heldBytes));
  for (let at = 0; at < 4 * MiB; at += 64 * CLUSTER) {
    await disk.backend.write(at, Buffer.alloc(64 * CLUSTER, 1));
    look();
  }
  assert.ok(most <= refcounts.cache.limitBytes, `writes: ${most} of ${refcounts.cache.limitBytes}`);
  file.onEvent = () => undefined;
  await disk.backend.discard(0, 4 * MiB);
  const free = disk.backend.flush();
  for (let turn = 0; turn < 100_000; turn++) {
    await Promise.resolve();
    look();
  }
  await free;
  assert.ok(most <= refcounts.cache.limitBytes, `freeing: ${most} of ${refcounts.cache.limitBytes}`);
  await disk.close();
  const found = await checkQcow2(childOf(file));
  assert.deepEqual([found.corruptions, found.leaks, found.allocatedClusters], [0, 0, 0]);
});

test('a guest that discards and never flushes does not take ever more of the file', async () => {
  await withFolder(async (folder) => {
    const bed = new TestBed(createRealHost(), [fileDriver, qcow2Driver], folder);
    const path = bed.newPath('qcow2');
    const options = { 'cluster-size': 2 * MiB };
    await createImage(bed.opener, path, 'qcow2', { sizeBytes: 4 * MiB, options });
    const disk = await bed.open({ driver: 'qcow2', file: { driver: 'file', filename: path } });
    for (let turn = 0; turn < 300; turn++) {
      await disk.backend.write(0, Buffer.from([turn]));
      await disk.backend.discard(0, 2 * MiB);
    }
    assert.ok(statSync(path).size < 300 * MiB);
    await disk.close();
  });
});

test('clusters in any number that are counted behind the end of the file are passed over', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image');
  const cluster = 2048;
  const options = { 'cluster-size': cluster, 'refcount-bits': 1 };
  await createQcow2(childOf(file), { sizeBytes: MiB, options });
  // All that the first refcount block describes.
  file.write(2 * cluster, Buffer.alloc(cluster, 0xff));
  const disk = await shelf.open('image');
  await disk.backend.write(0, Buffer.alloc(cluster, 1));
  assert.ok((await disk.read(0, cluster)).equals(Buffer.alloc(cluster, 1)));
  assert.ok(file.lengthBytes > 8 * cluster * cluster, 'behind them');
  await disk.close();
  assert.equal((await checkQcow2(childOf(file))).corruptions, 0);
});

/** What a write-back announces before each write that may fail. */
const STAGES = [
  'refblock_alloc_write',
  'refblock_alloc_hookup',
  'refblock_update',
  'l2_alloc_write',
  'l2_update',
  'l1_update',
  'l1_grow_write_table',
  'l1_grow_activate_table',
  'refblock_alloc_write_blocks',
  'refblock_alloc_write_table',
  'refblock_alloc_switch_table',
  'flush_to_disk',
];

/** Fails the write that follows the event of this name that comes after `spared` others of it, once. */
function failingWrite(file: RecordedDisk, name: string, spared: number): () => boolean {
  let left = spared;
  let strikes = false;
  let failed = false;
  file.onEvent = (event): undefined => void (strikes ||= event === name && left-- === 0);
  file.failure = (): Error | undefined => {
    if (!strikes) return undefined;
    strikes = false;
    failed = true;
    return errnoError('ENOSPC');
  };
  return () => failed;
}

for (const stage of STAGES) {
  test(`a write-back that fails (${stage}) is done again: nothing is forgotten, nothing leaks`, async () => {
    let failures = 0;
    for (let spared = 0; spared < 4; spared++) {
      const shelf = new DiskShelf([qcow2Driver]);
      const file = shelf.put('image');
      // 64 clusters a refcount block, so that every kind of table is made, changed and moved.
      const options = { 'cluster-size': CLUSTER, 'refcount-bits': 64 };
      await createQcow2(childOf(file), { sizeBytes: 4 * MiB, options });
      file.onEvent = () => undefined;
      const disk = await shelf.open('image');
      const content = Buffer.alloc(4 * MiB);
      const write = (at: number, length: number, value: number): Promise<void> => {
        content.fill(value, at, at + length);
        return disk.backend.write(at, Buffer.alloc(length, value));
      };
      await write(0, 40 * CLUSTER, 1);
      await write(MiB, 40 * CLUSTER, 2);
      await disk.backend.flush();
      await disk.backend.discard(0, 3 * CLUSTER);
      content.fill(0, 0, 3 * CLUSTER);
      await write(60 * CLUSTER, 2 * CLUSTER, 3);
      const moves = stage.startsWith('refblock_alloc_') && !/alloc.write$|hookup/.test(stage);
      // The refcount table of a new image describes 4096 clusters.
      await write(2 * MiB, moves ? 2 * MiB : 80 * CLUSTER, 4);
      if (moves) await write(MiB, MiB, 5);
      const failed = failingWrite(file, stage, spared);
      const growth = stage.startsWith('l1_grow') ? disk.backend.truncate(5 * MiB) : disk.backend.flush();
      if (await fails(growth)) {
        failures++;
        assert.ok(failed());
      }
      file.onEvent = () => undefined;
      file.failure = () => undefined;
      await write(3 * MiB, 5 * CLUSTER, 5);
      await disk.backend.flush();
      await disk.close();
      const what = `${stage} ${spared}`;
      const again = await shelf.open('image', { readOnly: true });
      assert.ok((await again.read(0, content.length)).equals(content), what);
      const found = await checkQcow2(childOf(file));
      assert.deepEqual([found.corruptions, found.leaks, found.messages.slice(0, 3)], [0, 0, []], what);
    }
    assert.ok(failures > 0, 'some write-back failed');
  });
}

/** The first flush after the event of this name fails, and the storage drops what was written since the one before. */
function droppingFlush(file: RecordedDisk, name: string): () => boolean {
  let strikes = false;
  let failed = false;
  let kept = file.contents();
  file.onEvent = (event): undefined => void (strikes ||= event === name && !failed);
  file.failure = (request): Error | undefined => {
    if (request === 'write') return undefined;
    if (!strikes) {
      kept = file.contents();
      return undefined;
    }
    strikes = false;
    failed = true;
    file.write(0, Buffer.concat([kept, Buffer.alloc(file.lengthBytes - kept.length)]));
    return errnoError('EIO');
  };
  return () => failed;
}

for (const move of ['l1_grow_activate_table', 'refblock_alloc_switch_table']) {
  test(`a table that has moved is named again where the storage dropped its name (${move})`, async () => {
    const shelf = new DiskShelf([qcow2Driver]);
    const file = shelf.put('image');
    const options = { 'cluster-size': CLUSTER, 'refcount-bits': 64 };
    await createQcow2(childOf(file), { sizeBytes: 4 * MiB, options });
    file.onEvent = () => undefined;
    const disk = await shelf.open('image');
    const kept = Buffer.alloc(MiB, 1);
    await disk.backend.write(0, kept);
    await disk.backend.flush();
    const hasFailed = droppingFlush(file, move);
    if (move.startsWith('l1')) {
      await assert.rejects(disk.backend.truncate(5 * MiB));
    } else {
      // The refcount table of a new image describes 4096 clusters.
      await disk.backend.write(MiB, Buffer.alloc(2 * MiB, 2));
      await assert.rejects(disk.backend.flush());
    }
    assert.ok(hasFailed());
    await disk.backend.flush();
    await disk.close();
    const found = await checkQcow2(childOf(file));
    assert.deepEqual([found.corruptions, found.leaks, found.messages.slice(0, 3)], [0, 0, []]);
    const again = await shelf.open('image', { readOnly: true });
    assert.ok((await again.read(0, MiB)).equals(kept));
  });
}

for (const synchronous of [true, false]) {
  test(`writes that fail, or are refused at once, leak no cluster (${synchronous ? 'at once' : 'later'})`, async () => {
    for (const clusterBytes of [CLUSTER, 65536]) {
      const shelf = new DiskShelf([qcow2Driver]);
      const file = shelf.put('image');
      await createQcow2(childOf(file), { sizeBytes: 64 * MiB, options: { 'cluster-size': clusterBytes } });
      file.synchronous = synchronous;
      const disk = await shelf.open('image');
      let turn = 0;
      let failures = 0;
      for (let at = 0; at < 8 * MiB; at += 100_000) {
        const isBad = turn++ % 2 === 0;
        file.failure = () => (isBad ? errnoError('ENOSPC') : undefined);
        const bytes = Buffer.alloc(3 * clusterBytes, turn);
        // Refused at once where the cluster is not written whole; a failure leaves it to the promise form.
        const write = async (): Promise<void> => {
          if (!disk.backend.tryWrite(at, bytes, 0)) await disk.backend.write(at, bytes);
        };
        if (await fails(write())) failures++;
      }
      assert.ok(failures > 20, `${failures} failures`);
      file.failure = () => undefined;
      await disk.close();
      const found = await checkQcow2(childOf(file));
      assert.deepEqual([found.corruptions, found.leaks, found.messages.slice(0, 3)], [0, 0, []]);
    }
  });
}

test('what is lost counts what a write-back that failed had taken, and what was written meanwhile', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image');
  await createQcow2(childOf(file), { sizeBytes: MiB, options: { 'cluster-size': CLUSTER } });
  file.onEvent = () => undefined;
  const disk = await shelf.open('image');
  const write = (cluster: number, count: number): Promise<void> =>
    disk.backend.write(cluster * CLUSTER, Buffer.alloc(count * CLUSTER, 1));
  await write(0, 7);
  await disk.backend.flush();
  await write(20, 5);
  // The guest goes on while the write-back is under way.
  file.onEvent = (event) => (event === 'refblock_update' ? write(40, 3) : undefined);
  file.failure = (event) => (event === 'flush' ? errnoError('ENOSPC') : undefined);
  await assert.rejects(disk.backend.flush(), { errno: 'ENOSPC' });
  file.onEvent = () => undefined;
  const message = `The last ${8 * CLUSTER} bytes written to 'image' are lost: No space left on device`;
  await assert.rejects(disk.close(), { errno: 'ENOSPC', message });
});
