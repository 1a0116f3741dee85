import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import type { NodeOptions } from '../../block/driver.js';
import { newMapping } from '../../block/request.js';
import { HandmadeQcow2 } from '../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, type RecordedDisk } from '../../../test/kit/recorded-disk.js';
import { checkQcow2 } from './check/check.js';
import { parseHeader } from './disk/header.js';
import { qcow2Driver } from './driver.js';

const KiB = 1024;
const MiB = 1024 * KiB;
const CLUSTER = 64 * KiB;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const ZERO = 1n;

interface Opened {
  disk: OpenDisk;
  file: RecordedDisk;
}

async function opened(
  image: HandmadeQcow2,
  options: NodeOptions & { readOnly?: boolean } = {},
): Promise<Opened> {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  return { disk: await shelf.open('image', options), file };
}

/** A parent full of 0xbb below a handmade overlay. */
async function openedOverBacking(image: HandmadeQcow2): Promise<Opened> {
  const shelf = new DiskShelf([qcow2Driver]);
  const base = new HandmadeQcow2({ sizeBytes: 4 * CLUSTER });
  for (let cluster = 0; cluster < 4; cluster++) base.data(cluster, 0xbb);
  shelf.put('base', base.bytes);
  const file = shelf.put('image', image.bytes);
  const backing = { driver: 'qcow2', file: { driver: 'file', filename: 'base' } };
  return { disk: await shelf.open('image', { backing }), file };
}

async function assertClean(file: RecordedDisk): Promise<void> {
  const found = await checkQcow2(childOf(file));
  assert.deepEqual([found.corruptions, found.leaks, found.messages], [0, 0, []]);
}

test('L2 offsets are bits 9-55: the bits below and above belong to no offset', async () => {
  const image = new HandmadeQcow2({ sizeBytes: MiB, clusterBytes: 512, clusters: 64 });
  const first = image.data(0, 0x11);
  const second = image.data(1, 0x22);
  // Reserved bits 1-8 and 56-61 set: a mask that is too wide leads elsewhere.
  image.entry(0, BigInt(first) | COPIED | 0x1fen | (0x3fn << 56n));
  // Bits 48-55: a mask that is too narrow shows the second cluster as the third.
  image.entry(2, (1n << 48n) | BigInt(second) | COPIED);
  image.entry(3, (0x80n << 48n) | BigInt(second) | COPIED);
  const { disk } = await opened(image, { readOnly: true });
  assert.deepEqual(
    await disk.read(0, 1024),
    Buffer.concat([Buffer.alloc(512, 0x11), Buffer.alloc(512, 0x22)]),
  );
  const map = disk.instance.map;
  assert.ok(map);
  const mapping = newMapping();
  await map.map(2 * 512 + 5, 100, mapping);
  assert.deepEqual([mapping.kind, mapping.hostOffset], ['data', 2 ** 48 + second + 5]);
  // 2^55 is beyond what a file offset reaches: refused, not rounded.
  await assert.rejects(disk.read(3 * 512, 512), {
    kind: 'corrupt',
    message: /^Cluster allocation offset 0x8/,
  });
  await disk.close();
});

test('L1 offsets are bits 9-55 too', async () => {
  const image = new HandmadeQcow2({ sizeBytes: MiB, clusterBytes: 512, clusters: 64 });
  image.data(0, 0x11);
  const table = BigInt(image.l2(0));
  image.u64(image.l1Offset, table | COPIED | 0x1fen | (0x7fn << 56n));
  image.u64(image.l1Offset + 8, (1n << 48n) | table | COPIED);
  const { disk } = await opened(image, { readOnly: true });
  assert.deepEqual(await disk.read(0, 512), Buffer.alloc(512, 0x11));
  // Not where the lower bits point: far behind the end of the file, where there are zeroes.
  assert.deepEqual(await disk.read(64 * 512, 512), Buffer.alloc(512));
  await disk.close();
});

test('what a compressed cluster holds is read, or is an error where it is broken, never plain data', async () => {
  const image = new HandmadeQcow2({ sizeBytes: MiB });
  const content = Buffer.alloc(CLUSTER, 'compressed');
  const host = image.data(0, 0x11);
  const broken = image.data(1, 0x22);
  image.data(2, 0x33);
  deflateRawSync(content, { windowBits: 12 }).copy(image.bytes, host + 100);
  image.entry(0, BigInt(host + 100) | COMPRESSED);
  image.entry(1, BigInt(broken) | COMPRESSED);
  const { disk } = await opened(image);
  assert.deepEqual(await disk.read(0, CLUSTER), content);
  assert.deepEqual(await disk.read(12345, 999), content.subarray(12345, 12345 + 999));
  await assert.rejects(disk.read(CLUSTER, 512), { kind: 'corrupt', errno: 'EIO' });
  await assert.rejects(disk.read(0, 2 * CLUSTER), { kind: 'corrupt', errno: 'EIO' });
  assert.deepEqual(await disk.read(2 * CLUSTER, 10), Buffer.alloc(10, 0x33));
  await disk.backend.write(7, Buffer.from('plain'));
  Buffer.from('plain').copy(content, 7);
  assert.deepEqual(await disk.read(0, CLUSTER), content);
  // What is overwritten whole need not be read before.
  await disk.backend.write(CLUSTER, Buffer.alloc(CLUSTER, 5));
  assert.deepEqual(await disk.read(CLUSTER, CLUSTER), Buffer.alloc(CLUSTER, 5));
  await disk.close();
});

