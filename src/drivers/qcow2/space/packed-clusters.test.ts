import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf } from '../../../../test/kit/recorded-disk.js';
import { qcow2Driver } from '../driver.js';
import type { OpenImage } from '../open-image.js';

const CLUSTER = 4096;

test('compressed data goes elsewhere from when its cluster is about to be given back', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), {
    sizeBytes: 100 * CLUSTER,
    options: { 'cluster-size': CLUSTER },
  });
  const disk = await shelf.open('image');
  const { allocator } = (disk.instance.map as unknown as { image: OpenImage }).image;
  const clusterOfNew = async (): Promise<number> => {
    for (;;) {
      const place = allocator.tryAllocateBytes(100);
      if (typeof place === 'number') return Math.floor(place / CLUSTER);
      await place();
    }
  };
  const cluster = await clusterOfNew();
  // Who gives it back looks whether it is its own, and frees the host's blocks before it is released.
  assert.deepEqual(await allocator.ownedRuns(cluster, 1), [{ start: cluster, count: 1 }]);
  assert.notEqual(await clusterOfNew(), cluster);
});
