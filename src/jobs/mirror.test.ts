import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../base/async.js';
import type { BlockBackend } from '../block/backend.js';
import type { Node } from '../block/node.js';
import type { MirrorArguments } from './arguments.js';
import type { Job } from './job.js';
import { Flag } from '../block/request.js';
import { assertSame, contents, JobBench, restless, seeded } from '../testing/job-bench.js';
import { AT_ONCE, type MemoryBehaviour, type MemoryImage, newMemoryImage } from '../testing/memory-layer.js';

const CLUSTER = 4096;
const DISK = 64 * CLUSTER;
/** Less than a granule of the mirror, and never aligned to one. */
const PIECE = 700;

/** Fills clusters of an image, each with some byte of its own. */
async function fill(bench: JobBench, image: MemoryImage, below: (n: number) => number): Promise<void> {
  const backend = await bench.guest(image.node);
  for (let at = 0; at < DISK; at += CLUSTER)
    if (below(3) > 0) await backend.write(at, Buffer.alloc(CLUSTER, 1 + below(255)));
  const { root } = backend;
  assert.ok(root);
  await bench.graph.transaction((transaction) => transaction.detach(root));
}

/** Several guests' threads, each in its own part of every cluster, until told to stop. */
function writeOn(guest: BlockBackend, model: Buffer, below: (n: number) => number): () => Promise<void> {
  let stop = false;
  const loop = async (thread: number): Promise<void> => {
    while (!stop) {
      const offset = below(DISK / CLUSTER) * CLUSTER + thread * PIECE;
      const byte = 1 + below(255);
      model.fill(byte, offset, offset + PIECE);
      await guest.write(offset, Buffer.alloc(PIECE, byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const done = Promise.all([0, 1, 2, 3].map(loop));
  return async () => {
    stop = true;
    await done;
  };
}

for (const copyMode of ['background', 'write-blocking'] as const) {
  for (const [sync, lengthOfCluster] of [
    ['full', CLUSTER],
    ['top', 4 * CLUSTER],
  ] as const) {
    test(`a ${copyMode} mirror, sync ${sync}, takes over what guests wrote in parts of clusters`, async () => {
      for (let seed = 0; seed < 25; seed++) {
        const below = seeded(seed);
        const bench = new JobBench();
        const behaviour: MemoryBehaviour = below(3) === 0 ? AT_ONCE : restless(below);
        const options = { lengthBytes: DISK, clusterBytes: CLUSTER, behaviour };
        const base = await newMemoryImage(bench.graph, 'base', options);
        await fill(bench, base, below);
        const top = await newMemoryImage(bench.graph, 'top', { ...options, backing: base.node });
        const target = await newMemoryImage(bench.graph, 'target', {
          ...options,
          clusterBytes: lengthOfCluster,
        });
        const guest = await bench.guest(top.node);
        const model = await contents(top.node);
        const stop = writeOn(guest, model, below);
        const job = await bench.jobs.startMirror({
          jobId: 'job0',
          device: top.node,
          target: target.node,
          sync,
          targetIsNew: true,
          copyMode,
          // A small one, which a target without its backing file must not take at its word.
          ...(sync === 'top' && { granularity: 512, targetBacking: 'source-chain' as const }),
        });
        await bench.until('BLOCK_JOB_READY');
        job.complete();
        await job.concluded;
        await stop();
        assert.equal(guest.node, target.node);
        assertSame(await contents(target.node), model, seed);
      }
    });
  }
}

const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
};

test('a write to both sides keeps dirty what the first look through the disk marks meanwhile', async () => {
  const bench = new JobBench();
  const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
  const top = await newMemoryImage(bench.graph, 'top', options);
  const targetOpens = deferred();
  const behaviour: MemoryBehaviour = { isLate: () => true, delay: () => targetOpens.promise };
  const target = await newMemoryImage(bench.graph, 'target', { ...options, behaviour });
  const guest = await bench.guest(top.node);
  await guest.write(0, Buffer.alloc(CLUSTER, 1));
  await guest.write(2 * CLUSTER, Buffer.alloc(CLUSTER, 2));
  await guest.write(4 * CLUSTER, Buffer.alloc(CLUSTER, 4));
  const reached = deferred();
  const lookOn = new Map([2, 4].map((cluster) => [cluster * CLUSTER, deferred()]));
  const { io } = top.node;
  const status = io.status.bind(io);
  io.tryStatus = () => undefined;
  io.status = async (offset, lengthBytes): ReturnType<typeof status> => {
    reached.resolve();
    await lookOn.get(offset)?.promise;
    return status(offset, lengthBytes);
  };
  const job = await bench.jobs.startMirror({
    jobId: 'job0',
    device: top.node,
    target: target.node,
    sync: 'full',
    targetIsNew: true,
    copyMode: 'write-blocking',
  });
  await reached.promise;
  await turns(10);
  const written = guest.write(2 * CLUSTER + 100, Buffer.alloc(PIECE, 3));
  await turns(10);
  lookOn.get(2 * CLUSTER)?.resolve();
  await turns(10);
  targetOpens.resolve();
  await written;
  lookOn.get(4 * CLUSTER)?.resolve();
  await bench.until('BLOCK_JOB_READY');
  const before = await contents(top.node);
  job.complete();
  await job.concluded;
  assertSame(await contents(target.node), before, 0);
});

async function chainOfFour(bench: JobBench): Promise<[Node, Node, Node, Node]> {
  const nodes: Node[] = [];
  for (const name of ['a', 'b', 'c', 'd']) {
    const backing = nodes.at(-1);
    const image = await newMemoryImage(bench.graph, name, {
      lengthBytes: DISK,
      clusterBytes: CLUSTER,
      readOnly: name !== 'd',
      ...(backing && { backing }),
    });
    nodes.push(image.node);
  }
  return nodes as [Node, Node, Node, Node];
}

test('a job over a chain of which another job holds a part is refused at its start', async () => {
  const bench = new JobBench();
  const [a, b, c, d] = await chainOfFour(bench);
  const first = await bench.jobs.startStream({ jobId: 'first', node: b, autoFinalize: false });
  const busy = { kind: 'busy', message: /is busy: block device is in use by block job: stream/ };
  await assert.rejects(bench.jobs.startStream({ jobId: 'second', node: d }), busy);
  await assert.rejects(bench.jobs.startCommit({ jobId: 'second', device: d, top: c, base: a }), busy);
  // Above it there is room.
  const beside = await bench.jobs.startStream({ jobId: 'beside', node: d, base: b });
  await beside.concluded;
  assert.equal(beside.error, undefined);
  while (first.status !== 'pending') await turns(1);
  first.finalize();
  await first.concluded;
  assert.equal(first.error, undefined);
});

test('a mirror that takes over leaves the filter of a job further down the old chain to that job', async () => {
  const bench = new JobBench();
  const [, b, , d] = await chainOfFour(bench);
  const target = await newMemoryImage(bench.graph, 'target', { lengthBytes: DISK, clusterBytes: CLUSTER });
  const guest = await bench.guest(d);
  for (const node of d.chain()) node.monitorOwned = false;
  const below = await bench.jobs.startStream({ jobId: 'below', node: b, autoFinalize: false });
  const job = await bench.jobs.startMirror({
    jobId: 'job0', device: d, target: target.node, sync: 'full', targetIsNew: true,
  }); // prettier-ignore
  await bench.until('BLOCK_JOB_READY');
  job.complete();
  await job.concluded;
  assert.equal(job.error, undefined);
  assert.equal(guest.node, target.node);
  while (below.status !== 'pending') await turns(1);
  below.finalize();
  await below.concluded;
  assert.equal(below.error, undefined);
  assert.deepEqual([...bench.graph.nodes.keys()].sort(), ['target', 'target-file']);
});

/** A disk of data, mirrored into an image of which `faulty` requests fail; READY. */
async function readyMirror(
  bench: JobBench,
  more: Partial<MirrorArguments> = {},
  sizeBytes = DISK,
): Promise<{
  top: MemoryImage;
  target: MemoryImage;
  guest: BlockBackend;
  job: Job;
  fault: { errno?: string };
}> {
  const options = { lengthBytes: sizeBytes, clusterBytes: CLUSTER };
  const top = await newMemoryImage(bench.graph, 'top', options);
  const fault: { errno?: string } = {};
  const behaviour: MemoryBehaviour = {
    ...AT_ONCE,
    fault: (operation) => (operation === 'write' ? fault.errno : undefined),
  };
  const target = await newMemoryImage(bench.graph, 'target', { ...options, behaviour });
  const guest = await bench.guest(top.node);
  await guest.write(0, Buffer.alloc(sizeBytes, 1));
  const job = await bench.jobs.startMirror({
    jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: true, ...more,
  }); // prettier-ignore
  await bench.until('BLOCK_JOB_READY');
  return { top, target, guest, job, fault };
}

test(
  'a mirror that has caught up ends at once, however much it has overdrawn its speed',
  { timeout: 60_000 },
  async () => {
    for (const end of [
      (job: Job): void => job.complete(),
      (job: Job): void => void job.cancel({ force: false, softOnReady: true }),
    ]) {
      const bench = new JobBench();
      const { job } = await readyMirror(bench, { speed: 1 }, CLUSTER);
      end(job);
      await job.concluded;
      assert.equal(job.error, undefined);
    }
  },
);

test(
  'a guest of a write-blocking mirror writes on when the target fails, and the mirror ends with that error',
  { timeout: 60_000 },
  async () => {
    const bench = new JobBench();
    const { top, guest, job, fault } = await readyMirror(bench, { copyMode: 'write-blocking' });
    fault.errno = 'ENOSPC';
    await guest.write(0, Buffer.alloc(CLUSTER, 2));
    // Once is enough.
    delete fault.errno;
    await job.concluded;
    assert.equal(job.error, 'No space left on device');
    const told = { device: 'job0', operation: 'write', action: 'report' };
    assert.deepEqual(bench.last('BLOCK_JOB_ERROR'), told);
    assert.equal(guest.node, top.node);
    assert.ok((await contents(top.node)).subarray(0, CLUSTER).equals(Buffer.alloc(CLUSTER, 2)));
    assert.deepEqual(top.node.dirtyBitmaps, []);
  },
);

test('a mirror that ends at a point in time fails when a copy before a write of the guest does', async () => {
  const bench = new JobBench();
  const { guest, job, fault } = await readyMirror(bench);
  job.pause();
  while (job.status !== 'standby') await turns(1);
  await guest.write(0, Buffer.alloc(DISK, 2));
  job.resume();
  fault.errno = 'EIO';
  const cancelled = job.cancel({ force: false, softOnReady: true });
  await Promise.all([cancelled, guest.write(0, Buffer.alloc(DISK, 3))]);
  await job.concluded;
  assert.equal(job.error, 'Input/output error');
  await guest.write(0, Buffer.alloc(DISK, 4));
});

test('the length of a mirror grows by what the guest writes, and its offset follows', async () => {
  const bench = new JobBench();
  const { guest, job } = await readyMirror(bench);
  const progress = (): unknown[] => [job.jobInfo()['current-progress'], job.jobInfo()['total-progress']];
  assert.deepEqual(progress(), [DISK, DISK]);
  job.pause();
  while (job.status !== 'standby') await turns(1);
  await guest.write(CLUSTER, Buffer.alloc(1, 2));
  assert.deepEqual(progress(), [DISK, DISK + CLUSTER]);
  job.resume();
  job.complete();
  await job.concluded;
  assert.deepEqual(progress(), [DISK + CLUSTER, DISK + CLUSTER]);
});

test('a full mirror leaves nothing of what its target held, and keeps holes', async () => {
  for (let seed = 0; seed < 12; seed++) {
    const below = seeded(seed);
    const bench = new JobBench();
    const behaviour = below(2) === 0 ? AT_ONCE : restless(below);
    const options = { lengthBytes: DISK, clusterBytes: CLUSTER, behaviour };
    const top = await newMemoryImage(bench.graph, 'top', options);
    const target = await newMemoryImage(bench.graph, 'target', options);
    for (const image of [top, target]) await fill(bench, image, below);
    const guest = await bench.guest(top.node);
    for (let n = 0; n < 8; n++) await guest.writeZeroes(below(60) * CLUSTER, (1 + below(4)) * CLUSTER);
    const job = await bench.jobs.startMirror({
      jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: false, granularity: 16384,
    }); // prettier-ignore
    await bench.until('BLOCK_JOB_READY');
    await job.cancel({ force: false, softOnReady: true });
    await job.concluded;
    assertSame(await contents(target.node), await contents(top.node), seed);
  }
  // One cluster of data in granules of four: the others stay holes in a new target.
  const bench = new JobBench();
  const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
  const top = await newMemoryImage(bench.graph, 'top', options);
  const target = await newMemoryImage(bench.graph, 'target', options);
  const guest = await bench.guest(top.node);
  for (const cluster of [0, 5]) await guest.write(cluster * CLUSTER, Buffer.alloc(CLUSTER, 1));
  await guest.writeZeroes(8 * CLUSTER, 4 * CLUSTER);
  const job = await bench.jobs.startMirror({
    jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: true, granularity: 16384,
  }); // prettier-ignore
  await bench.until('BLOCK_JOB_READY');
  await job.cancel({ force: true, softOnReady: false });
  await job.concluded;
  assert.deepEqual([...target.layer.table.keys()].sort(), [0, 5]);
});

test('zeroes over data of the backing file are in a mirror of the top before it gets that file', async () => {
  const bench = new JobBench();
  const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
  const base = await newMemoryImage(bench.graph, 'base', options);
  await fill(bench, base, () => 2);
  const top = await newMemoryImage(bench.graph, 'top', { ...options, backing: base.node });
  const target = await newMemoryImage(bench.graph, 'target', options);
  const guest = await bench.guest(top.node);
  await guest.writeZeroes(0, 3 * CLUSTER);
  await guest.writeZeroes(9 * CLUSTER, CLUSTER);
  const expected = await contents(top.node);
  const job = await bench.jobs.startMirror({
    ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'top', targetIsNew: true },
    targetBacking: 'source-chain',
  });
  await bench.until('BLOCK_JOB_READY');
  job.complete();
  await job.concluded;
  assert.equal(job.error, undefined);
  assert.equal(target.node.backingNode(), base.node);
  assertSame(await contents(target.node), expected, 0);
});

test('a mirror has 16 pieces in flight, or as many bytes as its buffer has', async () => {
  for (const [bufSize, most] of [
    [undefined, 16],
    [2 * CLUSTER, 2],
    [1, 1],
  ] as const) {
    const bench = new JobBench();
    const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
    const top = await newMemoryImage(bench.graph, 'top', options);
    const opens = deferred();
    const behaviour: MemoryBehaviour = { isLate: () => true, delay: () => opens.promise };
    const target = await newMemoryImage(bench.graph, 'target', { ...options, behaviour });
    const guest = await bench.guest(top.node);
    for (let at = 0; at < DISK; at += 2 * CLUSTER) await guest.write(at, Buffer.alloc(CLUSTER, 1));
    const job = await bench.jobs.startMirror({
      ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: true },
      ...(bufSize !== undefined && { bufSize }),
    });
    const backend = [...target.node.parents].map(({ parent }) => parent as BlockBackend)[0];
    for (let i = 0; i < 1000 && backend?.inFlight !== most; i++) await turns(1);
    await turns(30);
    assert.equal(backend?.inFlight, most);
    opens.resolve();
    await bench.until('BLOCK_JOB_READY');
    await job.cancel({ force: true, softOnReady: false });
    await job.concluded;
  }
});

test('every job keeps its speed, also where pieces are copied without a wait', async () => {
  for (const kind of ['mirror', 'backup', 'stream', 'commit'] as const) {
    const bench = new JobBench();
    const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
    const base = await newMemoryImage(bench.graph, 'base', options);
    await fill(bench, base, () => 1);
    const middle = await newMemoryImage(bench.graph, 'middle', { ...options, backing: base.node });
    await fill(bench, middle, () => 2);
    const top = await newMemoryImage(bench.graph, 'top', { ...options, backing: middle.node });
    const target = await newMemoryImage(bench.graph, 'target', options);
    // Written in place, without a wait.
    await fill(bench, target, () => 1);
    await bench.guest(top.node);
    const { jobs } = bench;
    const common = { jobId: 'job0', speed: 1 };
    const copy = { ...common, device: top.node, target: target.node, sync: 'full' } as const;
    const job =
      kind === 'mirror'
        ? await jobs.startMirror({ ...copy, targetIsNew: false })
        : kind === 'backup'
          ? await jobs.startBackup(copy)
          : kind === 'stream'
            ? await jobs.startStream({ ...common, node: top.node })
            : await jobs.startCommit({ ...common, device: top.node, top: middle.node, base: base.node });
    const done = (): number => Number(job.jobInfo()['current-progress']);
    while (done() === 0) await turns(1);
    await turns(50);
    assert.ok(done() <= 64 * 1024, `${kind}: ${done()}`);
    assert.equal(job.blockJobInfo()['speed'], 1);
    await job.cancel({ force: true, softOnReady: false });
    await job.concluded;
  }
});

test('jobs of one chain may end at the same moment', { timeout: 60_000 }, async () => {
  const bench = new JobBench();
  const [, b, , d] = await chainOfFour(bench);
  const guest = await bench.guest(d);
  const jobs = [
    await bench.jobs.startStream({ jobId: 'below', node: b, autoFinalize: false }),
    await bench.jobs.startStream({ jobId: 'above', node: d, base: b, autoFinalize: false }),
  ];
  while (jobs.some((job) => job.status !== 'pending')) await turns(1);
  for (const job of jobs) job.finalize();
  for (const job of jobs) await job.concluded;
  assert.deepEqual(jobs.map((job) => job.error), [undefined, undefined]); // prettier-ignore
  assert.deepEqual([...guest.node.chain()].map(({ name }) => name), ['d', 'b']); // prettier-ignore
});

test('a mirror refuses a target of another size, and bounds of its arguments', async () => {
  const bench = new JobBench();
  const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
  const top = await newMemoryImage(bench.graph, 'top', options);
  const target = await newMemoryImage(bench.graph, 'target', options);
  const longer = await newMemoryImage(bench.graph, 'longer', { ...options, lengthBytes: 2 * DISK });
  const spare = await newMemoryImage(bench.graph, 'spare', { ...options, lengthBytes: 2 * DISK });
  const start = (more: Partial<MirrorArguments>): Promise<Job> =>
    bench.jobs.startMirror({
      ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: true, ...more },
    });
  const range = { message: "Parameter 'granularity' expects a value in range [512B, 64MB]" };
  await assert.rejects(start({ granularity: 256 }), range);
  await assert.rejects(start({ granularity: 128 * 1024 * 1024 }), range);
  await assert.rejects(start({ granularity: 1000 }), {
    message: "Parameter 'granularity' expects a power of 2",
  });
  await assert.rejects(start({ bufSize: -1 }), { message: "Invalid parameter 'buf-size'" });
  await assert.rejects(start({ speed: -1 }), { message: "Parameter 'speed' expects a non-negative value" });
  await assert.rejects(start({ filterNodeName: 'top' }), { message: "Duplicate nodes with node-name='top'" });
  const job = await start({ target: longer.node });
  await job.concluded;
  assert.equal(job.error, 'Source and target image have different sizes');
  assert.deepEqual([...bench.graph.nodes.keys()].filter((name) => name.startsWith('#')), []); // prettier-ignore
  const first = await start({});
  const taken = { message: "Job ID 'job0' already in use" };
  await assert.rejects(start({ device: longer.node, target: spare.node }), taken);
  await first.cancel({ force: true, softOnReady: false });
  await first.concluded;
});

