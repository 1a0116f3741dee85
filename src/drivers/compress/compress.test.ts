import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import type { NodeOptions } from '../../block/driver.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { assertSameBytes, TestBed, type TestDisk } from '../../../test/kit/test-disk.js';
import { allDrivers } from '../index.js';

const CLUSTER = 4096;
const CLUSTERS = 200;
const FILE = { driver: 'file', filename: '/tmp/image' };
const IMAGE: NodeOptions = { driver: 'qcow2', file: FILE, discard: 'unmap' };

async function withImage(
  seed: number,
  options: NodeOptions,
  body: (bed: TestBed, random: (below: number) => number) => Promise<void>,
): Promise<void> {
  const simulation = createSimulatedHost({ seed, refuseProbability: 0.5 });
  await simulation.run(async () => {
    const bed = new TestBed(simulation.host, allDrivers, '/tmp');
    await createImage(bed.opener, '/tmp/image', 'qcow2', {
      sizeBytes: CLUSTERS * CLUSTER,
      options: { 'cluster-size': CLUSTER, ...options },
    });
    await body(bed, (below) => simulation.host.random.bytes(4).readUInt32BE() % below);
  });
}

async function assertSound(bed: TestBed): Promise<void> {
  const disk = await bed.open(IMAGE);
  const lines: string[] = [];
  const found = await disk.node.instance.check?.('none', (line) => void lines.push(line));
  assert.deepEqual([found?.corruptions, found?.leaks], [0, 0], lines.join('\n'));
  await disk.close();
}

/** Half of it compresses well. */
function clusterOf(fill: number, random: (below: number) => number): Buffer {
  const bytes = Buffer.alloc(CLUSTER, fill);
  for (let i = 0; i < CLUSTER / 2; i++) bytes[i] = random(256);
  return bytes;
}

for (const refcountBits of [1, 2, 16]) {
  for (let seed = 1; seed <= 4; seed++)
    test(`clusters are compressed, discarded and overwritten at once (refcounts of ${refcountBits} bits, seed ${seed})`, () =>
      withImage(seed, { 'refcount-bits': refcountBits }, async (bed, random) => {
        const disk = await bed.open({ driver: 'compress', file: IMAGE });
        const plain = await bed.attach(disk.node.child('file').node);
        const model = Buffer.alloc(CLUSTERS * CLUSTER);
        for (let round = 0; round < 12; round++) {
          await Promise.all(
            Array.from({ length: CLUSTERS / 4 }, (_, i) =>
              change(disk, plain, model, (i * 4 + random(4)) * CLUSTER, random),
            ),
          );
          if (round % 3 === 0) await disk.backend.flush();
          assertSameBytes(await disk.readAll(), model, `round ${round}`);
        }
        await plain.close();
        await disk.close();
        await assertSound(bed);
        const again = await bed.open(IMAGE);
        assertSameBytes(await again.readAll(), model, 'the image when it is opened again');
        await again.close();
      }));
}

async function change(
  compressed: TestDisk,
  plain: TestDisk,
  model: Buffer,
  at: number,
  random: (below: number) => number,
): Promise<void> {
  const bytes = clusterOf(random(255) + 1, random);
  const kind = random(4);
  if (kind === 0) {
    await plain.backend.writeZeroes(at, CLUSTER, 2);
    model.fill(0, at, at + CLUSTER);
  } else if (kind === 1) {
    await plain.write(at, bytes);
    bytes.copy(model, at);
  } else {
    const hasData = (await plain.node.io.status(at, CLUSTER)).data;
    const write = compressed.write(at, bytes);
    if (hasData) return assert.rejects(write, { errno: 'EIO' });
    await write;
    bytes.copy(model, at);
  }
}

test('a write that fails leaves nothing behind', () =>
  withImage(1, {}, async (bed, random) => {
    const rules = [{ event: 'write_compressed', iotype: 'write', once: true, errno: 28 }];
    const file = { driver: 'blkdebug', image: FILE, 'inject-error': rules };
    const disk = await bed.open({ driver: 'compress', file: { ...IMAGE, file } });
    const bytes = clusterOf(1, random);
    await assert.rejects(disk.write(0, bytes), { errno: 'ENOSPC' });
    await disk.write(0, bytes);
    assertSameBytes(await disk.read(0, CLUSTER), bytes, 'the second write');
    await disk.close();
    await assertSound(bed);
  }));
