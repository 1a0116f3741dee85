import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { addKept, bitmapStates, dirtyOffsets } from '../../../../test/kit/kept-bitmaps.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, type OpenDisk } from '../../../../test/kit/recorded-disk.js';
import type { NodeOptions } from '../../../block/driver.js';
import { activate, inactivate } from '../../../block/activity.js';
import { Permission } from '../../../block/permissions.js';
import { checkQcow2 } from '../check/check.js';
import { FieldOffset, parseHeader } from '../disk/header.js';
import { qcow2Driver } from '../driver.js';

const KiB = 1024;
const SIZE = 64 * KiB;
const CLUSTER = 512;

async function bed(
  create: NodeOptions & { backingFile?: string } = {},
  sizeBytes = SIZE,
): Promise<{ shelf: DiskShelf; warnings: string[] }> {
  const { backingFile, ...own } = create;
  const shelf = new DiskShelf([qcow2Driver]);
  const warnings: string[] = [];
  shelf.opener.onWarning = (text) => warnings.push(text);
  const options = { 'cluster-size': CLUSTER, ...own };
  const backing = backingFile === undefined ? {} : { backingFile, backingFormat: 'qcow2' };
  if (backingFile !== undefined) await createQcow2(childOf(shelf.put(backingFile)), { sizeBytes });
  await createQcow2(childOf(shelf.put('top')), { sizeBytes, options, ...backing });
  return { shelf, warnings };
}

async function checkSays(shelf: DiskShelf): Promise<string[]> {
  return (await checkQcow2(childOf(shelf.disk('top')))).messages;
}

/** Opens, runs, closes. */
async function withTop(
  shelf: DiskShelf,
  body: (disk: OpenDisk) => unknown,
  options: { readOnly?: boolean } = {},
): Promise<void> {
  const disk = await shelf.open('top', options);
  await body(disk);
  await disk.close();
}

/** The image as it is when its process is killed. */
function kill(shelf: DiskShelf): void {
  shelf.put('top', shelf.disk('top').contents());
}

test('bitmaps are what they were when the image is opened again, and record', async () => {
  for (const clusterBytes of [512, 4096, 65536])
    for (const granularity of [512, 1024, 65536]) {
      const { shelf } = await bed({ 'cluster-size': clusterBytes }, 1024 * KiB + 512);
      await withTop(shelf, async ({ node, backend }) => {
        addKept(node, 'a', granularity);
        addKept(node, 'off', granularity).enabled = false;
        await backend.write(70 * KiB, Buffer.alloc(512, 1));
        await backend.write(1024 * KiB, Buffer.alloc(512, 1));
      });
      const start = (at: number): number => at - (at % granularity);
      const first = [start(70 * KiB), start(1024 * KiB)];
      await withTop(shelf, async ({ node, backend }) => {
        assert.deepEqual(bitmapStates(node), [
          `off of ${granularity}:, persistent, `,
          `a of ${granularity}:, persistent, ${first.join(' ')}, on`,
        ]);
        await backend.write(512 * KiB, Buffer.alloc(512, 1));
      });
      await withTop(
        shelf,
        ({ node }) => {
          const found = node.findBitmap('a');
          assert.ok(found);
          assert.deepEqual(dirtyOffsets(found), [first[0], start(512 * KiB), first[1]]);
        },
        { readOnly: true },
      );
      assert.deepEqual(await checkSays(shelf), []);
    }
});

test('an image that is only read keeps its bitmaps as they are', async () => {
  const { shelf } = await bed();
  await withTop(shelf, ({ node }) => addKept(node, 'a').set(0, 4096));
  const before = shelf.disk('top').contents();
  await withTop(shelf, ({ node }) => assert.match(bitmapStates(node)[0] ?? '', /on, read-only$/), {
    readOnly: true,
  });
  assert.ok(shelf.disk('top').contents().equals(before));
});

