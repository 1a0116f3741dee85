import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DriverEvent } from '../../block/driver.js';
import { Flag } from '../../block/request.js';
import { HandmadeQcow2 } from '../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../test/kit/recorded-disk.js';
import { checkQcow2 } from './check/check.js';
import { qcow2Driver } from './driver.js';
import { FieldOffset } from './disk/header.js';

const CLUSTER = 65536;
const COPIED = 1n << 63n;

type Break = (image: HandmadeQcow2) => void;
type Request = (disk: OpenDisk) => Promise<unknown>;

const write: Request = (disk) => disk.backend.write(0, Buffer.alloc(512, 0xa5));
const allocate: Request = (disk) => disk.backend.write(8 * CLUSTER, Buffer.alloc(512, 0xa5));
const zero: Request = (disk) => disk.backend.writeZeroes(0, CLUSTER, Flag.mayUnmap);
const discard: Request = (disk) => disk.backend.discard(0, CLUSTER);
const read: Request = (disk) => disk.read(0, 512);
const readBeside: Request = (disk) => disk.read(CLUSTER, 512);

function overlap(what: string): string {
  return `Preventing invalid write on metadata (overlaps with ${what})`;
}

/** [what is broken, how, which request it stops, with which words]. */
const CASES: ReadonlyArray<readonly [string, Break, Request, string | RegExp]> = [
  ['data on the L1 table', (i) => i.entry(0, BigInt(i.l1Offset) | COPIED), write, overlap('active L1 table')],
  ['data on its L2 table', (i) => i.entry(0, BigInt(i.l2(0)) | COPIED), write, overlap('active L2 table')],
  [
    'data on an L2 table, zeroed',
    (i) => i.entry(0, BigInt(i.l2(0)) | COPIED),
    zero,
    overlap('active L2 table'),
  ],
  [
    'data on an L2 table, freed',
    (i) => i.entry(0, BigInt(i.l2(0)) | COPIED),
    discard,
    overlap('active L2 table'),
  ],
  [
    'data on the refcount table',
    (i) => i.entry(0, BigInt(i.refcountTableOffset) | COPIED),
    write,
    overlap('refcount table'),
  ],
  [
    'data on a refcount block',
    (i) => i.entry(0, BigInt(i.refcountBlockOffset) | COPIED),
    write,
    overlap('refcount block'),
  ],
  [
    'a kept cluster on a refcount block',
    (i) => i.entry(0, BigInt(i.refcountBlockOffset) | COPIED | 1n),
    write,
    overlap('refcount block'),
  ],
  [
    'data on a snapshot table',
    (i) => {
      i.data(1, 1);
      const table = i.snapshot();
      i.entry(0, BigInt(table) | COPIED);
    },
    write,
    overlap('snapshot table'),
  ],
  [
    'an L2 table counted as free',
    (i) => {
      i.data(0, 1);
      i.refcount(i.l2(0), 0);
    },
    allocate,
    overlap('active L2 table'),
  ],
  [
    'a refcount block counted as free',
    (i) => i.refcount(i.refcountBlockOffset, 0),
    allocate,
    overlap('refcount block'),
  ],
  [
    'the header counted as free',
    (i) => i.refcount(0, 0),
    allocate,
    'Preventing invalid allocation of L2 table at offset 0',
  ],
  [
    'an L2 table on the L1 table',
    (i) => i.u64(i.l1Offset, BigInt(i.l1Offset) | COPIED),
    write,
    'L2 table overlaps with active L1 table (L1 index: 0)',
  ],
  [
    'one L2 table in two L1 entries',
    (i) => {
      i.data(0, 1);
      i.u64(i.l1Offset + 8, i.bytes.readBigUInt64BE(i.l1Offset));
    },
    write,
    'L2 table overlaps with active L2 table (L1 index: 0)',
  ],
  [
    'an L2 table between clusters',
    (i) => i.u64(i.l1Offset, 0x40200n | COPIED),
    read,
    'L2 table offset 0x40200 unaligned (L1 index: 0)',
  ],
  [
    'a refcount block behind the end of the file',
    (i) => i.u64(i.refcountTableOffset, 0x4000_0000n),
    allocate,
    'Refblock offset 0x40000000 outside the image (reftable index: 0)',
  ],
  [
    'data between clusters',
    (i) => i.entry(1, 0x40200n | COPIED),
    readBeside,
    /^Cluster allocation offset 0x40200 unaligned \(L2 offset: 0x40000, L2 index: 0x1\)$/,
  ],
  [
    'a refcount block between clusters',
    (i) => i.u64(i.refcountTableOffset, 0x20200n),
    allocate,
    'Refblock offset 0x20200 unaligned (reftable index: 0)',
  ],
  [
    'a refcount block on the L1 table',
    (i) => i.u64(i.refcountTableOffset, BigInt(i.l1Offset)),
    allocate,
    'Refblock overlaps with active L1 table (reftable index: 0)',
  ],
];

