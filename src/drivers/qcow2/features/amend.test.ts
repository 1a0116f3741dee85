import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../../../base/error.js';
import type { ImageAmendment } from '../../../block/driver.js';
import { drawnCrashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';
import { parseHeader } from '../disk/header.js';
import { ExtensionType, featureNames, findExtension } from '../disk/header-extensions.js';

const CLUSTER = 4096;
const SIZE = 40 * CLUSTER;
const SNAPSHOT = { name: 's', dateSec: 5, dateNsec: 6, clockNs: 7n, icount: -1n };

/** An overlay with data, zeroes and a backing file whose name is long. */
async function overlay(version: 'v2' | 'v3', baseName = 'base'): Promise<DiskShelf> {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put(baseName)), { sizeBytes: SIZE });
  const base = await shelf.open(baseName);
  await base.backend.write(0, Buffer.alloc(SIZE, 0xbb));
  await base.close();
  await createQcow2(childOf(shelf.put('image')), {
    sizeBytes: SIZE,
    options: { version, 'cluster-size': CLUSTER },
    ...{ backingFile: baseName, backingFormat: 'qcow2' },
  });
  const disk = await shelf.open('image');
  await disk.backend.write(3 * CLUSTER, Buffer.alloc(5 * CLUSTER, 1));
  if (version === 'v3') await disk.backend.writeZeroes(10 * CLUSTER, 9 * CLUSTER, 0);
  await disk.close();
  return shelf;
}

async function contentOf(shelf: DiskShelf): Promise<Buffer> {
  const disk = await shelf.open('image', { readOnly: true });
  const content = await disk.read(0, SIZE);
  await disk.close();
  return content;
}

async function amend(shelf: DiskShelf, changes: ImageAmendment): Promise<void> {
  const disk = await shelf.open('image');
  try {
    await disk.node.instance.amend?.(changes);
    await disk.backend.write(0, Buffer.alloc(CLUSTER, 2));
  } finally {
    await disk.close();
  }
}

for (const [from, to] of [
  ['v2', 3],
  ['v3', 2],
] as const)
  for (const baseName of ['base', 'b'.repeat(600)])
    test(`${from} to version ${to}, a name of ${baseName.length} bytes: the same content, at any crash`, async () => {
      const shelf = await overlay(from, baseName);
      const before = await contentOf(shelf);
      const file = shelf.put('image', shelf.disk('image').contents());
      const disk = await shelf.open('image');
      await disk.node.instance.amend?.({ version: to });
      file.mark('done');
      await disk.close();
      for (const state of drawnCrashStates(file, seededBelow(3))) {
        shelf.put('image', state.content);
        const header = parseHeader(state.content.subarray(0, CLUSTER));
        if (state.marks.includes('done')) assert.equal(header.version, to);
        assert.equal(header.backing?.filename, baseName);
        const found = await checkQcow2(childOf(new RecordedDisk(state.content)));
        assert.deepEqual([found.corruptions, found.checkErrors], [0, 0], state.survived);
        assert.ok((await contentOf(shelf)).equals(before), state.survived);
      }
      shelf.put('image', file.contents());
      assert.deepEqual((await checkQcow2(childOf(new RecordedDisk(file.contents())))).messages, []);
    });

test('without a backing file, what is zeroes needs no clusters in version 2', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'cluster-size': CLUSTER } });
  const disk = await shelf.open('image');
  await disk.backend.write(0, Buffer.alloc(SIZE, 1));
  await disk.backend.writeZeroes(CLUSTER, 20 * CLUSTER, 0);
  await disk.close();
  await amend(shelf, { version: 2 });
  const found = await checkQcow2(childOf(new RecordedDisk(shelf.disk('image').contents())));
  assert.deepEqual([found.messages, found.allocatedClusters], [[], 20]);
  assert.ok((await contentOf(shelf)).subarray(CLUSTER, 21 * CLUSTER).every((byte) => byte === 0));
});

test('lazy refcounts come and go, and what cannot be says why', async () => {
  const shelf = await overlay('v2');
  const isLazy = (): boolean => shelf.disk('image').contents()[87] === 1;
  await assert.rejects(amend(shelf, { lazyRefcounts: true }), /only supported with compatibility level 1.1/);
  await amend(shelf, { version: 3, lazyRefcounts: true });
  assert.equal(isLazy(), true);
  await amend(shelf, { lazyRefcounts: false });
  assert.equal(isLazy(), false);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'refcount-bits': 32 } });
  await assert.rejects(amend(shelf, { version: 2 }), /^BlockError: compat=0.10 requires refcount_bits=16$/);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'extended-l2': true } });
  await assert.rejects(amend(shelf, { version: 2 }), /with incompatible features 0x10 set/);
});

