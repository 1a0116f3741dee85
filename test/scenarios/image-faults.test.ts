import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../../src/base/error.js';
import type { NodeOptions } from '../../src/block/driver.js';
import { createImage } from '../../src/block/create.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { Flag } from '../../src/block/request.js';
import { findByName, snapshotsOf } from '../../src/block/internal-snapshots.js';
import { allDrivers } from '../../src/drivers/index.js';
import { checkQcow2 } from '../../src/drivers/qcow2/check/check.js';
import { qcow2Driver } from '../../src/drivers/qcow2/driver.js';
import { createSimulatedHost, SeededRandom } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { DamagedQcow2, ownEntry } from '../kit/damaged-qcow2.js';
import { createQcow2 } from '../kit/new-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../kit/recorded-disk.js';

/** Faults that image engines were reported to have, each as the one situation that brings it about. */

const CLUSTER = 4096;
const SIZE = 64 * CLUSTER;
/** The bit of an entry that says so. */
const COMPRESSED = 2n ** 62n - 1n;

async function shelfWith(options: NodeOptions = {}): Promise<DiskShelf> {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), {
    sizeBytes: SIZE,
    options: { 'cluster-size': CLUSTER, ...options },
  });
  return shelf;
}

async function messages(shelf: DiskShelf): Promise<string[]> {
  return (await checkQcow2(childOf(new RecordedDisk(shelf.disk('image').contents())))).messages;
}

for (const [what, damage] of [
  ['an L2 table', (image: DamagedQcow2) => image.setRefcount(image.l2, 0)],
  ['the L1 table', (image: DamagedQcow2) => image.setRefcount(image.l1, 0)],
  ['the refcount table', (image: DamagedQcow2) => image.setRefcount(image.refcountTable, 0)],
  ['the header', (image: DamagedQcow2) => image.setRefcount(0, 0)],
] as const)
  test(`${what} that counts as free is not given out`, async () => {
    const shelf = await shelfWith();
    const disk = await shelf.open('image');
    await disk.backend.write(0, Buffer.alloc(CLUSTER, 1));
    await disk.close();
    const image = new DamagedQcow2(shelf.disk('image').contents());
    damage(image);
    const file = shelf.put('image', image.bytes);
    const again = await shelf.open('image');
    for (let cluster = 1; cluster < 40; cluster++)
      await again.backend.write(cluster * CLUSTER, Buffer.alloc(CLUSTER, 0xee)).catch(() => undefined);
    await again.close().catch(() => undefined);
    const after = new DamagedQcow2(file.contents());
    for (const at of [0, image.l1, image.l2, image.refcountTable])
      assert.notEqual(after.bytes[at + 8], 0xee, `data at ${at}`);
    const reader = await shelf.open('image', { readOnly: true });
    assert.ok((await reader.read(0, CLUSTER)).equals(Buffer.alloc(CLUSTER, 1)));
    await reader.close();
  });

test('a header whose cluster an entry names is not overwritten', async () => {
  const shelf = await shelfWith();
  const disk = await shelf.open('image');
  await disk.backend.write(0, Buffer.alloc(CLUSTER, 1));
  await disk.close();
  const image = new DamagedQcow2(shelf.disk('image').contents());
  image.setEntry(0, ownEntry(image.l1));
  const file = shelf.put('image', image.bytes);
  const again = await shelf.open('image');
  await assert.rejects(again.backend.write(0, Buffer.alloc(CLUSTER, 2)), /overlaps with active L1 table/);
  await again.close().catch(() => undefined);
  const after = file.contents();
  after.writeBigUInt64BE(0n, 72);
  image.bytes.copy(after, 72, 72, 80);
  assert.ok(after.equals(image.bytes));
});

