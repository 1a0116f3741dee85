import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { NodeOptions } from '../../../block/driver.js';
import { crashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { resizeImage } from '../../../block/resize.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';

const SECTOR = 512;

async function messages(content: Buffer): Promise<string[]> {
  return (await checkQcow2(childOf(new RecordedDisk(content)))).messages;
}

for (const withBase of [false, true])
  test(`what was cut off never comes back${withBase ? ', nor does a longer backing file' : ''}`, async () => {
    for (let seed = 1; seed <= 8; seed++) {
      const below = seededBelow(seed * 65_537);
      const shelf = new DiskShelf([qcow2Driver]);
      const options: NodeOptions = { 'cluster-size': [512, 1024, 4096][below(3)] ?? 512 };
      const sizeBytes = 300 * SECTOR;
      let model = Buffer.alloc(sizeBytes);
      if (withBase) {
        await createQcow2(childOf(shelf.put('base')), { sizeBytes, options });
        const base = await shelf.open('base');
        model.fill(0xbb);
        await base.backend.write(0, model);
        await base.close();
      }
      const backing = withBase ? { backingFile: 'base', backingFormat: 'qcow2' } : {};
      await createQcow2(childOf(shelf.put('top')), { sizeBytes, options, ...backing });
      const disk = await shelf.open('top');
      for (let i = 0; i < 30; i++) {
        if (below(3) > 0) {
          const at = below(model.length / SECTOR) * SECTOR;
          const length = Math.min(model.length - at, (1 + below(40)) * SECTOR);
          await disk.backend.write(at, Buffer.alloc(length, i + 1));
          model.fill(i + 1, at, at + length);
        } else {
          const size = (1 + below(600)) * SECTOR;
          await disk.backend.truncate(size);
          model = size < model.length ? model.subarray(0, size) : Buffer.concat([model], size);
        }
        const where = `seed ${seed}, step ${i}`;
        assert.equal(disk.node.lengthBytes, model.length, where);
        assert.ok((await disk.read(0, model.length)).equals(model), where);
      }
      await disk.close();
      assert.deepEqual(await messages(shelf.disk('top').contents()), [], `seed ${seed}`);
    }
  });

test('a crash while a disk shrinks: it has the old size or the new one, and is sound', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  const sizeBytes = 400 * SECTOR;
  await createQcow2(childOf(shelf.put('image')), { sizeBytes, options: { 'cluster-size': 512 } });
  let disk = await shelf.open('image');
  await disk.backend.write(0, Buffer.alloc(sizeBytes, 7));
  await disk.close();
  const file = shelf.put('image', shelf.disk('image').contents());
  disk = await shelf.open('image');
  await disk.backend.truncate(33 * SECTOR);
  file.mark('done');
  await disk.backend.write(0, Buffer.alloc(20 * SECTOR, 8));
  await disk.close();
  for (const state of crashStates(file, seededBelow(2))) {
    const found = await checkQcow2(childOf(new RecordedDisk(state.content)));
    assert.equal(found.corruptions, 0, `${state.survived}: ${found.messages.join('; ')}`);
    shelf.put('after', state.content);
    const after = await shelf.open('after');
    const { lengthBytes } = after.node;
    assert.ok(lengthBytes === 33 * SECTOR || (lengthBytes === sizeBytes && state.marks.length === 0));
    assert.ok((await after.read(20 * SECTOR, 13 * SECTOR)).every((byte) => byte === 7));
    await after.backend.truncate(sizeBytes);
    const rest = await after.read(33 * SECTOR, sizeBytes - 33 * SECTOR);
    assert.ok(
      rest.every((byte) => byte === (lengthBytes === sizeBytes ? 7 : 0)),
      state.survived,
    );
    await after.close();
  }
});

test("a version 2 image with snapshots keeps its size, in QEMU's words", async () => {
  const image = new HandmadeQcow2({ sizeBytes: 8 * 65536, version: 2, clusters: 32 });
  image.data(0, 1);
  image.snapshot();
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', image.bytes);
  const disk = await shelf.open('image');
  for (const size of [65536, 9 * 65536])
    await assert.rejects(
      disk.backend.truncate(size),
      /^BlockError: Can't resize a v2 image which has snapshots$/,
    );
  await disk.close();
});

for (const mode of ['metadata', 'falloc', 'full'] as const)
  test(`new space with preallocation=${mode} has clusters that read as zeroes, whatever lay there`, async () => {
    for (let seed = 1; seed <= 6; seed++) {
      const below = seededBelow(seed * 4099);
      const shelf = new DiskShelf([qcow2Driver]);
      const clusterBytes = [512, 1024, 4096][below(3)] ?? 512;
      const oldBytes = (20 + below(200)) * SECTOR;
      await createQcow2(childOf(shelf.put('image')), {
        sizeBytes: 300 * SECTOR,
        options: { 'cluster-size': clusterBytes },
      });
      const disk = await shelf.open('image');
      await disk.backend.write(0, Buffer.alloc(300 * SECTOR, 0xee));
      await disk.backend.truncate(oldBytes);
      const newBytes = oldBytes + (1 + below(400)) * SECTOR;
      await resizeImage(disk.backend, newBytes, mode);
      const content = await disk.read(0, newBytes);
      assert.ok(content.subarray(0, oldBytes).every((byte) => byte === 0xee));
      assert.ok(content.subarray(oldBytes).every((byte) => byte === 0));
      const first = Math.ceil(oldBytes / clusterBytes) * clusterBytes;
      for (let at = first; at < newBytes;) {
        const { allocated, lengthBytes } = await disk.node.io.status(at, newBytes - at);
        assert.ok(allocated, `seed ${seed}: nothing at ${at}`);
        at += lengthBytes;
      }
      await disk.close();
      assert.deepEqual(await messages(shelf.disk('image').contents()), [], `seed ${seed}`);
    }
  });