test('the directory tells as long as an image is open that its bitmaps are in use', async () => {
  const { shelf } = await bed();
  await withTop(shelf, ({ node }) => {
    addKept(node, 'a');
    addKept(node, 'b').enabled = false;
  });
  const bitmapsOf = (disk: OpenDisk): unknown =>
    (disk.instance.info().formatSpecific?.['data'] as { [key: string]: unknown })['bitmaps'];
  const told = (inUse: string[]): unknown => [
    { name: 'b', granularity: 512, flags: inUse },
    { name: 'a', granularity: 512, flags: [...inUse, 'auto'] },
  ];
  await withTop(shelf, (disk) => assert.deepEqual(bitmapsOf(disk), told(['in-use'])));
  await withTop(shelf, (disk) => assert.deepEqual(bitmapsOf(disk), told([])), { readOnly: true });
});

test('whoever is killed leaves inconsistent bitmaps, which can only be removed', async () => {
  const { shelf } = await bed();
  await withTop(shelf, ({ node }) => {
    addKept(node, 'a').set(0, 4096);
    addKept(node, 'b').set(0, 4096);
  });
  await shelf.open('top');
  kill(shelf);
  const inconsistent = (name: string): string => `${name} of 512:, persistent, inconsistent`;
  await withTop(shelf, async ({ node }) => {
    assert.deepEqual(bitmapStates(node), [inconsistent('b'), inconsistent('a')]);
    const bitmap = node.findBitmap('a');
    for (const use of ['read', 'change'] as const)
      assert.throws(() => bitmap?.assertUsable(use), {
        message: "Bitmap 'a' is inconsistent and cannot be used",
        hint: 'Try block-dirty-bitmap-remove to delete this bitmap from disk',
      });
    bitmap?.assertUsable('remove');
    await node.instance.bitmaps?.remove('a');
  });
  await withTop(shelf, ({ node }) => assert.deepEqual(bitmapStates(node), [inconsistent('b')]));
  assert.deepEqual(await checkSays(shelf), []);
});

test('the last one that is removed takes all of them out of the header, and frees their clusters', async () => {
  const { shelf } = await bed();
  const before = shelf.disk('top').contents();
  await withTop(shelf, ({ node }) => addKept(node, 'a').setAll());
  await withTop(shelf, async ({ node }) => {
    await node.instance.bitmaps?.remove('a');
    node.dirtyBitmaps.pop();
  });
  const after = shelf.disk('top').contents();
  const header = parseHeader(after.subarray(0, CLUSTER));
  assert.equal(header.autoclear, 0n);
  assert.deepEqual(header.extensions, parseHeader(before.subarray(0, CLUSTER)).extensions);
  assert.deepEqual(await checkSays(shelf), []);
});

test('an image that is opened and closed again and again does not grow by that', async () => {
  const { shelf } = await bed();
  const lengths: number[] = [];
  await withTop(shelf, ({ node }) => addKept(node, 'a').setAll());
  for (let i = 0; i < 12; i++) {
    await withTop(shelf, async ({ backend }) => backend.write(0, Buffer.alloc(512, i)));
    lengths.push(shelf.disk('top').lengthBytes);
  }
  assert.equal(lengths.at(-1), lengths[2], lengths.join(' '));
  assert.deepEqual(await checkSays(shelf), []);
});

test('a header with a backing file and long feature names has room for bitmaps in its first sector', async () => {
  for (const backingFile of ['base', 'b'.repeat(200)]) {
    const { shelf } = await bed({ backingFile, 'cluster-size': 4096 });
    await withTop(shelf, ({ node }) => addKept(node, 'a').set(0, 512));
    await withTop(shelf, ({ node }) => {
      assert.deepEqual(bitmapStates(node), ['a of 512:, persistent, 0, on']);
      assert.equal(node.backingFilename, backingFile);
      assert.equal(node.backingFormat, 'qcow2');
    });
    await withTop(shelf, (disk) => disk.instance.changeBacking?.(undefined, undefined));
    await withTop(shelf, ({ node }) => {
      assert.equal(node.backingFilename, undefined);
      assert.deepEqual(bitmapStates(node), ['a of 512:, persistent, 0, on']);
    });
  }
});