/** Half of a compressed cluster is overwritten: the rest has to move, and that fails at the n-th write. */
test('a compressed cluster whose way out fails keeps its place, and nobody else gets it', async () => {
  for (let fails = 1; fails < 12; fails++) {
    const shelf = await shelfWith();
    const file = shelf.put('image', shelf.disk('image').contents());
    const disk = await shelf.open('image');
    for (let cluster = 0; cluster < 6; cluster++)
      await disk.backend.write(cluster * CLUSTER, Buffer.alloc(CLUSTER, cluster + 1), Flag.compressed);
    await disk.backend.flush();
    let left = fails;
    file.failure = (event) => (event === 'write' && --left === 0 ? errnoError('EIO') : undefined);
    const failed: number[] = [];
    for (let cluster = 1; cluster < 4; cluster++) {
      const write = disk.backend.write(cluster * CLUSTER + 1024, Buffer.alloc(1024, 0x10 + cluster));
      await write.catch(() => failed.push(cluster));
    }
    await disk.backend.flush().catch(() => undefined);
    file.failure = () => undefined;
    // Others take what is free.
    for (let cluster = 20; cluster < 40; cluster++)
      await disk.backend.write(cluster * CLUSTER, Buffer.alloc(CLUSTER, 0x80));
    await disk.close().catch(() => undefined);
    const reader = await shelf.open('image', { readOnly: true });
    for (let cluster = 0; cluster < 6; cluster++) {
      const content = await reader.read(cluster * CLUSTER, CLUSTER);
      const expected = Buffer.alloc(CLUSTER, cluster + 1);
      const without = Buffer.from(expected);
      if (cluster >= 1 && cluster < 4) expected.fill(0x10 + cluster, 1024, 2048);
      const isRight = content.equals(expected) || (failed.includes(cluster) && content.equals(without));
      assert.ok(isRight, `cluster ${cluster}, write ${fails} failed`);
    }
    await reader.close();
    const { corruptions } = await checkQcow2(childOf(new RecordedDisk(file.contents())));
    assert.equal(corruptions, 0);
  }
});

test('a hole that is punched late does not hit what took the place meanwhile', async () => {
  const region = 8 * 65536;
  for (let seed = 0; seed < 12; seed++) {
    const simulation = createSimulatedHost({ seed, latencyMs: 3 });
    await simulation.run(async () => {
      const engine = new Engine({ host: simulation.host, drivers: allDrivers, kind: 'storage-daemon' });
      await createImage(engine.opener, '/tmp/image', 'qcow2', { sizeBytes: 4 * region, options: {} });
      const node = await engine.opener.openImage('/tmp/image', 'qcow2', {
        readOnly: false,
        discard: 'unmap',
      });
      const guest = engine.graph.createBackend({
        description: 'a guest',
        perm: Permission.consistentRead | Permission.write,
        shared: ALL_PERMISSIONS,
      });
      await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
      // Each has a part of the disk, and takes what the others have given up.
      const live = async (part: number): Promise<void> => {
        const random = new SeededRandom(seed * 4 + part);
        for (let step = 1; step < 25; step++) {
          const at = part * region + random.below(8) * 65536;
          const bytes = Buffer.alloc(65536, part * 50 + step);
          if (random.chance(0.4)) await guest.discard(at, 65536);
          await guest.write(at, bytes);
          if (random.chance(0.4)) await guest.flush();
          const read = Buffer.alloc(65536);
          await guest.read(at, read);
          assert.ok(read.equals(bytes), `seed ${seed}, part ${part}, step ${step}`);
          await guest.discard(part * region + random.below(8) * 65536, 65536);
        }
      };
      await Promise.all([0, 1, 2, 3].map(live));
    });
  }
});