test('an image that ends within a compressed cluster grows by zeroes', async () => {
  const sizeBytes = 2 * CLUSTER - 512;
  const image = new HandmadeQcow2({ sizeBytes });
  const content = Buffer.alloc(CLUSTER, 'compressed');
  const host = image.data(1, 0);
  deflateRawSync(content, { windowBits: 12 }).copy(image.bytes, host);
  image.entry(1, BigInt(host) | COMPRESSED);
  const { disk } = await opened(image);
  await disk.backend.truncate(3 * CLUSTER);
  assert.deepEqual(await disk.read(CLUSTER, CLUSTER - 512), content.subarray(0, CLUSTER - 512));
  assert.deepEqual(await disk.read(sizeBytes, 512 + CLUSTER), Buffer.alloc(512 + CLUSTER));
  await disk.close();
});

test('a compressed cluster that claims to lie in metadata is neither freed nor replaced', async () => {
  for (const change of ['write', 'discard', 'writeZeroes'] as const) {
    const image = new HandmadeQcow2({ sizeBytes: MiB });
    image.data(0, 0x11);
    image.entry(0, BigInt(image.l2(0) + 512) | COMPRESSED);
    const { disk } = await opened(image);
    const request =
      change === 'write' ? disk.backend.write(0, Buffer.alloc(CLUSTER)) : disk.backend[change](0, CLUSTER, 0);
    await assert.rejects(request, { kind: 'corrupt', message: /overlaps with active L2 table/ });
    await disk.close();
  }
});

test('an L1 table that lacks an entry, for less than a sector too, refuses the image', async () => {
  for (const sizeBytes of [512 * MiB + 512, 512 * MiB + 255]) {
    const image = new HandmadeQcow2({ sizeBytes: MiB });
    image.u64(24, BigInt(sizeBytes));
    await assert.rejects(opened(image), { kind: 'corrupt', message: 'L1 table is too small' });
  }
});

test('an incompatible feature that is not known refuses the image, by name where it has one', async () => {
  const named = (bit: bigint, edit: (image: HandmadeQcow2) => void = () => undefined): HandmadeQcow2 => {
    const image = new HandmadeQcow2({ sizeBytes: MiB });
    image.u64(72, 1n << bit);
    edit(image);
    return image;
  };
  const unsupported = 'Unsupported qcow2 feature(s): ';
  const featureName = (image: HandmadeQcow2): void => {
    image.u32(104, 0x6803f857);
    image.u32(108, 48);
    image.bytes.set([0, 40], 112);
    image.bytes.write('new thing', 114, 'latin1');
  };
  const extension = (type: number, lengthBytes: number) => (image: HandmadeQcow2) => {
    image.u64(72, 0n);
    image.u32(104, type);
    image.u32(108, lengthBytes);
  };
  const compression = (type: number) => (image: HandmadeQcow2) => {
    image.u32(100, 112);
    image.u32(104, type * 2 ** 24);
  };
  const cases: Array<[HandmadeQcow2, string, string]> = [
    [
      named(40n, (image) => image.u64(72, 0x60n)),
      'unsupported',
      `${unsupported}Unknown incompatible feature: 60`,
    ],
    [named(3n, compression(2)), 'unsupported', 'qcow2: unknown compression type: 2'],
    [
      named(3n, (image) => {
        compression(1)(image);
        image.u64(72, 0n);
      }),
      'corrupt',
      'qcow2: Compression type incompatible feature bit must be set',
    ],
    [named(5n, extension(0xe2792aca, 16)), 'corrupt', 'ERROR: ext_backing_format: len=16 too large (>=16)'],
    [named(5n, extension(0x23852875, 4)), 'corrupt', 'bitmaps_ext: Invalid extension length'],
    [named(5n, (image) => image.u64(24, 1n << 62n)), 'limit', 'Image is too big'],
    [named(2n), 'invalid', "'data-file' is required for this image"],
    [named(5n), 'unsupported', 'Unsupported qcow2 feature(s): Unknown incompatible feature: 20'],
    [
      named(63n),
      'unsupported',
      'Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000',
    ],
    [named(40n, featureName), 'unsupported', 'Unsupported qcow2 feature(s): new thing'],
    [named(3n), 'corrupt', 'qcow2: Compression type incompatible feature bit must not be set'],
    [
      named(5n, (image) => {
        image.u64(72, 0n);
        image.u64(88, 2n);
      }),
      'corrupt',
      'data-file-raw requires a data file',
    ],
  ];
  for (const [image, kind, message] of cases)
    for (const readOnly of [true, false])
      await assert.rejects(opened(image, { readOnly }), { kind, message });
  const image = new HandmadeQcow2({ sizeBytes: MiB });
  image.u32(32, 3);
  const message = 'Unsupported encryption method 3';
  await assert.rejects(opened(image, { readOnly: true }), { kind: 'unsupported', message });
});

