import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import type { BlockBackend } from '../../src/block/backend.js';
import { createImage } from '../../src/block/create.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { KiB } from '../../src/base/limits.js';
import { EngineBed, MiB } from './engine-bed.js';

interface Volume {
  bed: EngineBed;
  backend: BlockBackend;
}

/** A new qcow2 image on a storage whose length is fixed, as a device's is: a window of a file. What was there is not zero. */
async function volume(
  context: TestContext,
  { clusterBytes, sizeBytes, volumeBytes }: { clusterBytes: number; sizeBytes: number; volumeBytes: number },
): Promise<Volume> {
  const bed = new EngineBed(context);
  const filename = bed.path('volume');
  await createImage(bed.engine.opener, filename, 'qcow2', {
    sizeBytes,
    options: { 'cluster-size': clusterBytes },
  });
  const image = readFileSync(filename);
  truncateSync(filename, 0);
  writeFileSync(filename, Buffer.concat([image, Buffer.alloc(volumeBytes - image.length, 0xee)]));
  const file = { driver: 'raw', size: volumeBytes, file: { driver: 'file', filename } };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file, discard: 'unmap' });
  const perm = Permission.consistentRead | Permission.write | Permission.resize;
  const { graph } = bed.engine;
  const backend = graph.createBackend({ description: 'a test', perm, shared: ALL_PERMISSIONS });
  await graph.transaction((transaction) => void transaction.attach(backend, 'root', graph.node('A')));
  return { bed, backend };
}

async function checkAndClose({ bed, backend }: Volume, model: Buffer): Promise<void> {
  const { graph } = bed.engine;
  const found = Buffer.alloc(model.length);
  for (let at = 0; at < model.length; at += MiB) await backend.read(at, found.subarray(at, at + MiB));
  assert.ok(found.equals(model), 'the content');
  await backend.flush();
  const node = graph.node('A');
  const result = await node.instance.check?.('none', () => undefined);
  assert.deepEqual([result?.corruptions, result?.leaks], [0, 0]);
  await bed.engine.close();
}

for (const [clusterBytes, sizeBytes, volumeBytes] of [
  [512, 4 * MiB, 5 * MiB],
  [4 * KiB, 24 * MiB, 26 * MiB],
] as const) {
  test(`an image with clusters of ${clusterBytes} bytes fills its volume, whatever the lengths of writes`, async (t) => {
    const disk = await volume(t, { clusterBytes, sizeBytes, volumeBytes });
    const model = randomBytes(sizeBytes);
    const lengths = [7, 2, 1, 3, 16, 5].map((n) => (n * sizeBytes) / 64);
    for (let at = 0, i = 0; at < sizeBytes; i++) {
      const length = Math.min(lengths[i % lengths.length] ?? 1, sizeBytes - at);
      await disk.backend.write(at, model.subarray(at, at + length));
      at += length;
    }
    // What is given back is found again.
    for (let at = 0; at < sizeBytes; at += 4 * clusterBytes) {
      await disk.backend.discard(at, clusterBytes);
      model.fill(0, at, at + clusterBytes);
    }
    await disk.backend.flush();
    const half = sizeBytes / 2;
    randomBytes(half).copy(model);
    await disk.backend.write(0, model.subarray(0, half));
    await checkAndClose(disk, model);
  });
}

test('an image grows on its volume: larger tables find room between what is there', async (t) => {
  for (const [clusterBytes, newBytes] of [
    [4 * KiB, 2048 * MiB],
    [64 * KiB, 64 * 1024 * MiB],
  ] as const) {
    const disk = await volume(t, { clusterBytes, sizeBytes: 8 * MiB, volumeBytes: 40 * MiB });
    const model = randomBytes(8 * MiB);
    await disk.backend.write(0, model);
    const resize = { 'node-name': 'A', size: newBytes };
    await disk.bed.execute('block_resize', resize);
    await disk.backend.write(newBytes - 64 * KiB, Buffer.alloc(64 * KiB, 7));
    const end = Buffer.alloc(64 * KiB);
    await disk.backend.read(newBytes - 64 * KiB, end);
    assert.ok(end.every((byte) => byte === 7));
    await checkAndClose(disk, model);
  }
});