test('features are named in version 3 alone', async () => {
  const shelf = await overlay('v3');
  const names = (): string[] => {
    const { extensions } = parseHeader(shelf.disk('image').contents().subarray(0, CLUSTER));
    const table = findExtension(extensions, ExtensionType.featureNames);
    return [0, 1, 2].flatMap((bitmap) => [...featureNames(table, bitmap).values()]);
  };
  // The backing file's format leaves no room for the eighth.
  assert.equal(names().length, 7);
  await amend(shelf, { version: 2 });
  assert.deepEqual(names(), []);
  await amend(shelf, { version: 3 });
  assert.equal(names().length, 7);
  const disk = await shelf.open('image', { backing: null });
  await disk.node.instance.changeBacking?.(undefined, undefined);
  await disk.close();
  assert.equal(names().at(-1), 'raw external data');
});

for (const clusterBytes of [512, CLUSTER])
  for (const [from, to] of [
    [16, 64],
    [16, 1],
    [64, 8],
    [1, 2],
  ] as const)
    test(`refcounts of ${from} bits get ${to}, clusters of ${clusterBytes}: at any crash a sound image, without a leak`, async () => {
      const shelf = new DiskShelf([qcow2Driver]);
      await createQcow2(childOf(shelf.put('image')), {
        sizeBytes: 400 * clusterBytes,
        options: { 'cluster-size': clusterBytes, 'refcount-bits': from },
      });
      const disk = await shelf.open('image');
      for (let cluster = 0; cluster < 360; cluster += 3)
        await disk.backend.write(cluster * clusterBytes, Buffer.alloc(clusterBytes, cluster % 251));
      await disk.backend.discard(200 * clusterBytes, 90 * clusterBytes);
      await disk.backend.flush();
      const before = await disk.read(0, disk.backend.lengthBytes);
      await disk.close();
      const file = shelf.put('image', shelf.disk('image').contents());
      const amended = await shelf.open('image');
      await amended.node.instance.amend?.({ refcountBits: to });
      file.mark('done');
      // What is new goes where the new counts say that nothing is.
      await amended.backend.write(200 * clusterBytes, Buffer.alloc(60 * clusterBytes, 7));
      await amended.backend.flush();
      before.fill(7, 200 * clusterBytes, 260 * clusterBytes);
      await amended.close();
      for (const state of drawnCrashStates(file, seededBelow(3))) {
        const isDone = state.marks.includes('done');
        const found = await checkQcow2(childOf(new RecordedDisk(state.content)));
        assert.deepEqual([found.corruptions, found.checkErrors], [0, 0], state.survived);
        if (isDone)
          assert.equal(parseHeader(state.content.subarray(0, clusterBytes)).refcountOrder, Math.log2(to));
        else assert.equal(found.leaks, 0, state.survived);
      }
      assert.deepEqual((await checkQcow2(childOf(new RecordedDisk(file.contents())))).messages, []);
      const reader = await shelf.open('image', { readOnly: true });
      assert.ok((await reader.read(0, before.length)).equals(before));
      await reader.close();
    });

test('while the header may be the one of before or after new refcounts, nothing gets a place', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'cluster-size': CLUSTER } });
  const file = shelf.put('image', shelf.disk('image').contents());
  const disk = await shelf.open('image');
  const write = (cluster: number, value: number): Promise<void> =>
    disk.backend.write(cluster * CLUSTER, Buffer.alloc(CLUSTER, value));
  await write(0, 1);
  await disk.backend.flush();
  // What the header is to say is written, and from then on it can neither be flushed nor be taken back.
  let isBroken = false;
  file.failure = (event, offset) => {
    const last = file.log.at(-1);
    isBroken ||= last?.kind === 'write' && last.offset === 0 && last.bytes[99] === 5;
    return isBroken && (event === 'flush' || offset === 0) ? errnoError('EIO') : undefined;
  };
  await assert.rejects(async () => disk.node.instance.amend?.({ refcountBits: 32 }), { errno: 'EIO' });
  await assert.rejects(write(1, 2), { errno: 'EIO' });
  await assert.rejects(async () => disk.node.instance.snapshots?.take(SNAPSHOT), { errno: 'EIO' });
  await write(0, 3);
  file.failure = () => undefined;
  await write(1, 4);
  await disk.node.instance.amend?.({ refcountBits: 32 });
  await write(2, 5);
  await disk.close();
  for (const state of drawnCrashStates(file, seededBelow(3))) {
    const found = await checkQcow2(childOf(new RecordedDisk(state.content)));
    assert.deepEqual([found.corruptions, found.checkErrors], [0, 0], state.survived);
  }
  assert.deepEqual((await checkQcow2(childOf(new RecordedDisk(file.contents())))).messages, []);
  const content = await contentOf(shelf);
  for (const [cluster, value] of [3, 4, 5].entries()) assert.equal(content[cluster * CLUSTER], value);
});

