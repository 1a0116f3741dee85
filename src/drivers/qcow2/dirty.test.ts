import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DamagedQcow2 } from '../../../test/kit/damaged-qcow2.js';
import { HandmadeQcow2 } from '../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf } from '../../../test/kit/recorded-disk.js';
import { checkQcow2 } from './check/check.js';
import { FieldOffset } from './disk/header.js';
import { qcow2Driver } from './driver.js';

const CLUSTER = 65536;
const DIRTY = 1n;

/** Two clusters of data, which the refcounts do not know: as a crash leaves an image with lazy refcounts. */
function dirtyImage(): DamagedQcow2 {
  const image = new HandmadeQcow2({ sizeBytes: 16 * CLUSTER, clusters: 8 });
  for (const cluster of [0, 3]) image.refcount(image.data(cluster, 1 + cluster), 0);
  image.u64(FieldOffset.incompatible, DIRTY);
  return new DamagedQcow2(image.bytes);
}

interface Shelf {
  shelf: DiskShelf;
  lines: string[];
}

function shelfOf(image: DamagedQcow2): Shelf {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', image.bytes);
  const lines: string[] = [];
  shelf.graph.onDriverLine = (line) => void lines.push(line);
  return { shelf, lines };
}

test('an image that was not closed is repaired when it is opened for writing, and says so', async () => {
  const { shelf, lines } = shelfOf(dirtyImage());
  const disk = await shelf.open('image');
  assert.equal(disk.instance.info().isDirty, false);
  assert.ok(lines.includes('Rebuilding refcount structure'), lines.join('; '));
  assert.deepEqual((await checkQcow2(childOf(shelf.disk('image')))).messages, []);
  await disk.backend.write(5 * CLUSTER, Buffer.alloc(CLUSTER, 9));
  for (const [cluster, fill] of [
    [0, 1],
    [3, 4],
    [5, 9],
  ] as const)
    assert.deepEqual(await disk.read(cluster * CLUSTER, CLUSTER), Buffer.alloc(CLUSTER, fill));
  await disk.close();
  assert.deepEqual((await checkQcow2(childOf(shelf.disk('image')))).messages, []);
});

test('one that is opened for reading, or to be checked, stays as it is', async () => {
  const image = dirtyImage();
  const { shelf, lines } = shelfOf(image);
  for (const mode of [{ readOnly: true }, { readOnly: true, forCheck: true }]) {
    const disk = await shelf.open('image', mode);
    assert.equal(disk.instance.info().isDirty, true);
    await disk.close();
  }
  assert.deepEqual(lines, []);
  assert.ok(shelf.disk('image').contents().equals(image.bytes));
});

test('one that was opened for reading is not written later: it cannot be repaired then', async () => {
  const image = dirtyImage();
  const { shelf } = shelfOf(image);
  const disk = await shelf.open('image', { readOnly: true });
  const prepared = disk.instance.prepareReadOnly?.(false);
  await assert.rejects(prepared ?? Promise.resolve(), {
    message: /^qcow2: Image is dirty \(lazy refcounts\)/,
  });
  await disk.close();
  assert.ok(shelf.disk('image').contents().equals(image.bytes));
});

test('what cannot be repaired stays for the user; the image is dirty until it is closed', async () => {
  const image = dirtyImage();
  image.setEntry(7, 2n ** 60n);
  const { shelf } = shelfOf(image);
  const disk = await shelf.open('image');
  assert.equal(disk.instance.info().isDirty, true);
  assert.deepEqual(await disk.read(0, 4), Buffer.alloc(4, 1));
  await disk.close();
  const after = shelf.disk('image').contents();
  assert.equal(after.readBigUInt64BE(FieldOffset.incompatible), 0n);
  const { messages } = await checkQcow2(childOf(shelf.disk('image')));
  assert.deepEqual(messages, ['ERROR found l2 entry with reserved bits set: 1000000000000000']);
});

test('an image that cannot be repaired because a write fails does not open', async () => {
  const { shelf } = shelfOf(dirtyImage());
  shelf.disk('image').failure = (event) => (event === 'write' ? new Error('no') : undefined);
  await assert.rejects(shelf.open('image'), { message: /^Could not repair dirty image: / });
  assert.equal(shelf.graph.nodes.size, 0);
  shelf.disk('image').failure = () => undefined;
  const disk = await shelf.open('image');
  assert.deepEqual(await disk.read(3 * CLUSTER, 4), Buffer.alloc(4, 4));
  await disk.close();
});

test('an image with lazy refcounts is never dirty here: its refcounts are on disk before its entries', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 16 * CLUSTER, clusters: 8 });
  image.u64(80, 1n);
  const { shelf } = shelfOf(new DamagedQcow2(image.bytes));
  const disk = await shelf.open('image');
  await disk.backend.write(0, Buffer.alloc(CLUSTER, 1));
  await disk.backend.flush();
  assert.equal(shelf.disk('image').contents().readBigUInt64BE(FieldOffset.incompatible), 0n);
  assert.deepEqual((await checkQcow2(childOf(shelf.disk('image')))).messages, []);
  await disk.close();
});
