import assert from 'node:assert/strict';
import { alignUp } from '../../src/base/align.js';
import { KiB } from '../../src/base/limits.js';
import { test } from 'node:test';
import type { BlockBackend } from '../../src/block/backend.js';
import { contents, JobBench, restless, seeded } from '../kit/job-bench.js';
import { AT_ONCE, type MemoryImage, newMemoryImage } from '../kit/memory-layer.js';
import { RecordWriter } from '../kit/record-writer.js';
import { startBackup, startCommit, startMirror, startStream } from '../kit/start-job.js';

/** What the document says of cancel and complete, one test a sentence, under a guest that never stops writing. */

const CLUSTER = 4096;
const DISK = 96 * CLUSTER + 512;
const SEEDS = [1, 2, 3, 4, 5, 6, 7, 8];

interface Scene {
  seed: number;
  bench: JobBench;
  base: MemoryImage;
  middle: MemoryImage;
  top: MemoryImage;
  target: MemoryImage;
  guest: BlockBackend;
  writer: RecordWriter;
}

/** [base] <-- [middle] <-- [top] with a writing guest on top, and an empty target. */
/** Never stop by themselves, also when a test has failed. */
const writers = new Set<RecordWriter>();

async function setScene(seed: number): Promise<Scene> {
  const below = seeded(seed);
  const bench = new JobBench();
  const image = (name: string, extra: object = {}): Promise<MemoryImage> =>
    newMemoryImage(bench.graph, name, {
      lengthBytes: DISK,
      clusterBytes: CLUSTER,
      behaviour: seed % 2 === 0 ? AT_ONCE : restless(below),
      ...extra,
    });
  const base = await image('base');
  await fill(bench, base, 0xb0, below);
  const middle = await image('middle', { backing: base.node });
  await fill(bench, middle, 0xc0, below);
  const top = await image('top', { backing: middle.node });
  const target = await image('target');
  const guest = await bench.guest(top.node);
  const writer = new RecordWriter(guest, await contents(top.node), below);
  writer.start();
  writers.add(writer);
  await writer.more(20);
  return { seed, bench, base, middle, top, target, guest, writer };
}

/** Writes half of an image, then makes it read-only. */
async function fill(
  bench: JobBench,
  image: MemoryImage,
  byte: number,
  below: (n: number) => number,
): Promise<void> {
  const backend = await bench.guest(image.node);
  for (let at = 0; at < DISK; at += CLUSTER) {
    if (below(2) === 0) await backend.write(at, Buffer.alloc(Math.min(CLUSTER, DISK - at), byte));
  }
  const { root } = backend;
  assert.ok(root);
  await bench.graph.transaction((transaction) => {
    transaction.detach(root);
    transaction.setReadOnly(image.node, true);
  });
}

function mirrorOf({ top, target }: Scene): {
  jobId: string;
  device: typeof top.node;
  target: typeof target.node;
  sync: 'full';
  targetIsNew: boolean;
} {
  return { jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: true };
}

/** Asserts that a disk is the guest's after one of the records in [low, high]. */
async function assertPointInTime(scene: Scene, image: MemoryImage, low: number, high: number): Promise<void> {
  const number = scene.writer.pointInTimeOf(await contents(image.node), low, high);
  assert.notEqual(number, -1, `seed ${scene.seed}: not the disk after any record of ${low}..${high}`);
}

/** One sentence: holds for every seed, half of them with requests that wait. */
function sentence(text: string, holds: (seed: number) => Promise<void>): void {
  test(text, async () => {
    try {
      for (const seed of SEEDS) await holds(seed);
    } finally {
      await Promise.allSettled([...writers].map((writer) => writer.stop()));
      writers.clear();
    }
  });
}

sentence('a mirror cancelled before READY emits BLOCK_JOB_CANCELLED', async (seed) => {
  const scene = await setScene(seed);
  const { bench, writer } = scene;
  const job = await startMirror(bench, { ...mirrorOf(scene), speed: 1000 });
  await writer.more(5);
  await job.cancel({ force: false, softOnReady: true });
  await job.concluded;
  await writer.more(5);
  await writer.stop();
  const story = bench.story('job0');
  assert.deepEqual(story.slice(0, 2), ['created', 'running']);
  assert.deepEqual(story.slice(-4), ['aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null']);
  assert.ok(!story.includes('BLOCK_JOB_READY') && !story.includes('BLOCK_JOB_COMPLETED'));
  assert.equal(scene.guest.node, scene.top.node);
  assert.ok((await contents(scene.top.node)).equals(writer.diskAfter(writer.completed)));
});

