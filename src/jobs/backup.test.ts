import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Deferred, deferred } from '../base/async.js';
import { KiB } from '../base/limits.js';
import { contents, JobBench } from '../../test/kit/job-bench.js';
import { AT_ONCE, type MemoryImage, newMemoryImage } from '../../test/kit/memory-layer.js';
import { startBackup } from '../../test/kit/start-job.js';

const CLUSTER = 64 * KiB;

async function turns(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** The tables of an image are not in memory until the answer resolves. */
function loadLater({ layer }: MemoryImage): Deferred<void> {
  const loaded = deferred();
  const { map } = layer;
  const tryMap = map.tryMap.bind(map);
  map.tryMap = () => false;
  map.map = async (at, length, out) => {
    await loaded.promise;
    map.tryMap = tryMap;
    tryMap(at, length, out);
  };
  return loaded;
}

test('a backup of the top that skips a cluster lets no write overtake the copy for an earlier one', async () => {
  const bench = new JobBench();
  const image = (name: string, extra: object = {}): Promise<MemoryImage> =>
    newMemoryImage(bench.graph, name, {
      lengthBytes: 4 * CLUSTER,
      clusterBytes: CLUSTER,
      behaviour: AT_ONCE,
      ...extra,
    });
  const base = await image('base');
  const filler = await bench.guest(base.node);
  await filler.write(0, Buffer.alloc(4 * CLUSTER, 0xb0));
  const { root } = filler;
  assert.ok(root);
  await bench.graph.transaction((transaction) => transaction.detach(root));
  const top = await image('top', { backing: base.node });
  const target = await image('target');
  const guest = await bench.guest(top.node);
  await guest.write(CLUSTER, Buffer.alloc(2 * CLUSTER, 0xc0));

  const topLoaded = loadLater(top);
  const baseLoaded = loadLater(base);
  const job = await startBackup(bench, {
    ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'top', speed: 1 },
  });
  const first = guest.write(0, Buffer.alloc(512, 1));
  await turns();
  // The job sees that the top lacks the cluster; what the first write has to copy is not known yet.
  topLoaded.resolve();
  await turns();
  const second = guest.write(0, Buffer.alloc(CLUSTER, 2));
  await turns();
  baseLoaded.resolve();
  job.setSpeed(0);
  await Promise.all([first, second, job.concluded]);
  assert.equal(job.error, undefined);
  const copied = (await contents(target.node)).subarray(0, CLUSTER);
  assert.ok(copied.equals(Buffer.alloc(CLUSTER, 0xb0)));
});

test('a backup of a disk that ends within a cluster counts whole ones, as QEMU does', async () => {
  const bench = new JobBench();
  const lengthBytes = 18 * CLUSTER + 55_296;
  const source = await newMemoryImage(bench.graph, 'source', { lengthBytes, clusterBytes: CLUSTER });
  const target = await newMemoryImage(bench.graph, 'target', { lengthBytes, clusterBytes: CLUSTER });
  const job = await startBackup(bench, {
    ...{ jobId: 'job0', device: source.node, target: target.node, sync: 'full' },
  });
  await job.result();
  assert.equal(job.progress().doneBytes, 19 * CLUSTER);
  assert.equal(job.progress().remainingBytes, 0);
});

test('a backup of the top copies a cluster of its own of which the top holds only a later part', async () => {
  const bench = new JobBench();
  const lengthBytes = 4 * CLUSTER;
  const base = await newMemoryImage(bench.graph, 'base', { lengthBytes, clusterBytes: 4 * KiB });
  const top = await newMemoryImage(bench.graph, 'top', {
    ...{ lengthBytes, clusterBytes: 4 * KiB, backing: base.node },
  });
  const target = await newMemoryImage(bench.graph, 'target', { lengthBytes, clusterBytes: CLUSTER });
  const guest = await bench.guest(top.node);
  await guest.write(2 * CLUSTER + 8 * KiB, Buffer.alloc(4 * KiB, 7));
  const job = await startBackup(bench, {
    ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'top' },
  });
  await job.result();
  assert.ok((await contents(target.node)).equals(await contents(top.node)));
  assert.equal(job.progress().doneBytes, CLUSTER);
});
