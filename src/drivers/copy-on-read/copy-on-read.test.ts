import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import type { NodeOptions } from '../../block/driver.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { assertSameBytes, TestBed, type TestDisk } from '../../../test/kit/test-disk.js';
import { allDrivers } from '../index.js';

const CLUSTER = 4096;
const SIZE = 64 * CLUSTER;

/** A chain base <- mid <- top in simulated time; of a cluster, base has ones where its number is even, mid twos where odd. */
async function withChain(
  seed: number,
  body: (bed: TestBed, options: NodeOptions) => Promise<void>,
): Promise<void> {
  const simulation = createSimulatedHost({ seed, refuseProbability: 0.5 });
  await simulation.run(async () => {
    const bed = new TestBed(simulation.host, allDrivers, '/tmp');
    let backing: NodeOptions | null = null;
    for (const [layer, name] of ['base', 'mid', 'top'].entries()) {
      const filename = `/tmp/${name}`;
      await createImage(bed.opener, filename, 'qcow2', {
        sizeBytes: SIZE,
        options: { 'cluster-size': CLUSTER },
      });
      const options: NodeOptions = {
        ...{ driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename }, backing },
      };
      backing = options;
      if (layer === 2) continue;
      const disk = await bed.open(options);
      for (let at = layer * CLUSTER; at < SIZE; at += 2 * CLUSTER)
        await disk.write(at, Buffer.alloc(CLUSTER, layer + 1));
      await disk.close();
    }
    await body(bed, backing as unknown as NodeOptions);
  });
}

const expectedAt = (cluster: number): number => (cluster % 2) + 1;

async function clustersOf(disk: TestDisk): Promise<boolean[]> {
  const own: boolean[] = [];
  const top = disk.node.skipFilters();
  for (let at = 0; at < SIZE; at += CLUSTER) own.push((await top.io.status(at, CLUSTER)).allocated);
  return own;
}

test('what is read through raw images and other filters comes into the image too, as far as they show it', () =>
  withChain(1, async (bed, file) => {
    const window = { offset: 2 * CLUSTER, size: SIZE - 4 * CLUSTER };
    const disk = await bed.open({
      driver: 'copy-on-read',
      file: {
        driver: 'raw',
        file: { driver: 'copy-on-read', file: { driver: 'raw', ...window, file } },
      },
    });
    await disk.read(0, window.size);
    const top = bed.opener.graph.node('top');
    const own: boolean[] = [];
    for (let at = 0; at < SIZE; at += CLUSTER) own.push((await top.io.status(at, CLUSTER)).allocated);
    const clusters = SIZE / CLUSTER;
    assert.deepEqual(
      own,
      Array.from({ length: clusters }, (_, i) => i >= 2 && i < clusters - 2),
    );
    await disk.close();
  }));

for (let seed = 1; seed <= 12; seed++)
  test(`a write is not lost to a read of the same cluster (seed ${seed})`, () =>
    withChain(seed, async (bed, file) => {
      const disk = await bed.open({ driver: 'copy-on-read', file });
      const model = Buffer.alloc(SIZE);
      for (let i = 0; i < SIZE / CLUSTER; i++) model.fill(expectedAt(i), i * CLUSTER, (i + 1) * CLUSTER);
      const requests: Array<Promise<unknown>> = [];
      for (let i = 0; i < SIZE / CLUSTER; i++) {
        const at = i * CLUSTER + 512;
        const bytes = Buffer.alloc(1024, 0x80 + i);
        const write = async (): Promise<void> => disk.write(at, bytes);
        const read = async (): Promise<void> => void (await disk.read(i * CLUSTER, CLUSTER));
        requests.push(...(i % 3 === 0 ? [write(), read()] : [read(), write(), read()]));
        bytes.copy(model, at);
      }
      await Promise.all(requests);
      assertSameBytes(await disk.readAll(), model, 'the disk');
      assert.ok((await clustersOf(disk)).every((own) => own));
      await disk.close();
      const top = await bed.open(file);
      assertSameBytes(await top.readAll(), model, 'the image');
      await top.close();
    }));

test('only layers down to the bottom are copied', () =>
  withChain(1, async (bed, file) => {
    const disk = await bed.open({ driver: 'copy-on-read', bottom: 'mid', file });
    assert.match(disk.node.filename, /^json:\{"driver": "copy-on-read", "file": \{/);
    await disk.readAll();
    assert.deepEqual(
      await clustersOf(disk),
      Array.from({ length: SIZE / CLUSTER }, (_, i) => i % 2 === 1),
    );
    await disk.close();
    assert.equal(bed.graph.nodes.size, 0);
  }));

test('the chain down to the bottom cannot be changed', () =>
  withChain(1, async (bed, file) => {
    const disk = await bed.open({ driver: 'copy-on-read', 'node-name': 'c', bottom: 'mid', file });
    const top = disk.node.child('file').node;
    await assert.rejects(
      bed.graph.transaction((transaction) => transaction.detach(top.child('backing'))),
      { message: "Cannot remove frozen 'backing' link from 'top' to 'mid'" },
    );
    await disk.close();
  }));

test('it is named by itself, also above a plain file', () =>
  withChain(1, async (bed, file) => {
    const below = file['file'] as NodeOptions;
    const disk = await bed.open({ driver: 'copy-on-read', file: below });
    assert.match(
      disk.node.filename,
      /^json:\{"driver": "copy-on-read", "file": \{"driver": "file", "filename": "[^"]*"\}\}$/,
    );
    await disk.close();
  }));
