import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf } from '../../../../test/kit/recorded-disk.js';
import { Flag } from '../../../block/request.js';
import { qcow2Driver } from '../driver.js';

const CLUSTER = 4096;

test('holes, stretches and clusters that do not follow their neighbour are told, also of a disk in use', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), {
    sizeBytes: 4096 * CLUSTER,
    options: { 'cluster-size': CLUSTER },
  });
  const disk = await shelf.open('image');
  const use = async () => {
    await disk.backend.flush();
    await disk.backend.flush();
    const { lengthBytes, usedBytes, freeBytes, clusterBytes, ...lie } = (await disk.instance.fileUse?.()) ?? {
      clusterBytes: 0,
    };
    assert.equal(clusterBytes, CLUSTER);
    assert.equal(lengthBytes, shelf.disk('image').lengthBytes);
    return { used: Number(usedBytes) / CLUSTER, free: Number(freeBytes) / CLUSTER, ...lie };
  };
  const write = (cluster: number, count: number): Promise<void> =>
    disk.backend.write(cluster * CLUSTER, Buffer.alloc(count * CLUSTER, 1));
  // Header, refcount table and block, L1.
  const metadata = 4;
  const nothing = {
    extents: 0,
    adjoiningClusters: 0,
    scatteredClusters: 0,
    dataClusters: 0,
    compressedClusters: 0,
  };
  assert.deepEqual(await use(), { used: metadata, free: 0, ...nothing });
  // Of the first and the second L2 table, of 512 entries each.
  await write(502, 20);
  const whole = { dataClusters: 20, compressedClusters: 0 };
  const first = await use();
  assert.deepEqual(
    { ...first, extents: 0, scatteredClusters: 0 },
    {
      ...{ used: metadata + 22, free: 0, adjoiningClusters: 19, extents: 0, scatteredClusters: 0 },
      ...whole,
    },
  );
  assert.ok(first.scatteredClusters !== undefined && first.scatteredClusters <= 1);
  assert.equal(first.extents, first.scatteredClusters + 1);
  // Every other cluster goes, and comes back in the other order.
  for (let cluster = 502; cluster < 522; cluster += 2) await disk.backend.discard(cluster * CLUSTER, CLUSTER);
  const holed = await use();
  assert.deepEqual(holed, {
    ...{ used: metadata + 12, free: 10, extents: 10, adjoiningClusters: 0, scatteredClusters: 0 },
    ...{ dataClusters: 10, compressedClusters: 0 },
  });
  for (let cluster = 520; cluster >= 502; cluster -= 2) await write(cluster, 1);
  const { free, adjoiningClusters, scatteredClusters = 0 } = await use();
  assert.deepEqual([free, adjoiningClusters], [0, 19]);
  assert.ok(scatteredClusters > 15, `${scatteredClusters}`);
  await disk.backend.write(0, Buffer.alloc(CLUSTER, 1), Flag.compressed);
  assert.equal((await use()).compressedClusters, 1);
  await disk.close();
});
