import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { FieldOffset } from '../disk/header.js';
import { qcow2Driver } from '../driver.js';
import type { OpenImage } from '../open-image.js';
import {
  activeRuns,
  addReferences,
  claimOwned,
  clearCopied,
  type ClusterRun,
  dropReferences,
  whileDirty,
} from './bulk.js';

const CLUSTER = 1024;
const SIZE = 300 * CLUSTER;

/** Data, kept zeroes and three L2 tables. */
function image(): HandmadeQcow2 {
  const made = new HandmadeQcow2({ sizeBytes: SIZE, clusterBytes: CLUSTER, clusters: 40 });
  for (const cluster of [0, 1, 2, 7, 130, 131, 260]) made.data(cluster, 1 + (cluster % 250));
  made.entry(9, BigInt(made.cluster(3)) + 2n ** 63n + 1n);
  return made;
}

interface Bed {
  disk: OpenDisk;
  open: OpenImage;
  file: RecordedDisk;
}

async function bed(bytes: Buffer): Promise<Bed> {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', bytes);
  const disk = await shelf.open('image');
  const { image: open } = disk.instance.map as unknown as { image: OpenImage };
  return { disk, open, file };
}

async function runsOf(open: OpenImage): Promise<ClusterRun[]> {
  const runs: ClusterRun[] = [];
  for await (const run of activeRuns(open)) runs.push(run);
  return runs;
}

async function messages(file: RecordedDisk): Promise<string[]> {
  return (await checkQcow2(childOf(file))).messages;
}

function clustersOf(runs: readonly ClusterRun[]): number[] {
  return runs
    .flatMap(({ start, count }) => Array.from({ length: count }, (_, i) => start + i))
    .sort((a, b) => a - b);
}

/** What a snapshot does: everything has one more user, and is copied when it changes. */
async function share({ open }: Bed): Promise<ClusterRun[]> {
  const runs = await runsOf(open);
  await whileDirty(open, async () => {
    await addReferences(open, () => runs);
    await clearCopied(open);
  });
  return runs;
}

test('all that the active tables refer to is counted once more, copied when it changes, and given back', async () => {
  const made = await bed(image().bytes);
  const runs = await share(made);
  const { disk, open, file } = made;
  const leaks = clustersOf(runs).map((cluster) => `Leaked cluster ${cluster} refcount=2 reference=1`);
  assert.equal(leaks.length, 3 + 8);
  assert.deepEqual(await messages(file), leaks);
  const before = file.contents();
  await disk.backend.write(CLUSTER, Buffer.alloc(CLUSTER, 99));
  await disk.backend.write(9 * CLUSTER, Buffer.alloc(512, 98));
  await disk.backend.flush();
  for (const cluster of clustersOf(runs)) {
    const at = cluster * CLUSTER;
    const is = (bytes: Buffer): Buffer => bytes.subarray(at, at + CLUSTER);
    assert.ok(is(file.contents()).equals(is(before)), `cluster ${cluster} is kept`);
  }
  await whileDirty(open, async () => {
    for (const run of runs) dropReferences(open, run);
    while (open.writeBack.isDirty) await open.writeBack.flush();
    await claimOwned(open);
  });
  assert.deepEqual(await messages(file), []);
  assert.deepEqual(await disk.read(CLUSTER, CLUSTER), Buffer.alloc(CLUSTER, 99));
  assert.deepEqual(await disk.read(130 * CLUSTER, CLUSTER), Buffer.alloc(CLUSTER, 131));
  assert.deepEqual(
    await disk.read(9 * CLUSTER, 513),
    Buffer.concat([Buffer.alloc(512, 98), Buffer.alloc(1)]),
  );
  await disk.close();
  assert.deepEqual(await messages(file), []);
});

test('a refcount that cannot count more: refused, and nothing has changed', async () => {
  const handmade = image();
  const full = handmade.data(5, 5);
  handmade.refcount(full, 65535);
  const { disk, open } = await bed(handmade.bytes);
  const runs = await runsOf(open);
  await assert.rejects(
    addReferences(open, () => runs),
    { errno: 'EINVAL', offset: full },
  );
  handmade.refcount(full, 65534);
  assert.equal(open.writeBack.isDirty, false);
  await disk.close();
  const twice = await bed(handmade.bytes);
  const cluster = full / CLUSTER;
  const run = { start: cluster, count: 1 };
  await assert.rejects(
    addReferences(twice.open, () => [run, run]),
    { errno: 'EINVAL' },
  );
  assert.equal(twice.open.writeBack.isDirty, false);
  await addReferences(twice.open, () => [run]);
  await twice.disk.close();
  assert.ok((await messages(twice.file)).includes(`Leaked cluster ${cluster} refcount=65535 reference=1`));
});

test('more blocks and tables than memory takes are brought to disk in between', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  const handmade = new HandmadeQcow2({ sizeBytes: 4000 * 512, clusterBytes: 512, clusters: 1100 });
  for (let cluster = 0; cluster < 1000; cluster++) handmade.data(cluster * 4, 1 + (cluster % 250));
  const file = shelf.put('image', handmade.bytes);
  const disk = await shelf.open('image', { 'l2-cache-size': 2048, 'refcount-cache-size': 2048 });
  const { image: open } = disk.instance.map as unknown as { image: OpenImage };
  await whileDirty(open, async () => {
    await addReferences(open, () => activeRuns(open));
    assert.ok(
      open.refcounts.cache.heldBytes <= 2048,
      `${open.refcounts.cache.heldBytes} bytes of refcount blocks`,
    );
    await clearCopied(open);
    assert.ok(open.tables.cache.heldBytes <= 2048, `${open.tables.cache.heldBytes} bytes of L2 tables`);
  });
  const found = await checkQcow2(childOf(file));
  assert.deepEqual([found.corruptions, found.leaks], [0, 1000 + 63]);
  assert.deepEqual(await disk.read(999 * 4 * 512, 512), Buffer.alloc(512, 250));
  await disk.close();
});

test('a crash in between leaves an image that is repaired as it is opened, with the same content', async () => {
  const made = await bed(image().bytes);
  const content = await made.disk.read(0, SIZE);
  await share(made);
  let dirty = 0;
  for (const state of crashStates(made.file, seededBelow(3))) {
    const isDirty = state.content.readBigUInt64BE(FieldOffset.incompatible) === 1n;
    const found = await checkQcow2(childOf(new RecordedDisk(state.content)));
    if (isDirty) dirty++;
    else assert.equal(found.corruptions, 0, `${state.survived}: ${found.messages.join('; ')}`);
    const after = await bed(state.content);
    assert.ok((await after.disk.read(0, SIZE)).equals(content), state.survived);
    await after.disk.close();
    assert.equal((await checkQcow2(childOf(after.file))).corruptions, 0);
  }
  assert.ok(dirty > 3, `${dirty} states`);
});