test('bitmaps grow with the disk; an inconsistent one keeps it from growing', async () => {
  const { shelf } = await bed();
  await withTop(shelf, ({ node }) => addKept(node, 'a').set(SIZE - 512, 512));
  await withTop(shelf, async ({ backend }) => {
    await backend.truncate(2 * SIZE);
    await backend.write(2 * SIZE - 512, Buffer.alloc(512, 1));
  });
  await withTop(shelf, async ({ node, backend }) => {
    assert.deepEqual(bitmapStates(node), [`a of 512:, persistent, ${SIZE - 512} ${2 * SIZE - 512}, on`]);
    await backend.truncate(3 * SIZE);
    kill(shelf);
  });
  await withTop(shelf, async ({ backend }) => {
    const message = "Bitmap 'a' is inconsistent and cannot be used";
    await assert.rejects(backend.truncate(4 * SIZE), { message });
  });
});

test('an image that another process owns has none in memory; they are loaded when it becomes ours', async () => {
  const { shelf } = await bed();
  await withTop(shelf, ({ node }) => addKept(node, 'a'));
  const disk = await shelf.open('top');
  const { graph } = shelf;
  await disk.backend.write(0, Buffer.alloc(512, 1));
  const change = (writing: number): Promise<void> =>
    graph.transaction((transaction) =>
      transaction.setPermissions(disk.backend, Permission.consistentRead + writing, disk.backend.shared),
    );
  await change(0);
  await inactivate(graph, [disk.node]);
  assert.deepEqual(bitmapStates(disk.node), []);
  // Another process has it meanwhile.
  const other = new DiskShelf([qcow2Driver]);
  other.disks.set('top', shelf.disk('top'));
  await withTop(other, ({ backend }) => backend.write(4096, Buffer.alloc(512, 1)));
  await activate(graph, [disk.node]);
  await change(Permission.write);
  assert.deepEqual(bitmapStates(disk.node), ['a of 512:, persistent, 0 4096, on']);
  await disk.backend.write(8192, Buffer.alloc(512, 1));
  await disk.close();
  await withTop(shelf, ({ node }) =>
    assert.deepEqual(bitmapStates(node), ['a of 512:, persistent, 0 4096 8192, on']),
  );
});

test('bits that could not be written are told, and the image says that they are lost', async () => {
  const { shelf, warnings } = await bed();
  await withTop(shelf, ({ node }) => addKept(node, 'a'));
  const disk = await shelf.open('top');
  await disk.backend.write(0, Buffer.alloc(512, 1));
  await disk.backend.flush();
  shelf.disk('top').failure = (event) => (event === 'write' ? new Error('no room') : undefined);
  await assert.rejects(
    disk.close(),
    /^BlockError: Lost persistent bitmaps during inactivation of node '.*': no room/,
  );
  shelf.disk('top').failure = () => undefined;
  assert.equal(warnings.length, 1);
  assert.match(warnings[0] ?? '', /^Lost persistent bitmaps/);
  await withTop(shelf, ({ node }) => assert.match(bitmapStates(node)[0] ?? '', /inconsistent/));
});

