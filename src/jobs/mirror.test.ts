import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../base/async.js';
import { ByteRanges } from '../base/byte-ranges.js';
import type { BlockBackend } from '../block/backend.js';
import type { Node } from '../block/node.js';
import type { Job } from './job.js';
import { assertSame, contents, JobBench, restless, seeded } from '../../test/kit/job-bench.js';
import { loseAtFlush } from '../../test/kit/losing-image.js';
import { AT_ONCE, type MemoryBehaviour, newMemoryImage } from '../../test/kit/memory-layer.js';
import { CLUSTER, DISK, fill, readyMirror, turns } from '../../test/kit/mirror-bench.js';
import {
  type MirrorArguments,
  startBackup,
  startCommit,
  startMirror,
  startStream,
} from '../../test/kit/start-job.js';

/** Less than a granule of the mirror, and never aligned to one. */
const PIECE = 700;

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
        const job = await startMirror(bench, {
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

for (const [part, at] of [
  ['end', CLUSTER - 512],
  ['beginning', 0],
] as const)
  test(`a write to both sides at the ${part} of a granule that was not copied yet leaves the rest to be copied`, async () => {
    const bench = new JobBench();
    const options = { lengthBytes: 8 * CLUSTER, clusterBytes: CLUSTER };
    const top = await newMemoryImage(bench.graph, 'top', options);
    const target = await newMemoryImage(bench.graph, 'target', options);
    const guest = await bench.guest(top.node);
    // The first is copied, the second is the next one, and the third is to be looked for later.
    for (const cluster of [0, 2, 6]) await guest.write(cluster * CLUSTER, Buffer.alloc(CLUSTER, 1));
    const job = await startMirror(bench, {
      ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'full' },
      ...{ targetIsNew: true, targetBacking: 'leave', copyMode: 'write-blocking' },
      ...{ granularity: CLUSTER, speed: 1 },
    });
    await turns(10);
    await guest.write(6 * CLUSTER + at, Buffer.alloc(512, 2));
    job.setSpeed(0);
    await bench.until('BLOCK_JOB_READY');
    const model = await contents(top.node);
    job.complete();
    await job.result();
    assertSame(await contents(target.node), model, at);
  });

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
  const job = await startMirror(bench, {
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
  const first = await startStream(bench, { jobId: 'first', node: b, autoFinalize: false });
  const busy = { kind: 'busy', message: /is busy: block device is in use by block job: stream/ };
  await assert.rejects(startStream(bench, { jobId: 'second', node: d }), busy);
  await assert.rejects(startCommit(bench, { jobId: 'second', device: d, top: c, base: a }), busy);
  // The filter above a base that the job below works on is that job's; above the filter there is room.
  await assert.rejects(startStream(bench, { jobId: 'second', node: d, base: b }), busy);
  const beside = await startStream(bench, { jobId: 'beside', node: d, bottom: c });
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
  const below = await startStream(bench, { jobId: 'below', node: b, autoFinalize: false });
  const job = await startMirror(bench, {
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

test('jobs of one chain may end at the same moment', { timeout: 60_000 }, async () => {
  const bench = new JobBench();
  const [, b, c, d] = await chainOfFour(bench);
  const guest = await bench.guest(d);
  const jobs = [
    await startStream(bench, { jobId: 'below', node: b, autoFinalize: false }),
    await startStream(bench, { jobId: 'above', node: d, bottom: c, autoFinalize: false }),
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
    startMirror(bench, {
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
  const first = await start({ granularity: 0 });
  const taken = { message: "Job ID 'job0' already in use" };
  await assert.rejects(start({ device: longer.node, target: spare.node }), taken);
  await first.cancel({ force: true, softOnReady: false });
  await first.concluded;
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
      const job =
        kind === 'mirror'
          ? await startMirror(bench, { ...copy, targetIsNew: true })
          : kind === 'backup'
            ? await startBackup(bench, copy)
            : await startCommit(bench, {
                jobId: 'job0',
                device: top.node,
                top: middle.node,
                base: base.node,
              });
      await job.concluded;
      assert.equal(job.error, 'No space left on device');
      const told = { device: 'job0', operation, action: 'report' };
      assert.deepEqual(bench.last('BLOCK_JOB_ERROR'), told, kind);
    }
  }
});

for (const policy of ['stop', 'ignore'] as const)
  test(`what a target's server has lost is copied again, where its errors are to ${policy}, too`, async () => {
    const bench = new JobBench();
    const { top, target, job } = await readyMirror(bench, { onWriteError: policy });
    const model = await contents(top.node);
    target.file.bytes.fill(0);
    const isLost = (): boolean => target.file.bytes.filter((byte) => byte === 1).length < DISK;
    const fault = (operation: string): string | undefined =>
      operation === 'flush' && isLost() ? 'EIO' : undefined;
    target.file.behaviour = { ...AT_ONCE, fault };
    target.node.instance.takeDoubtful = () => {
      const ranges = new ByteRanges();
      if (isLost()) ranges.add(0, DISK);
      return ranges;
    };
    job.complete();
    await bench.until('BLOCK_JOB_ERROR');
    if (policy === 'stop') {
      while (job.status !== 'paused' && job.status !== 'standby') await turns(1);
      job.resume();
    }
    await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(target.node), model, 0);
  });

for (const way of ['pivot', 'soft cancel'] as const)
  test(`what a target's server may have lost is copied again before a ${way}`, async () => {
    const bench = new JobBench();
    const { top, target, job } = await readyMirror(bench);
    const model = await contents(top.node);
    let isTold = false;
    target.node.instance.takeDoubtful = () => {
      const ranges = new ByteRanges();
      if (isTold) return ranges;
      isTold = true;
      target.file.bytes.fill(0);
      ranges.add(0, DISK);
      return ranges;
    };
    if (way === 'pivot') job.complete();
    else await job.cancel({ force: false, softOnReady: true });
    await job.concluded;
    assert.equal(isTold, true);
    assert.equal(job.error, undefined);
    assertSame(await contents(target.node), model, 0);
  });

for (const policy of ['ignore', 'stop'] as const)
  for (const isChanged of [false, true])
    test(`what is lost of a point in time that is fixed is copied again, unless guests have changed it: ${isChanged} (${policy})`, async () => {
      const bench = new JobBench();
      const { top, target, guest, job } = await readyMirror(bench, { onWriteError: policy });
      const model = await contents(top.node);
      loseAtFlush(target, async () => {
        if (isChanged) await guest.write(3 * CLUSTER, Buffer.alloc(CLUSTER, 2));
      });
      await job.cancel({ force: false, softOnReady: true });
      while (!job.isOver) {
        if (job.status === 'standby' && job.pace.isUserPaused) job.resume();
        await turns(1);
      }
      await job.concluded;
      assert.equal(job.error, isChanged ? 'Input/output error' : undefined);
      if (!isChanged) assertSame(await contents(target.node), model, 0);
    });

test('a mirror whose target fails to flush what a guest flushed ends with an error at its pivot, and is not stopped there', async () => {
  const bench = new JobBench();
  const more = { autoFinalize: false, onWriteError: 'stop' } as const;
  const { top, target, guest, job } = await readyMirror(bench, more);
  job.complete();
  while (job.status !== 'pending') await turns(1);
  target.file.behaviour = {
    ...AT_ONCE,
    fault: (operation) => (operation === 'flush' ? 'EIO' : undefined),
  };
  await guest.write(0, Buffer.alloc(CLUSTER, 2));
  await guest.flush();
  job.finalize();
  await job.concluded;
  assert.equal(job.error, 'Input/output error');
  assert.equal(guest.node, top.node);
});
