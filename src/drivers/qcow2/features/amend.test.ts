import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ImageAmendment } from '../../../block/driver.js';
import { crashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';
import { parseHeader } from '../disk/header.js';

const CLUSTER = 4096;
const SIZE = 40 * CLUSTER;

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
      for (const state of crashStates(file, seededBelow(3))) {
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