test('what cannot be kept is refused, in words of QEMU', async () => {
  const { shelf } = await bed();
  await withTop(shelf, ({ node }) => {
    const refusal = (name: string, granularity: number): string => {
      try {
        node.instance.bitmaps?.checkNew(name, granularity);
        return '';
      } catch (error) {
        return (error as Error).message;
      }
    };
    assert.equal(refusal('x'.repeat(1023), 2 ** 31), '');
    assert.equal(refusal('x'.repeat(1024), 512), 'Name length exceeds maximum (1023 characters)');
  });
  const old = await bed({ version: 'v2', 'cluster-size': 65536 });
  await withTop(old.shelf, ({ node }) => {
    assert.equal(node.instance.bitmaps?.isSupported, false);
    assert.throws(
      () => node.instance.bitmaps?.checkNew('a', 512),
      /^BlockError: Cannot store dirty bitmaps in qcow2 v2 files/,
    );
  });
  const large = await bed({ 'cluster-size': 65536 }, 4 * 1024 ** 4);
  await withTop(large.shelf, ({ node }) => {
    const message = 'Too much space will be occupied by the bitmap. Use larger granularity';
    assert.throws(() => node.instance.bitmaps?.checkNew('a', 512), { message });
    node.instance.bitmaps?.checkNew('a', 1024);
  });
});

// ---- images put together byte by byte

const TABLE_ENTRIES = 1;

/** An image of 16 clusters of 64 KiB with one bitmap 'bits' in granules of 64 KiB, its bytes `granules`. */
class ImageWithBitmap {
  readonly image = new HandmadeQcow2({ sizeBytes: 16 * 65536, clusters: 16 });
  readonly directory: number;
  readonly table: number;
  readonly extension = 112;

  constructor(granules: readonly number[], flags = 2) {
    const { image } = this;
    const bits = image.cluster();
    Buffer.from(granules).copy(image.bytes, bits);
    this.table = image.cluster();
    image.u64(this.table, BigInt(bits));
    this.directory = image.cluster();
    image.u64(this.directory, BigInt(this.table));
    image.u32(this.directory + 8, TABLE_ENTRIES);
    image.u32(this.directory + 12, flags);
    image.bytes.set([1, 16, 0, 4], this.directory + 16);
    image.bytes.write('bits', this.directory + 24);
    image.u64(FieldOffset.autoclear, 1n);
    image.u32(104, 0x23852875);
    image.u32(108, 24);
    image.u32(this.extension, 1);
    image.u64(this.extension + 8, 32n);
    image.u64(this.extension + 16, BigInt(this.directory));
  }

  async open(t: TestContext, readOnly = true): Promise<OpenDisk> {
    const shelf = new DiskShelf([qcow2Driver]);
    shelf.put('image', this.image.bytes);
    const disk = await shelf.open('image', { readOnly });
    t.after(() => disk.close());
    return disk;
  }
}

test('a bitmap as the specification has it: bits, all zeroes, all ones, and none of a disk beyond its end', async (t) => {
  const made = new ImageWithBitmap([0b00000101, 0b10000000, 0xff]);
  const bits = (disk: OpenDisk): number[] =>
    disk.node.dirtyBitmaps.flatMap((bitmap) => dirtyOffsets(bitmap).map((offset) => offset / 65536));
  assert.deepEqual(bits(await made.open(t)), [0, 2, 15]);
  made.image.u64(made.table, 0n);
  assert.deepEqual(bits(await made.open(t)), []);
  made.image.u64(made.table, 1n);
  assert.deepEqual(
    bits(await made.open(t)),
    Array.from({ length: 16 }, (_, i) => i),
  );
});