for (const [what, damage, request, message] of CASES) {
  test(`${what}: refused, nothing but the corrupt bit changes`, async () => {
    const image = new HandmadeQcow2({ sizeBytes: 1024 * 1024 * 1024, clusters: 16 });
    damage(image);
    const before = Buffer.from(image.bytes);
    const shelf = new DiskShelf([qcow2Driver]);
    const file = shelf.put('image', image.bytes);
    const events: DriverEvent[] = [];
    shelf.graph.onDriverEvent = (_node, event) => void events.push(event);
    const disk = await shelf.open('image');
    await assert.rejects(request(disk), { name: 'BlockError', kind: 'corrupt', message });
    // Whatever comes next changes nothing either.
    await assert.rejects(allocate(disk), { name: 'BlockError', kind: 'corrupt' });
    assert.deepEqual(
      events.map((event) => [event.name, event.name === 'corrupted' && event.fatal]),
      [['corrupted', true]],
    );
    await disk.backend.flush();
    assert.equal(disk.instance.info().isCorrupt, true);
    await disk.close();
    const after = file.contents();
    assert.equal(after.readBigUInt64BE(FieldOffset.incompatible), 2n, 'corrupt bit');
    after.writeBigUInt64BE(0n, FieldOffset.incompatible);
    assert.ok(after.equals(before), 'the rest of the file');
    await assert.rejects(shelf.open('image'), {
      message: 'qcow2: Image is corrupt; cannot be opened read/write',
    });
  });
}

test('bit 63 without an offset is no data: not the header, which a guest would write over', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 16 * CLUSTER });
  image.data(2, 7);
  for (const cluster of [0, 1, 3]) image.entry(cluster, COPIED);
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  const disk = await shelf.open('image');
  assert.deepEqual(await disk.read(0, 4 * CLUSTER), expectedAround(Buffer.alloc(CLUSTER, 7)));
  await write(disk);
  await disk.backend.discard(CLUSTER, CLUSTER);
  await disk.backend.writeZeroes(3 * CLUSTER, CLUSTER);
  assert.deepEqual(await disk.read(0, 512), Buffer.alloc(512, 0xa5));
  await disk.close();
  assert.deepEqual(file.contents().subarray(0, CLUSTER), image.bytes.subarray(0, CLUSTER), 'header');
  const { corruptions, leaks } = await checkQcow2(childOf(file));
  assert.deepEqual({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
});

/** What four clusters hold when only the third has data. */
function expectedAround(third: Buffer): Buffer {
  return Buffer.concat([Buffer.alloc(2 * CLUSTER), third, Buffer.alloc(CLUSTER)]);
}

test('metadata that an entry shares is written elsewhere and never freed, though the entry be the only one counted', async () => {
  for (const count of [1, 2])
    for (const place of ['l1Offset', 'refcountTableOffset', 'refcountBlockOffset', 'l2'] as const)
      for (const change of [write, zero, discard]) {
        const image = new HandmadeQcow2({ sizeBytes: 16 * CLUSTER });
        const offset = place === 'l2' ? image.l2(0) : image[place];
        image.entry(0, BigInt(offset));
        image.refcount(offset, count);
        const shelf = new DiskShelf([qcow2Driver]);
        const file = shelf.put('image', image.bytes);
        const disk = await shelf.open('image');
        await change(disk);
        const flushed = await disk.backend.flush().then(
          () => true,
          () => false,
        );
        assert.equal(flushed, count === 2, place);
        await disk.close();
        const { messages } = await checkQcow2(childOf(file));
        assert.deepEqual(
          messages.filter((text) => text.includes('refcount=0') || text.includes('refcount=1 reference=2')),
          [],
          `${count} at ${place}`,
        );
      }
});

test('data that lies on metadata can be read, and an image that is open for reading is not marked', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 16 * CLUSTER });
  image.entry(0, BigInt(image.l1Offset) | COPIED);
  image.entry(1, 0x40200n | COPIED);
  const before = Buffer.from(image.bytes);
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  const disk = await shelf.open('image', { readOnly: true });
  assert.deepEqual(await disk.read(0, 512), before.subarray(image.l1Offset, image.l1Offset + 512));
  await assert.rejects(disk.read(CLUSTER, 1), /unaligned/);
  await disk.close();
  assert.ok(file.contents().equals(before), 'the file is as it was');
});

test('a table that is made while the image is open is not written by guests through a wrong entry either', async () => {
  // The entry names a free cluster: the next L2 table goes there.
  const image = new HandmadeQcow2({ sizeBytes: 1024 * 1024 * 1024, clusters: 8 });
  image.data(0, 1);
  const free = 6 * CLUSTER;
  image.entry(1, BigInt(free) | COPIED);
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  const disk = await shelf.open('image');
  assert.deepEqual(await disk.read(CLUSTER, 4), Buffer.alloc(4));
  // One L2 table covers 512 MiB.
  await disk.backend.write(512 * 1024 * 1024, Buffer.alloc(CLUSTER, 2));
  await disk.backend.flush();
  const table = file.contents().subarray(free, free + CLUSTER);
  assert.notEqual(table.readBigUInt64BE(0), 0n, 'the L2 table is where the wrong entry points');
  await assert.rejects(disk.backend.write(CLUSTER, Buffer.alloc(512, 0xa5)), {
    kind: 'corrupt',
    message: overlap('active L2 table'),
  });
  await disk.close();
  assert.ok(
    file
      .contents()
      .subarray(free, free + CLUSTER)
      .equals(table),
    'the L2 table',
  );
});

