import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { CreateOptions, NodeOptions } from '../../block/driver.js';
import { Flag, newMapping } from '../../block/request.js';
import { childOf, DiskShelf, type OpenDisk } from '../../../test/kit/recorded-disk.js';
import { checkQcow2 } from './check/check.js';
import { createQcow2 } from '../../../test/kit/new-qcow2.js';
import { qcow2Driver } from './driver.js';

const KiB = 1024;
const MiB = 1024 * KiB;

async function shelfWith(images: Record<string, CreateOptions>): Promise<DiskShelf> {
  const shelf = new DiskShelf([qcow2Driver]);
  for (const [name, options] of Object.entries(images)) {
    await createQcow2(childOf(shelf.put(name)), options);
  }
  return shelf;
}

test('a new image reads as zeroes and keeps what is written, across a close', async () => {
  const shelf = await shelfWith({ 'a.qcow2': { sizeBytes: 10 * MiB } });
  let disk = await shelf.open('a.qcow2');
  assert.deepEqual(await disk.read(0, 100), Buffer.alloc(100));
  await disk.backend.write(70_000, Buffer.alloc(200_000, 7));
  await disk.backend.write(10 * MiB - 5, Buffer.alloc(5, 9));
  await disk.close();
  disk = await shelf.open('a.qcow2', { readOnly: true });
  const all = await disk.read(0, 10 * MiB);
  const expected = Buffer.alloc(10 * MiB);
  expected.fill(7, 70_000, 270_000);
  expected.fill(9, 10 * MiB - 5);
  assert.ok(all.equals(expected));
  await disk.close();
});

test('an overlay copies on write, and zero and discard never show the backing file again', async () => {
  const shelf = await shelfWith({
    'a.qcow2': { sizeBytes: MiB },
    'b.qcow2': { sizeBytes: MiB, backingFile: 'a.qcow2', backingFormat: 'qcow2' },
  });
  const base = await shelf.open('a.qcow2');
  await base.backend.write(0, Buffer.alloc(MiB, 1));
  await base.close();
  const top = await shelf.open('b.qcow2');
  const expected = Buffer.alloc(MiB, 1);
  const same = async (): Promise<void> => assert.ok((await top.read(0, MiB)).equals(expected));
  await same();
  await top.backend.write(65_000, Buffer.alloc(1000, 2));
  expected.fill(2, 65_000, 66_000);
  await same();
  await top.backend.discard(64 * KiB, 128 * KiB);
  expected.fill(0, 64 * KiB, 192 * KiB);
  await same();
  await top.backend.writeZeroes(300_000, 200_000, Flag.mayUnmap);
  expected.fill(0, 300_000, 500_000);
  await same();
  await top.backend.flush();
  await top.backend.write(310_000, Buffer.alloc(10, 5));
  expected.fill(5, 310_000, 310_010);
  await same();
  await top.close();
});

/** Steps of a random workload on an image of SIZE bytes. */
const SIZE = 300 * KiB;
type Step =
  | { op: 'write'; offset: number; length: number; fill: number }
  | { op: 'zero'; offset: number; length: number; unmap: boolean }
  | { op: 'discard'; offset: number; length: number }
  | { op: 'flush' }
  | { op: 'reopen' };

const range = fc
  .tuple(fc.nat(SIZE - 1), fc.integer({ min: 1, max: 80 * KiB }))
  .map(([offset, length]) => ({ offset, length: Math.min(length, SIZE - offset) }));
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc
      .tuple(range, fc.integer({ min: 1, max: 255 }))
      .map(([r, fill]) => ({ op: 'write' as const, ...r, fill })),
  },
  {
    weight: 2,
    arbitrary: fc.tuple(range, fc.boolean()).map(([r, unmap]) => ({ op: 'zero' as const, ...r, unmap })),
  },
  { weight: 2, arbitrary: range.map((r) => ({ op: 'discard' as const, ...r })) },
  { weight: 2, arbitrary: fc.constant({ op: 'flush' as const }) },
  { weight: 1, arbitrary: fc.constant({ op: 'reopen' as const }) },
);

async function apply(disk: OpenDisk, model: Buffer, at: Step, clusterBytes: number): Promise<void> {
  switch (at.op) {
    case 'write':
      await disk.backend.write(at.offset, Buffer.alloc(at.length, at.fill));
      model.fill(at.fill, at.offset, at.offset + at.length);
      return;
    case 'zero':
      await disk.backend.writeZeroes(at.offset, at.length, at.unmap ? Flag.mayUnmap : 0);
      model.fill(0, at.offset, at.offset + at.length);
      return;
    case 'discard': {
      await disk.backend.discard(at.offset, at.length);
      const end = at.offset + at.length;
      const from = Math.ceil(at.offset / clusterBytes) * clusterBytes;
      const to = end === SIZE ? end : end - (end % clusterBytes);
      if (to > from) model.fill(0, from, to);
      return;
    }
    case 'flush':
      return disk.backend.flush();
    case 'reopen':
      return;
  }
}