test('a granule that is zero only at its beginning is copied whole', { timeout: 60_000 }, async () => {
  const bench = new JobBench();
  const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
  const top = await newMemoryImage(bench.graph, 'top', options);
  const target = await newMemoryImage(bench.graph, 'target', options);
  // All but its first cluster holds something.
  let asked = 0;
  await fill(bench, target, () => (asked++ === 0 ? 0 : 2));
  const guest = await bench.guest(top.node);
  await guest.write(9 * CLUSTER, Buffer.alloc(CLUSTER, 1));
  const job = await bench.jobs.startMirror({
    ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: false },
    // Pieces of one granule, and zeroes that cost nothing.
    ...{ granularity: 4 * CLUSTER, speed: 40 * CLUSTER },
  });
  await bench.until('BLOCK_JOB_READY');
  await job.cancel({ force: true, softOnReady: false });
  await job.concluded;
  assertSame(await contents(target.node), await contents(top.node), 0);
});

test('a mirror that has fixed its point in time begins no piece that it was about to', async () => {
  const bench = new JobBench();
  const { top, target, guest, job } = await readyMirror(bench);
  const { io } = top.node;
  const [reached, lookOn] = [deferred(), deferred()];
  const status = io.status.bind(io);
  const tryStatus = io.tryStatus.bind(io);
  io.tryStatus = () => undefined;
  io.status = async (offset, lengthBytes): ReturnType<typeof status> => {
    Object.assign(io, { status, tryStatus });
    reached.resolve();
    await lookOn.promise;
    return status(offset, lengthBytes);
  };
  await guest.write(0, Buffer.alloc(CLUSTER, 2));
  await reached.promise;
  await job.cancel({ force: false, softOnReady: true });
  await guest.write(0, Buffer.alloc(CLUSTER, 3));
  lookOn.resolve();
  await job.concluded;
  assert.equal(job.error, undefined);
  assert.ok((await contents(target.node)).subarray(0, CLUSTER).equals(Buffer.alloc(CLUSTER, 2)));
});

