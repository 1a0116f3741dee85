import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { childOf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from './check.js';

const CLUSTER = 65536;
const COPIED = 1n << 63n;

interface Image {
  image: HandmadeQcow2;
  l2: number;
  data: number;
}

function twoClusters(): Image {
  const image = new HandmadeQcow2({ sizeBytes: 4 * CLUSTER, clusters: 16 });
  const data = image.data(0, 0);
  image.data(1, 2);
  return { image, l2: image.l2(0), data };
}

// Corruptions and leaks as qemu-img counts them.
const DAMAGES: ReadonlyArray<[string, number, number, (image: Image) => void, RegExp]> = [
  ['nothing', 0, 0, () => undefined, /^$/],
  [
    'reserved bits of an L1 entry',
    1,
    0,
    ({ image, l2 }) => image.u64(image.l1Offset, BigInt(l2) | COPIED | 1n),
    /ERROR found L1 entry with reserved bits set: 8/,
  ],
  [
    'reserved bits of an L2 entry',
    2,
    0,
    ({ image, data }) => {
      image.entry(0, BigInt(data) | COPIED | 2n);
      image.entry(3, 1n << 58n);
    },
    /ERROR found l2 entry with reserved bits set: 8/,
  ],
  [
    'an L2 table behind the end',
    2,
    3,
    ({ image }) => image.u64(image.l1Offset, BigInt(100 * CLUSTER) | COPIED),
    /region exceeding the end of the file by one cluster or more: offset 0x640000 size 0x10000/,
  ],
  [
    'a data cluster behind the end',
    2,
    1,
    ({ image }) => image.entry(0, BigInt(100 * CLUSTER) | COPIED),
    /OFLAG_COPIED data cluster: l2_entry=8000000000640000 refcount=0/,
  ],
  [
    'a data cluster that is not aligned refers to two',
    2,
    0,
    ({ image, data }) => image.entry(0, BigInt(data + 512) | COPIED),
    /offset=50200: Data cluster is not properly aligned/,
  ],
  [
    'an L2 table that is not aligned is looked at where it is',
    1,
    1,
    ({ image, l2 }) => image.u64(image.l1Offset, BigInt(l2 + 512) | COPIED),
    /l2_offset=40200: Table is not cluster aligned/,
  ],
  [
    'reserved bits of a refcount table entry: its block is used, but not counted',
    1,
    1,
    ({ image }) => image.u64(image.refcountTableOffset, BigInt(image.refcountBlockOffset) | 1n),
    /refcount table entry 0 has reserved bits set/,
  ],
  [
    'a refcount block behind the end: nothing is counted',
    10,
    0,
    ({ image }) => image.u64(image.refcountTableOffset, BigInt(100 * CLUSTER)),
    /cluster 0 refcount=0 reference=1/,
  ],
  [
    'a refcount block that is not aligned: nothing is known of its clusters',
    1,
    0,
    ({ image }) => image.u64(image.refcountTableOffset, BigInt(image.refcountBlockOffset + 512)),
    /Can't get refcount for cluster 15: Input/,
  ],
];

for (const [what, corruptions, leaks, damage, message] of DAMAGES) {
  test(`the check of an image with ${what}`, async () => {
    const made = twoClusters();
    damage(made);
    const found = await checkQcow2(childOf(new RecordedDisk(made.image.bytes)));
    const messages = found.messages.join('\n');
    assert.deepEqual([found.corruptions, found.leaks], [corruptions, leaks], messages);
    assert.match(messages, message);
  });
}

test('more references than a refcount can count are errors of their own', async () => {
  const { image, data } = twoClusters();
  // One bit a refcount: clusters 0 to 6 are in use.
  image.u32(96, 0);
  image.bytes.fill(0, image.refcountBlockOffset, image.refcountBlockOffset + CLUSTER);
  image.bytes[image.refcountBlockOffset] = 0x7f;
  image.entry(2, BigInt(data));
  const found = await checkQcow2(childOf(new RecordedDisk(image.bytes)));
  assert.ok(found.messages.includes('ERROR: overflow cluster offset=0x50000'), found.messages.join('\n'));
});

test('the disk of an image whose size ends within a sector ends before it', async () => {
  const { image } = twoClusters();
  image.u64(24, BigInt(4 * CLUSTER + 1));
  assert.equal((await checkQcow2(childOf(new RecordedDisk(image.bytes)))).totalClusters, 4);
});

/** What the two halves of an extended entry say, and what a check says of that. */
const PARTS: ReadonlyArray<[string, entry: bigint, parts: bigint, RegExp]> = [
  [
    'data where there is no cluster',
    0n,
    1n,
    /^ERROR: Unallocated cluster has non-zero subcluster allocation map$/,
  ],
  ['zeroes where there is no cluster', 0n, 1n << 32n, /^$/],
  [
    'zeroes that are data',
    BigInt(6 * CLUSTER) | COPIED,
    (1n << 32n) | 1n,
    /^ERROR offset=60000: Allocated cluster has corrupted subcluster allocation bitmap$/,
  ],
  [
    'a compressed cluster with parts',
    (1n << 62n) | BigInt(6 * CLUSTER),
    1n,
    /^ERROR compressed cluster 0 with non-zero subcluster allocation bitmap, entry=0x4000000000060000$/,
  ],
];

for (const [name, entry, parts, message] of PARTS)
  test(`extended entries: ${name}`, async () => {
    const image = new HandmadeQcow2({ sizeBytes: 4 * CLUSTER, clusters: 16 });
    image.u64(72, 16n);
    const l2 = image.l2(0);
    while (image.cluster() < 6 * CLUSTER);
    image.refcount(5 * CLUSTER, 0);
    image.refcount(6 * CLUSTER, entry === 0n ? 0 : 1);
    image.u64(l2, entry);
    image.u64(l2 + 8, parts);
    const found = await checkQcow2(childOf(new RecordedDisk(image.bytes)));
    assert.match(found.messages.join('\n'), message);
    assert.equal(found.corruptions, message.source === '^$' ? 0 : 1);
  });