test('a refcount that does not fit leaves everything as it is', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'cluster-size': CLUSTER } });
  const disk = await shelf.open('image');
  await disk.backend.write(0, Buffer.alloc(CLUSTER, 1));
  await disk.node.instance.snapshots?.take(SNAPSHOT);
  await disk.close();
  const before = shelf.disk('image').contents();
  await assert.rejects(
    amend(shelf, { refcountBits: 1 }),
    /^BlockError: Cannot decrease refcount entry width to 1 bits: Cluster at offset 0x[0-9a-f]+ has a refcount of 2$/,
  );
  assert.ok(shelf.disk('image').contents().equals(before));
});

test('new refcounts are not written where a table is, whatever the former ones say of its cluster', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'cluster-size': CLUSTER } });
  const disk = await shelf.open('image');
  await disk.backend.write(0, Buffer.alloc(CLUSTER, 1));
  await disk.close();
  const content = shelf.disk('image').contents();
  const header = parseHeader(content.subarray(0, CLUSTER));
  const block = Number(content.readBigUInt64BE(header.refcountTableOffset));
  content.writeUInt16BE(0, block + 2 * (header.l1Offset / CLUSTER));
  shelf.put('image', content);
  await assert.rejects(
    amend(shelf, { refcountBits: 32 }),
    /Preventing invalid write on metadata \(overlaps with .*L1/,
  );
  const after = shelf.disk('image').contents();
  // But for the header, which says that it is corrupt.
  assert.ok(after.subarray(CLUSTER).equals(content.subarray(CLUSTER)));
  assert.equal(parseHeader(after.subarray(0, CLUSTER)).refcountTableOffset, header.refcountTableOffset);
});

for (const to of [1, 8, 64])
  test(`who has written and freed, and goes on after refcounts of ${to} bits, takes the places that are free by then`, async () => {
    const shelf = new DiskShelf([qcow2Driver]);
    const count = 3000;
    await createQcow2(childOf(shelf.put('image')), {
      sizeBytes: count * 512,
      options: { 'cluster-size': 512 },
    });
    const disk = await shelf.open('image');
    const expected = Buffer.alloc(count * 512);
    const write = async (from: number, to: number, value: number): Promise<void> => {
      await disk.backend.write(from * 512, Buffer.alloc((to - from) * 512, value));
      expected.fill(value, from * 512, to * 512);
    };
    await write(0, 1500, 1);
    await disk.backend.discard(300 * 512, 600 * 512);
    expected.fill(0, 300 * 512, 900 * 512);
    // Free clusters are looked for, and some are left.
    await write(300, 600, 2);
    await disk.backend.flush();
    await disk.node.instance.amend?.({ refcountBits: to });
    await write(600, 900, 3);
    await disk.backend.flush();
    await write(1500, 2900, 4);
    await disk.close();
    assert.deepEqual(
      (await checkQcow2(childOf(new RecordedDisk(shelf.disk('image').contents())))).messages,
      [],
    );
    const reader = await shelf.open('image', { readOnly: true });
    assert.ok((await reader.read(0, expected.length)).equals(expected));
    await reader.close();
  });

for (const to of [1, 8, 64])
  test(`compressed clusters share places before and after refcounts of ${to} bits`, async () => {
    const shelf = new DiskShelf([qcow2Driver]);
    await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'cluster-size': CLUSTER } });
    const disk = await shelf.open('image');
    const expected = Buffer.alloc(SIZE);
    const write = async (cluster: number): Promise<void> => {
      const data = Buffer.alloc(CLUSTER, cluster + 1);
      await disk.node.instance.map?.writeCompressed?.(cluster * CLUSTER, data);
      data.copy(expected, cluster * CLUSTER);
    };
    // Counts of one bit let nothing be shared.
    const before = to === 1 ? 1 : 5;
    for (let cluster = 0; cluster < before; cluster++) await write(cluster);
    await disk.backend.flush();
    await disk.node.instance.amend?.({ refcountBits: to });
    for (let cluster = before; cluster < 20; cluster++) await write(cluster);
    await disk.close();
    assert.deepEqual(
      (await checkQcow2(childOf(new RecordedDisk(shelf.disk('image').contents())))).messages,
      [],
    );
    assert.ok((await contentOf(shelf)).equals(expected));
  });