test('what fails is told as a read of the source or a write of the target', async () => {
  for (const kind of ['mirror', 'backup', 'commit'] as const) {
    for (const operation of ['read', 'write'] as const) {
      const bench = new JobBench();
      const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
      const faulty = { ...AT_ONCE, fault: (wanted: string) => (wanted === operation ? 'ENOSPC' : undefined) };
      const base = await newMemoryImage(bench.graph, 'base', options);
      const middle = await newMemoryImage(bench.graph, 'middle', { ...options, backing: base.node });
      await fill(bench, middle, () => 2);
      const top = await newMemoryImage(bench.graph, 'top', { ...options, backing: middle.node });
      const target = await newMemoryImage(bench.graph, 'target', options);
      (operation === 'read' ? middle : kind === 'commit' ? base : target).file.behaviour = faulty;
      const copy = { jobId: 'job0', device: top.node, target: target.node, sync: 'full' } as const;
      const { jobs } = bench;
      const job =
        kind === 'mirror'
          ? await jobs.startMirror({ ...copy, targetIsNew: true })
          : kind === 'backup'
            ? await jobs.startBackup(copy)
            : await jobs.startCommit({ jobId: 'job0', device: top.node, top: middle.node, base: base.node });
      await job.concluded;
      assert.equal(job.error, 'No space left on device');
      const told = { device: 'job0', operation, action: 'report' };
      assert.deepEqual(bench.last('BLOCK_JOB_ERROR'), told, kind);
    }
  }
});