test('what cannot be right in a directory keeps the image from being opened, in words of QEMU', async (t) => {
  const constraints = "Bitmap 'bits' doesn't satisfy the constraints";
  const table = "Could not read bitmap_table table from image for bitmap 'bits': Invalid argument";
  const cases: ReadonlyArray<readonly [(made: ImageWithBitmap) => void, string]> = [
    [(m) => m.image.u32(m.extension, 0), 'found bitmaps extension with zero bitmaps'],
    [(m) => m.image.u32(m.extension + 4, 1), 'bitmaps_ext: Reserved field is not zero'],
    [
      (m) => m.image.u32(m.extension, 65536),
      'bitmaps_ext: Image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535',
    ],
    [(m) => m.image.u32(m.extension, 2), 'Less bitmaps found than specified in header extension'],
    [
      (m) => {
        m.image.bytes.copy(m.image.bytes, m.directory + 32, m.directory, m.directory + 32);
        m.image.u64(m.extension + 8, 64n);
      },
      'More bitmaps found than specified in header extension',
    ],
    [
      (m) => {
        m.image.bytes.copy(m.image.bytes, m.directory + 32, m.directory, m.directory + 32);
        m.image.u64(m.extension + 8, 64n);
        m.image.u32(m.extension, 2);
      },
      'Bitmap already exists: bits',
    ],
    [(m) => m.image.u64(m.extension + 8, 0n), 'Requested bitmap directory size is zero'],
    [(m) => m.image.u64(m.extension + 8, 56n), 'More bitmaps found than specified in header extension'],
    [
      (m) => {
        m.image.u64(m.extension + 8, 56n);
        m.image.bytes.writeUInt16BE(1, m.directory + 32 + 18);
      },
      'More bitmaps found than specified in header extension',
    ],
    [(m) => m.image.u64(m.extension + 8, 24n), 'Broken bitmap directory'],
    [(m) => m.image.u64(m.extension + 8, 40n), 'Broken bitmap directory'],
    [
      (m) => m.image.u64(m.extension + 8, 1n << 40n),
      'bitmaps_ext: bitmap directory size (1099511627776) exceeds the maximum supported size (67107840)',
    ],
    [(m) => m.image.u64(m.extension + 16, 512n), 'bitmaps_ext: invalid bitmap directory offset'],
    [(m) => m.image.u32(m.directory + 12, 4), constraints],
    [(m) => m.image.u32(m.directory + 8, 0), constraints],
    [(m) => m.image.u32(m.directory + 8, 2 ** 30), constraints],
    [(m) => m.image.u64(m.directory, 0n), constraints],
    [(m) => m.image.u64(m.directory, 512n), constraints],
    [(m) => void m.image.bytes.set([2], m.directory + 16), constraints],
    [(m) => void m.image.bytes.set([8], m.directory + 17), constraints],
    [(m) => void m.image.bytes.set([32], m.directory + 17), constraints],
    [(m) => m.image.u32(m.directory + 20, 2 ** 31), 'Bitmap extra data is not supported'],
    [(m) => m.image.u32(m.directory + 20, 4), 'Bitmap extra data is not supported'],
    [(m) => m.image.u64(m.table, 2n), table],
    [(m) => m.image.u64(m.table, 65536n + 512n), table],
    [(m) => m.image.u64(m.table, 65537n), table],
    [(m) => m.image.u64(m.table, 1n << 60n), table],
    [
      (m) => {
        m.image.u32(m.directory + 8, 2);
        m.image.u64(m.table + 8, 2n);
      },
      table,
    ],
    [(m) => m.image.u32(m.directory + 8, 2), "Could not read bitmap 'bits' from image: Invalid argument"],
    [
      (m) => {
        m.image.u64(m.directory, 1n << 63n);
        m.image.u32(m.extension, 2);
      },
      'Less bitmaps found than specified in header extension',
    ],
    [(m) => m.image.u64(m.extension + 16, 1n << 63n), 'Failed to read bitmap directory: Input/output error'],
    [(m) => m.image.u64(m.directory, (1n << 63n) + 512n), constraints],
    [(m) => m.image.u64(m.directory, 1n << 63n), table.replace('Invalid argument', 'Input/output error')],
    [
      (m) => {
        m.image.u32(m.extension, 65536);
        m.image.u64(m.extension + 8, 1n << 60n);
      },
      'bitmaps_ext: Image has 65536 bitmaps, exceeding the QEMU supported maximum of 65535',
    ],
  ];
  for (const [damage, message] of cases)
    for (const readOnly of [true, false]) {
      const made = new ImageWithBitmap([1]);
      damage(made);
      await assert.rejects(made.open(t, readOnly), { message });
    }
});

