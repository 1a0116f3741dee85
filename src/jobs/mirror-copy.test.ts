import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../base/async.js';
import { BlockError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import { Flag } from '../block/request.js';
import { assertSame, contents, JobBench, restless, seeded } from '../../test/kit/job-bench.js';
import { AT_ONCE, type MemoryBehaviour, newMemoryImage } from '../../test/kit/memory-layer.js';
import { CLUSTER, DISK, fill, readyMirror, turns, zeroings } from '../../test/kit/mirror-bench.js';
import { startBackup, startCommit, startMirror, startStream } from '../../test/kit/start-job.js';

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
    const job = await startMirror(bench, {
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
  const job = await startMirror(bench, {
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
  const job = await startMirror(bench, {
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
    [2 ** 50, 16],
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
    const job = await startMirror(bench, {
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
    const options = { lengthBytes: 8 * DISK, clusterBytes: CLUSTER };
    const base = await newMemoryImage(bench.graph, 'base', options);
    await fill(bench, base, () => 1);
    const middle = await newMemoryImage(bench.graph, 'middle', { ...options, backing: base.node });
    await fill(bench, middle, () => 2);
    const top = await newMemoryImage(bench.graph, 'top', { ...options, backing: middle.node });
    const target = await newMemoryImage(bench.graph, 'target', options);
    // Written in place, without a wait.
    await fill(bench, target, () => 1);
    await bench.guest(top.node);
    const common = { jobId: 'job0', speed: 1 };
    const copy = { ...common, device: top.node, target: target.node, sync: 'full' } as const;
    const job =
      kind === 'mirror'
        ? await startMirror(bench, { ...copy, targetIsNew: false })
        : kind === 'backup'
          ? await startBackup(bench, copy)
          : kind === 'stream'
            ? await startStream(bench, { ...common, node: top.node })
            : await startCommit(bench, { ...common, device: top.node, top: middle.node, base: base.node });
    const done = (): number => Number(job.jobInfo()['current-progress']);
    while (done() === 0) await turns(1);
    await turns(50);
    // Streams and commits begin with a piece of 512 KiB, as QEMU's do.
    const most = kind === 'mirror' || kind === 'backup' ? 64 * 1024 : 512 * 1024;
    assert.ok(done() <= most, `${kind}: ${done()}`);
    assert.equal(job.blockJobInfo()['speed'], 1);
    await job.cancel({ force: true, softOnReady: false });
    await job.concluded;
  }
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
  const job = await startMirror(bench, {
    ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: false },
    // Pieces of one granule, and zeroes that cost nothing.
    ...{ granularity: 4 * CLUSTER, speed: 40 * CLUSTER },
  });
  await bench.until('BLOCK_JOB_READY');
  await job.cancel({ force: true, softOnReady: false });
  await job.concluded;
  assertSame(await contents(target.node), await contents(top.node), 0);
});

test('zeroes longer than a piece that end within a granule leave the rest of it to be copied', async () => {
  const bench = new JobBench();
  const options = { lengthBytes: 3 * MiB, clusterBytes: CLUSTER };
  const top = await newMemoryImage(bench.graph, 'top', options);
  const target = await newMemoryImage(bench.graph, 'target', options);
  await fill(bench, target, () => 2);
  const guest = await bench.guest(top.node);
  await guest.write(2 * MiB + CLUSTER, Buffer.alloc(CLUSTER, 1));
  const job = await startMirror(bench, {
    ...{ jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: false },
    ...{ granularity: 4 * CLUSTER, unmap: false },
  });
  await bench.until('BLOCK_JOB_READY');
  await job.cancel({ force: true, softOnReady: false });
  await job.concluded;
  assertSame(await contents(target.node), await contents(top.node), 0);
});

test('zeroes of a mirror deallocate unless it was told not to', async () => {
  for (const unmap of [undefined, true, false]) {
    const bench = new JobBench();
    const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
    const top = await newMemoryImage(bench.graph, 'top', options);
    const target = await newMemoryImage(bench.graph, 'target', options);
    await fill(bench, target, () => 2);
    const seen = zeroings(target);
    const job = await startMirror(bench, {
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
    for (const flags of [Flag.fua, Flag.fua | Flag.mayUnmap]) {
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

test('what a guest fails to write is copied at once where changes go to both sides: the end does not wait for it', async () => {
  for (const change of ['write', 'zeroes'] as const) {
    const bench = new JobBench();
    const { top, target, guest, job } = await readyMirror(bench, { copyMode: 'write-blocking' });
    // Nothing is copied but by the guest's requests.
    job.pause();
    await turns(5);
    const fault = (operation: 'read' | 'write'): string | undefined =>
      operation === 'write' ? 'EIO' : undefined;
    const { behaviour } = top.file;
    top.file.behaviour = { ...behaviour, fault };
    const { map } = top.layer;
    const zeroClusters = map.zeroClusters.bind(map);
    // Of zeroes, the first cluster is changed before it fails.
    map.zeroClusters = async (offset) => {
      await zeroClusters(offset, CLUSTER, Flag.mayUnmap);
      throw new BlockError('io', 'Input/output error', { errno: 'EIO' });
    };
    const attempt =
      change === 'write'
        ? guest.write(2 * CLUSTER + 512, Buffer.alloc(2 * CLUSTER, 7))
        : guest.writeZeroes(2 * CLUSTER, 2 * CLUSTER);
    await assert.rejects(attempt, /Input\/output error/);
    const { 'total-progress': total, 'current-progress': current } = job.jobInfo();
    assert.equal(total, current, change);
    top.file.behaviour = behaviour;
    assertSame(await contents(target.node), await contents(top.node), 0);
    job.resume();
    await job.cancel({ force: true, softOnReady: false });
    await job.concluded;
  }
});