for (const [what, options] of [
  ['plain', {}],
  ['with subclusters', { 'cluster-size': 16384, 'extended-l2': true }],
  ['with refcounts of 64 bits', { 'refcount-bits': 64 }],
] as const)
  test(`an image does not grow with each flush: ${what}`, async () => {
    const shelf = await shelfWith(options);
    const disk = await shelf.open('image');
    const snapshots = snapshotsOf(disk.node);
    const named = { name: 's', dateSec: 5, dateNsec: 6, clockNs: 7n, icount: -1n };
    const round = async (value: number): Promise<void> => {
      await disk.backend.write(0, Buffer.alloc(20 * CLUSTER, value));
      await disk.backend.flush();
      await disk.backend.discard(0, 16384);
      await disk.backend.write(0, Buffer.alloc(16384, value), Flag.compressed);
      await disk.backend.flush();
      await disk.backend.writeZeroes(5 * CLUSTER, 9 * CLUSTER, Flag.mayUnmap);
      await disk.backend.flush();
      await snapshots?.take(named);
      await disk.backend.write(0, Buffer.alloc(20 * CLUSTER, value + 1));
      await disk.backend.flush();
      await snapshots?.delete(findByName(disk.node, 's')?.id ?? '');
      await disk.backend.flush();
    };
    for (let i = 0; i < 30; i++) await round(i);
    const settled = shelf.disk('image').lengthBytes;
    for (let i = 0; i < 60; i++) await round(i);
    assert.equal(shelf.disk('image').lengthBytes, settled);
    await disk.close();
    assert.deepEqual(await messages(shelf), []);
  });

/** In a compressed entry, what elsewhere says that a cluster is zeroes is a bit of its place. */
test('compressed data at an odd place is no zeroes', async () => {
  const shelf = await shelfWith();
  const disk = await shelf.open('image');
  // Noise that shrinks a little: the next one begins at any byte.
  for (let cluster = 0; cluster < 16; cluster++) {
    const bytes = Buffer.alloc(CLUSTER, cluster + 1);
    for (let i = 0; i < 40 + cluster; i++) bytes[i] = (i * 97 + cluster * 31) % 256;
    await disk.backend.write(cluster * CLUSTER, bytes, Flag.compressed);
  }
  await disk.close();
  const image = new DamagedQcow2(shelf.disk('image').contents());
  const entries = Array.from({ length: 16 }, (_, cluster) => image.entry(cluster));
  const isOdd = (entry: bigint): boolean => BigInt.asUintN(1, entry) === 1n;
  assert.ok(entries.some(isOdd) && entries.every((entry) => BigInt.asUintN(63, entry) > COMPRESSED));
  const reader = await shelf.open('image', { readOnly: true });
  for (let cluster = 0; cluster < 16; cluster++) {
    const content = await reader.read(cluster * CLUSTER, CLUSTER);
    assert.equal(content[CLUSTER - 1], cluster + 1);
    assert.equal((await reader.node.io.status(cluster * CLUSTER, CLUSTER)).zero, false);
  }
  await reader.close();
});

for (const version of ['v2', 'v3'])
  for (const baseClusters of [64, 40, 33.25])
    test(`zeroes over a backing file of ${baseClusters} clusters hide it, in ${version}`, async () => {
      const shelf = new DiskShelf([qcow2Driver]);
      const baseBytes = baseClusters * CLUSTER;
      await createQcow2(childOf(shelf.put('base')), { sizeBytes: baseBytes });
      const base = await shelf.open('base');
      await base.backend.write(0, Buffer.alloc(baseBytes, 0xbb));
      await base.close();
      await createQcow2(childOf(shelf.put('image')), {
        sizeBytes: SIZE,
        options: { 'cluster-size': CLUSTER, version },
        ...{ backingFile: 'base', backingFormat: 'qcow2' },
      });
      const disk = await shelf.open('image');
      const model = Buffer.alloc(SIZE);
      model.fill(0xbb, 0, baseBytes);
      const random = new SeededRandom(baseBytes);
      for (let step = 0; step < 60; step++) {
        const at = random.below(SIZE / 512) * 512;
        const length = Math.min(SIZE - at, (1 + random.below(60)) * 512);
        if (random.chance(0.3)) {
          await disk.backend.write(at, Buffer.alloc(length, step + 1));
          model.fill(step + 1, at, at + length);
        } else {
          await disk.backend.writeZeroes(at, length, random.chance(0.5) ? Flag.mayUnmap : 0);
          model.fill(0, at, at + length);
        }
        assert.ok((await disk.read(0, SIZE)).equals(model), `step ${step}`);
      }
      await disk.close();
      assert.deepEqual(await messages(shelf), []);
    });