/** Whether each zeroing of an image from now on may unmap. */
function zeroings({ layer: { map } }: MemoryImage): boolean[] {
  const seen: boolean[] = [];
  const zeroClusters = map.zeroClusters.bind(map);
  map.zeroClusters = (offset, lengthBytes, mayUnmap) => {
    seen.push(mayUnmap);
    return zeroClusters(offset, lengthBytes, mayUnmap);
  };
  return seen;
}

test('zeroes of a mirror deallocate unless it was told not to', async () => {
  for (const unmap of [undefined, true, false]) {
    const bench = new JobBench();
    const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
    const top = await newMemoryImage(bench.graph, 'top', options);
    const target = await newMemoryImage(bench.graph, 'target', options);
    await fill(bench, target, () => 2);
    const seen = zeroings(target);
    const job = await bench.jobs.startMirror({
      ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: false },
      ...(unmap !== undefined && { unmap }),
    });
    await bench.until('BLOCK_JOB_READY');
    await job.cancel({ force: true, softOnReady: false });
    await job.concluded;
    assert.ok(seen.length > 0 && seen.every((mayUnmap) => mayUnmap === (unmap ?? true)));
  }
});

test("a guest's flags reach the disk through the filter, and both sides of a write-blocking mirror", async () => {
  for (const copyMode of ['background', 'write-blocking'] as const) {
    const bench = new JobBench();
    const { top, target, guest, job } = await readyMirror(bench, { copyMode });
    job.pause();
    const images = copyMode === 'background' ? [top] : [top, target];
    const seen = images.map(zeroings);
    const flushes = (): number[] => images.map(({ file }) => file.flushes);
    for (const flags of [Flag.fua, Flag.fua + Flag.mayUnmap]) {
      let before = flushes();
      await guest.write(0, Buffer.alloc(CLUSTER, 2), Flag.fua);
      assert.ok(flushes().every((count, i) => count > (before[i] ?? 0)));
      before = flushes();
      await guest.writeZeroes(0, CLUSTER, flags);
      assert.ok(flushes().every((count, i) => count > (before[i] ?? 0)));
    }
    for (const flags of seen) assert.deepEqual(flags, [false, true]);
    job.resume();
    await job.cancel({ force: true, softOnReady: false });
    await job.concluded;
  }
});