test('a table that is made where a wrong entry pointed is not freed with that entry', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 1024 * 1024 * 1024, clusters: 8 });
  image.data(0, 1);
  const [first, second] = [image.cluster(), image.cluster()];
  for (const free of [first, second]) image.refcount(free, 0);
  // Zeroes that have a cluster, which is counted as free.
  image.entry(1, BigInt(second) | 1n);
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  const disk = await shelf.open('image');
  // The entry gets the first free cluster, and the next L2 table the one that it had.
  await disk.backend.write(CLUSTER, Buffer.alloc(CLUSTER, 2));
  await disk.backend.write(512 * 1024 * 1024, Buffer.alloc(CLUSTER, 3));
  await assert.rejects(disk.backend.flush(), { kind: 'corrupt', message: overlap('active L2 table') });
  await assert.rejects(disk.backend.write(0, Buffer.alloc(512, 0xa5)), { kind: 'corrupt' });
  await disk.close();
  const bytes = file.contents();
  const table = Number(bytes.readBigUInt64BE(image.l1Offset + 8) & 0xfffffffffffe00n);
  assert.equal(table, second, 'the L2 table is where the wrong entry pointed');
  assert.notEqual(bytes.readBigUInt64BE(table), 0n);
});

test('a refcount block that is named twice is an error of its own for the check, as qemu-img counts', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 4 * CLUSTER, clusters: 16 });
  image.bytes.writeBigUInt64BE(BigInt(image.refcountBlockOffset), image.refcountTableOffset + 8);
  const found = await checkQcow2(childOf(new RecordedDisk(image.bytes)));
  assert.equal(found.corruptions, 2, found.messages.join('; '));
  assert.ok(found.messages.includes('ERROR refcount block 1 refcount=2'));
});

test('tables and data behind the end of the file are zeroes, and can be written where they are', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 1024 * 1024 * 1024, clusters: 12 });
  const lost = image.data(1, 5);
  const table = image.l2(8192);
  image.data(8193, 7);
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes.subarray(0, lost + 512));
  const disk = await shelf.open('image');
  const left = Buffer.concat([Buffer.alloc(512, 5), Buffer.alloc(CLUSTER - 512)]);
  assert.deepEqual(await disk.read(CLUSTER, CLUSTER), left);
  assert.deepEqual(await disk.read(8193 * CLUSTER, CLUSTER), Buffer.alloc(CLUSTER));
  await disk.backend.write(8194 * CLUSTER, Buffer.alloc(CLUSTER, 9));
  await disk.close();
  assert.ok(file.lengthBytes > table + CLUSTER);
  const again = await shelf.open('image', { readOnly: true });
  assert.deepEqual(await again.read(CLUSTER, CLUSTER), left);
  assert.deepEqual(await again.read(8194 * CLUSTER, CLUSTER), Buffer.alloc(CLUSTER, 9));
  assert.equal((await checkQcow2(childOf(file))).corruptions, 0);
  await again.close();
});

test('a file without its L1 table opens; one without its refcount table for reading only', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 16 * CLUSTER, clusters: 8 });
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', image.bytes.subarray(0, image.l1Offset));
  const disk = await shelf.open('image');
  await write(disk);
  await disk.close();
  const again = await shelf.open('image');
  assert.deepEqual(await again.read(0, 512), Buffer.alloc(512, 0xa5));
  await again.close();
  shelf.put('image', image.bytes.subarray(0, CLUSTER + 512));
  await assert.rejects(shelf.open('image'), { message: 'Reference count table lies outside the file' });
  const reading = await shelf.open('image', { readOnly: true });
  assert.deepEqual(await reading.read(0, 512), Buffer.alloc(512));
  await reading.close();
});

test('an L2 table that several L1 entries name, none of them alone, is read and copied when it changes', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 1024 * 1024 * 1024, clusters: 8 });
  const data = image.data(0, 3);
  const table = image.l2(0);
  for (const at of [image.l1Offset, image.l1Offset + 8]) image.u64(at, BigInt(table));
  image.u64(table, BigInt(data));
  for (const cluster of [table, data]) image.refcount(cluster, 2);
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  const disk = await shelf.open('image');
  assert.deepEqual(await disk.read(0, 4), Buffer.alloc(4, 3));
  assert.deepEqual(await disk.read(8192 * CLUSTER, 4), Buffer.alloc(4, 3));
  await write(disk);
  assert.deepEqual(await disk.read(8192 * CLUSTER, 4), Buffer.alloc(4, 3));
  await disk.close();
  const again = await shelf.open('image');
  assert.deepEqual(await again.read(0, 4), Buffer.alloc(4, 0xa5));
  assert.deepEqual(await again.read(8192 * CLUSTER, 4), Buffer.alloc(4, 3));
  await again.close();
  assert.equal((await checkQcow2(childOf(file))).leaks, 0);
});