sentence(
  'cancelled after READY: BLOCK_JOB_COMPLETED, the target holds the moment of the cancel',
  async (seed) => {
    const scene = await setScene(seed);
    const { bench, writer } = scene;
    const job = await startMirror(bench, mirrorOf(scene));
    await bench.until('BLOCK_JOB_READY');
    await writer.more(30);
    const low = writer.completed;
    await job.cancel({ force: false, softOnReady: true });
    const high = writer.submitted;
    await job.concluded;
    await writer.more(30);
    await assertPointInTime(scene, scene.target, low, high);
    await writer.stop();
    const story = bench.story('job0');
    assert.deepEqual(story.slice(-5), ['waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null']);
    assert.equal(bench.last('BLOCK_JOB_COMPLETED')?.['error'], undefined);
    assert.equal(scene.guest.node, scene.top.node);
    assert.ok((await contents(scene.top.node)).equals(writer.diskAfter(writer.completed)));
    assert.ok(scene.target.file.flushes > 0);
  },
);

sentence('complete pivots the guest, and all new writes go to the target', async (seed) => {
  const scene = await setScene(seed);
  const { bench, writer, guest, top, target } = scene;
  const job = await startMirror(bench, mirrorOf(scene));
  await bench.until('BLOCK_JOB_READY');
  await writer.more(10);
  const low = writer.completed;
  job.complete();
  await job.concluded;
  assert.equal(guest.node, target.node);
  const high = writer.submitted;
  await writer.more(30);
  await writer.stop();
  assert.ok((await contents(target.node)).equals(writer.diskAfter(writer.completed)));
  // The source stays as it was at the pivot.
  await assertPointInTime(scene, top, low, high);
  assert.deepEqual(bench.story('job0').slice(-5), [
      'waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null',
    ]); // prettier-ignore
});

sentence('complete of an active commit pivots the guest to the base', async (seed) => {
  const scene = await setScene(seed);
  const { bench, writer, guest, top, base } = scene;
  const job = await startCommit(bench, {
    jobId: 'job0',
    device: top.node,
    top: top.node,
    base: base.node,
  });
  await bench.until('BLOCK_JOB_READY');
  await writer.more(10);
  job.complete();
  await job.concluded;
  assert.equal(guest.node, base.node);
  await writer.more(30);
  await writer.stop();
  assert.ok((await contents(base.node)).equals(writer.diskAfter(writer.completed)));
  assert.equal(base.node.readOnly, false);
  assert.equal(bench.last('BLOCK_JOB_COMPLETED')?.['type'], 'commit');
});

sentence(
  'an active commit cancelled after READY leaves the chain, the base as of the cancel',
  async (seed) => {
    const scene = await setScene(seed);
    const { bench, writer, guest, top, base } = scene;
    const job = await startCommit(bench, {
      jobId: 'job0',
      device: top.node,
      top: top.node,
      base: base.node,
    });
    await bench.until('BLOCK_JOB_READY');
    await writer.more(10);
    const low = writer.completed;
    await job.cancel({ force: false, softOnReady: true });
    const high = writer.submitted;
    await job.concluded;
    await writer.more(10);
    await assertPointInTime(scene, base, low, high);
    await writer.stop();
    assert.equal(guest.node, top.node);
    assert.equal(base.node.readOnly, true);
    assert.ok((await contents(top.node)).equals(writer.diskAfter(writer.completed)));
    assert.ok(bench.story('job0').includes('BLOCK_JOB_COMPLETED'));
  },
);

sentence('only mirror and active commit emit BLOCK_JOB_READY; the others end by themselves', async (seed) => {
  for (const kind of ['stream', 'commit', 'backup'] as const) {
    const scene = await setScene(seed);
    const { bench, writer, top, middle, base, target } = scene;
    const job =
      kind === 'stream'
        ? await startStream(bench, { jobId: 'job0', node: top.node })
        : kind === 'commit'
          ? await startCommit(bench, { jobId: 'job0', device: top.node, top: middle.node, base: base.node })
          : await startBackup(bench, { jobId: 'job0', device: top.node, target: target.node, sync: 'full' });
    await job.concluded;
    await writer.more(10);
    await writer.stop();
    const story = bench.story('job0');
    assert.ok(!story.includes('BLOCK_JOB_READY') && !story.includes('ready'), kind);
    assert.deepEqual(story.slice(-5), ['waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null']);
    assert.equal(bench.last('BLOCK_JOB_COMPLETED')?.['error'], undefined);
    assert.ok((await contents(top.node)).equals(writer.diskAfter(writer.completed)));
  }
});

sentence('a backup holds the point in time of its start', async (seed) => {
  const scene = await setScene(seed);
  const { bench, writer, top, target } = scene;
  const low = writer.completed;
  const job = await startBackup(bench, {
    jobId: 'job0',
    device: top.node,
    target: target.node,
    sync: 'full',
    speed: 1000,
  });
  const high = writer.submitted;
  assert.deepEqual(bench.story('job0').slice(0, 4), ['created', 'running', 'paused', 'running']);
  await writer.more(40);
  job.setSpeed(0);
  await job.concluded;
  await writer.more(10);
  await assertPointInTime(scene, target, low, high);
  await writer.stop();
  assert.ok((await contents(top.node)).equals(writer.diskAfter(writer.completed)));
  const done = bench.last('BLOCK_JOB_COMPLETED');
  const wholeClusters = alignUp(DISK, 64 * KiB);
  assert.equal(done?.['len'], wholeClusters);
  assert.equal(done?.['offset'], wholeClusters);
});
