import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Flag } from '../../../block/request.js';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';

const CLUSTER = 65536;

test('what an internal snapshot has in common with the disk keeps its content, whatever is done to the disk', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 8 * CLUSTER, clusters: 32 });
  const hosts = [0, 1, 2, 3, 4].map((cluster) => image.data(cluster, 0x11 * (cluster + 1)));
  image.snapshot();
  // Only the disk's: its blocks may go.
  const own = image.data(5, 0x99);
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  const disk = await shelf.open('image');
  await disk.backend.discard(0, CLUSTER);
  await disk.backend.writeZeroes(CLUSTER, CLUSTER, Flag.mayUnmap);
  await disk.backend.writeZeroes(2 * CLUSTER, CLUSTER, Flag.none);
  await disk.backend.write(3 * CLUSTER + 5, Buffer.alloc(5, 1));
  await disk.backend.discard(4 * CLUSTER, 2 * CLUSTER);
  const expected = Buffer.alloc(8 * CLUSTER);
  expected.fill(0x44, 3 * CLUSTER, 4 * CLUSTER).fill(1, 3 * CLUSTER + 5, 3 * CLUSTER + 10);
  assert.ok((await disk.read(0, 8 * CLUSTER)).equals(expected), 'content');
  await disk.close();
  const content = file.contents();
  hosts.forEach((host, cluster) => {
    const kept = content.subarray(host, host + CLUSTER);
    assert.ok(kept.equals(Buffer.alloc(CLUSTER, 0x11 * (cluster + 1))), `cluster ${cluster} of the snapshot`);
  });
  assert.ok(
    content.subarray(own, own + CLUSTER).every((byte) => byte === 0),
    'blocks of a free cluster',
  );
  const found = await checkQcow2(childOf(file));
  assert.deepEqual([found.corruptions, found.leaks, found.messages], [0, 0, []]);
});
