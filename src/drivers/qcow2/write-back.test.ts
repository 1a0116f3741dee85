import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../../base/error.js';
import { childOf, DiskShelf } from '../../testing/recorded-disk.js';
import { checkQcow2 } from './check.js';
import { createQcow2 } from './create.js';
import { qcow2Driver } from './driver.js';

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