test('names in a header end at their first NUL', () => {
  const image = new HandmadeQcow2({ sizeBytes: MiB });
  image.u32(104, 0xe2792aca);
  image.u32(108, 5);
  image.bytes.write('raw\0\0', 112, 'latin1');
  image.u64(8, 256n);
  image.u32(16, 6);
  image.bytes.write('base\0x', 256, 'latin1');
  assert.deepEqual(parseHeader(image.bytes).backing, { filename: 'base', format: 'raw' });
});

test('dirty and corrupt images are read as they are', async () => {
  for (const bit of [1n, 2n]) {
    const image = new HandmadeQcow2({ sizeBytes: MiB });
    image.data(0, 0x11);
    image.u64(72, bit);
    const { disk, file } = await opened(image, { readOnly: true });
    assert.deepEqual(await disk.read(0, 4), Buffer.alloc(4, 0x11));
    const { isDirty, isCorrupt } = disk.instance.info();
    assert.deepEqual([isDirty, isCorrupt], [bit === 1n, bit === 2n]);
    await disk.close();
    assert.ok(file.contents().equals(image.bytes), 'the file is as it was');
  }
});

test('a corrupt image is not opened for writing', async () => {
  const image = new HandmadeQcow2({ sizeBytes: MiB });
  image.u64(72, 3n);
  const message = 'qcow2: Image is corrupt; cannot be opened read/write';
  await assert.rejects(opened(image), { kind: 'corrupt', message });
});

test('a zero cluster with offset 0 is zeroes: the parent never shows through', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 4 * CLUSTER });
  image.entry(0, ZERO);
  const kept = image.data(1, 0x77);
  image.entry(1, BigInt(kept) | COPIED | ZERO);
  image.entry(2, 0n);
  const { disk, file } = await openedOverBacking(image);
  const expected = Buffer.alloc(4 * CLUSTER, 0xbb).fill(0, 0, 2 * CLUSTER);
  assert.ok((await disk.read(0, 4 * CLUSTER)).equals(expected), 'content');
  const status = await disk.backend.status(0, 4 * CLUSTER);
  assert.deepEqual([status.zero, status.allocated], [true, true]);
  // A write into a part of them fills the rest with zeroes, not with the parent's data.
  for (const cluster of [0, 1]) {
    await disk.backend.write(cluster * CLUSTER + 100, Buffer.alloc(50, 5));
    expected.fill(5, cluster * CLUSTER + 100, cluster * CLUSTER + 150);
  }
  assert.ok((await disk.read(0, 4 * CLUSTER)).equals(expected), 'content');
  await disk.close();
  await assertClean(file);
});

test('opening loads no L2 table, reading loads what it needs, and the cache stays within its limit', async () => {
  // 2048 L2 tables of 512 bytes.
  const sizeBytes = 64 * MiB;
  const image = new HandmadeQcow2({ sizeBytes, clusterBytes: 512, clusters: 2400 });
  for (let index = 0; index < image.l1Entries; index++) {
    const table = image.cluster();
    image.u64(image.l1Offset + index * 8, BigInt(table) | COPIED);
    image.u64(table, ZERO);
  }
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  let loads = 0;
  file.onEvent = (event) => {
    if (event === 'l2_load') loads++;
    return undefined;
  };
  const disk = await shelf.open('image', { readOnly: true, 'l2-cache-size': 8 * 512 });
  assert.equal(loads, 0);
  await disk.read(0, 512);
  await disk.read(20 * KiB, 512);
  assert.equal(loads, 1);
  for (let at = 0; at < sizeBytes; at += 32 * KiB) await disk.read(at, 512);
  assert.equal(loads, 2048);
  // The last eight are still there, older ones are not.
  await disk.read(sizeBytes - 32 * KiB, 512);
  assert.equal(loads, 2048);
  for (let table = 0; table < 20; table++) await disk.read(table * 32 * KiB, 512);
  assert.equal(loads, 2068);
  await disk.close();
});