test('a random workload reads back as its model, with a backing file, at any cluster size, sync and async', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 1, maxLength: 25 }),
      fc.constantFrom(512, 4096, 65536),
      fc.constantFrom(1, 2, 8, 16, 32, 64),
      fc.boolean(),
      async (steps, clusterBytes, refcountBits, synchronous) => {
        const options: NodeOptions = { 'cluster-size': clusterBytes, 'refcount-bits': refcountBits };
        const shelf = await shelfWith({
          a: { sizeBytes: SIZE / 2, options },
          b: { sizeBytes: SIZE, backingFile: 'a', backingFormat: 'qcow2', options },
        });
        const base = await shelf.open('a');
        await base.backend.write(1000, Buffer.alloc(SIZE / 2 - 1000, 0xaa));
        await base.close();
        const model = Buffer.alloc(SIZE);
        model.fill(0xaa, 1000, SIZE / 2);
        shelf.disk('b').synchronous = synchronous;
        const sizes = { 'l2-cache-size': 1024, 'refcount-cache-size': 1024 };
        let disk = await shelf.open('b', sizes);
        for (const at of steps) {
          await apply(disk, model, at, clusterBytes);
          if (at.op === 'reopen') {
            await disk.close();
            disk = await shelf.open('b', sizes);
          }
        }
        assert.ok((await disk.read(0, SIZE)).equals(model));
        await disk.close();
        disk = await shelf.open('b', { readOnly: true });
        assert.ok((await disk.read(0, SIZE)).equals(model));
        await disk.close();
        const found = await checkQcow2(childOf(shelf.disk('b')));
        assert.deepEqual([found.corruptions, found.leaks, found.messages], [0, 0, []]);
      },
    ),
    { numRuns: 60 },
  );
});

test('tryMap joins what is contiguous and answers false until a table was loaded', async () => {
  const shelf = await shelfWith({ a: { sizeBytes: 8 * MiB } });
  let disk = await shelf.open('a');
  await disk.backend.write(0, Buffer.alloc(MiB, 1));
  await disk.close();
  disk = await shelf.open('a', { readOnly: true });
  const map = disk.instance.map;
  assert.ok(map);
  const mapping = newMapping();
  assert.equal(map.tryMap(0, 8 * MiB, mapping), false);
  await map.map(100, 8 * MiB - 100, mapping);
  assert.equal(mapping.kind, 'data');
  assert.equal(mapping.lengthBytes, MiB - 100);
  assert.equal(map.tryMap(MiB, 7 * MiB, mapping), true);
  assert.deepEqual([mapping.kind, mapping.lengthBytes], ['backing', 7 * MiB]);
  await disk.close();
});

test('discard and zero leave the data of a cluster that a snapshot shares', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('shared')), { sizeBytes: 4 * 65536 });
  const first = await shelf.open('shared');
  await first.backend.write(0, Buffer.alloc(2 * 65536, 0x5a));
  await first.close();
  // As an internal snapshot leaves it: refcount 2, and entries without the copied flag.
  const bytes = shelf.disk('shared').contents();
  const l2Offset = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0x00fffffffffffe00n);
  const blockOffset = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
  const hostOffsets = [0, 8].map((at) => {
    const entry = bytes.readBigUInt64BE(l2Offset + at) & 0x00fffffffffffe00n;
    bytes.writeBigUInt64BE(entry, l2Offset + at);
    bytes.writeUInt16BE(2, blockOffset + 2 * (Number(entry) / 65536));
    return Number(entry);
  });
  const again = new DiskShelf([qcow2Driver]);
  again.put('shared', bytes);
  const disk = await again.open('shared');
  await disk.backend.discard(0, 65536);
  await disk.backend.writeZeroes(65536, 65536, Flag.mayUnmap);
  await disk.backend.flush();
  assert.deepEqual(await disk.read(0, 2 * 65536), Buffer.alloc(2 * 65536));
  await disk.close();
  const after = again.disk('shared').contents();
  for (const hostOffset of hostOffsets)
    assert.deepEqual(after.subarray(hostOffset, hostOffset + 65536), Buffer.alloc(65536, 0x5a));
});

test('the name of a backing file takes room by its bytes: feature names give way to it', async () => {
  const backingFile = `${'é'.repeat(20)}.raw`;
  const options = { 'cluster-size': 512 };
  const shelf = await shelfWith({ top: { sizeBytes: MiB, backingFile, backingFormat: 'raw', options } });
  const disk = await shelf.open('top', { backing: null, readOnly: true });
  assert.equal(disk.node.instance.backing?.filename, backingFile);
  await disk.close();
});

test('a version 2 image does not grow over a longer backing file, which would show through', async () => {
  const shelf = await shelfWith({
    'a.qcow2': { sizeBytes: 8 * MiB },
    'b.qcow2': {
      sizeBytes: MiB,
      backingFile: 'a.qcow2',
      backingFormat: 'qcow2',
      options: { version: 'v2' },
    },
  });
  const disk = await shelf.open('b.qcow2');
  await assert.rejects(disk.backend.truncate(2 * MiB), {
    kind: 'unsupported',
    message: 'Failed to zero out new clusters: Operation not supported',
  });
  assert.equal(disk.backend.lengthBytes, MiB);
  await disk.close();
});

test('zeroes take no space in a version 2 image without a backing file, and free what they are written over', async () => {
  const options = { version: 'v2' } as const;
  const shelf = await shelfWith({ 'a.qcow2': { sizeBytes: 8 * MiB, options } });
  const disk = await shelf.open('a.qcow2');
  await disk.backend.write(MiB, Buffer.alloc(MiB, 7));
  await disk.backend.flush();
  const before = disk.node.child('file').node.lengthBytes;
  await disk.backend.writeZeroes(0, 8 * MiB, Flag.none);
  await disk.backend.flush();
  assert.equal(disk.node.child('file').node.lengthBytes, before);
  const status = await disk.node.io.status(0, 8 * MiB);
  assert.deepEqual([status.lengthBytes, status.allocated, status.zero], [8 * MiB, false, true]);
  const buffer = Buffer.alloc(512, 1);
  await disk.backend.read(MiB, buffer);
  assert.deepEqual(buffer, Buffer.alloc(512));
  await disk.close();
});