test('of a bitmap in use nothing but its place is looked at; cluster that are not its own stay', async (t) => {
  const made = new ImageWithBitmap([1], 3);
  made.image.u64(made.table, 3n);
  const data = made.image.data(0, 7);
  for (const entry of [3n, 1n << 50n, BigInt(made.image.l1Offset), BigInt(data + 512)]) {
    made.image.u64(made.table, entry);
    const disk = await made.open(t, false);
    await disk.node.instance.bitmaps?.remove('bits');
    await disk.backend.write(65536, Buffer.alloc(65536, 5));
    await disk.backend.flush();
    assert.deepEqual(await disk.read(0, 4), Buffer.alloc(4, 7));
  }
});

test('where the table of a bitmap in use is does not matter, and the bitmap can go', async (t) => {
  for (const offset of [1n << 63n, 1n << 60n, 1n << 40n]) {
    const made = new ImageWithBitmap([1], 3);
    made.image.u64(made.directory, offset);
    const disk = await made.open(t, false);
    await disk.node.instance.bitmaps?.remove('bits');
    await disk.backend.write(65536, Buffer.alloc(65536, 5));
    await disk.backend.flush();
    assert.deepEqual(await disk.read(65536, 4), Buffer.alloc(4, 5));
  }
});

test('a bitmap may have an empty name', async (t) => {
  const made = new ImageWithBitmap([1]);
  made.image.bytes.writeUInt16BE(0, made.directory + 18);
  made.image.u64(made.extension + 8, 24n);
  const disk = await made.open(t);
  assert.deepEqual(bitmapStates(disk.node), [' of 65536:, persistent, 0, on, read-only']);
});

test('bitmaps of an image that somebody changed who does not know them are outdated, and go with the next change', async () => {
  const made = new ImageWithBitmap([1]);
  made.image.u64(FieldOffset.autoclear, 0n);
  const shelf = new DiskShelf([qcow2Driver]);
  const warnings: string[] = [];
  shelf.opener.onWarning = (text) => warnings.push(text);
  shelf.put('top', made.image.bytes);
  await withTop(shelf, ({ node }) => assert.deepEqual(bitmapStates(node), []), { readOnly: true });
  assert.equal(warnings.length, 1);
  assert.match(warnings[0] ?? '', /^a program lacking bitmap support modified this file/);
  await withTop(shelf, async ({ node, backend }) => {
    await backend.write(0, Buffer.alloc(512, 1));
    addKept(node, 'bits');
  });
  assert.equal(warnings.length, 2);
  await withTop(shelf, ({ node }) =>
    assert.deepEqual(bitmapStates(node), ['bits of 512:, persistent, , on']),
  );
  assert.equal(warnings.length, 2);
});

test('what the header promises without having it is promised no longer after the first change', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 16 * 65536, clusters: 8 });
  image.u64(FieldOffset.autoclear, 1n);
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('top', image.bytes);
  const autoclear = (): bigint => shelf.disk('top').contents().readBigUInt64BE(FieldOffset.autoclear);
  await withTop(shelf, () => undefined);
  assert.equal(autoclear(), 1n);
  await withTop(shelf, async ({ backend }) => backend.write(0, Buffer.alloc(512, 1)));
  assert.equal(autoclear(), 0n);
});

test('features that we do not know are said no longer once the image is ours to write, whether or not it is changed', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 16 * 65536, clusters: 8 });
  image.u64(FieldOffset.autoclear, 1n << 63n);
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('top', image.bytes);
  const autoclear = (): bigint => shelf.disk('top').contents().readBigUInt64BE(FieldOffset.autoclear);
  await withTop(shelf, () => undefined, { readOnly: true });
  assert.equal(autoclear(), 1n << 63n);
  await withTop(shelf, () => assert.equal(autoclear(), 0n));
});
