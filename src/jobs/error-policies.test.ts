import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ByteRanges } from '../base/byte-ranges.js';
import { BlockError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import { Flag } from '../block/request.js';
import { assertSame, contents, JobBench } from '../../test/kit/job-bench.js';
import { AT_ONCE, type MemoryImage, newMemoryImage } from '../../test/kit/memory-layer.js';
import { CLUSTER, DISK, fill, readyMirror, turns } from '../../test/kit/mirror-bench.js';
import type { Job } from './job.js';
import {
  type CommonArguments,
  startBackup,
  startCommit,
  startMirror,
  startStream,
} from '../../test/kit/start-job.js';

/** Of data that is copied in pieces of which several are in flight. */
const SEVERAL_PIECES = 2 * MiB;

const KINDS = ['mirror', 'backup', 'stream', 'commit', 'active commit'] as const;

interface Copying {
  bench: JobBench;
  /** What the job reads, and what it writes. */
  from: MemoryImage;
  to: MemoryImage;
  before: Buffer;
  start: (more?: Partial<CommonArguments>) => Promise<Job>;
  /** Compares what the job made; of a mirror once it is READY. */
  check: () => Promise<void>;
}

/** A job of each kind that has data to copy everywhere. */
async function copying(kind: (typeof KINDS)[number], lengthBytes = DISK): Promise<Copying> {
  const bench = new JobBench();
  const options = { lengthBytes, clusterBytes: CLUSTER };
  const base = await newMemoryImage(bench.graph, 'base', options);
  const middle = await newMemoryImage(bench.graph, 'middle', { ...options, backing: base.node });
  await fill(bench, middle, () => 200);
  const top = await newMemoryImage(bench.graph, 'top', { ...options, backing: middle.node });
  if (kind === 'active commit') await fill(bench, top, () => 100);
  const target = await newMemoryImage(bench.graph, 'target', options);
  const to = { mirror: target, backup: target, stream: top, commit: base, 'active commit': base }[kind];
  const before = await contents(top.node);
  const start = (more: Partial<CommonArguments> = {}): Promise<Job> => {
    const common = { jobId: 'job0', ...more };
    const copy = { ...common, device: top.node, target: target.node, sync: 'full' } as const;
    if (kind === 'mirror') return startMirror(bench, { ...copy, targetIsNew: true });
    if (kind === 'backup') return startBackup(bench, copy);
    if (kind === 'stream') return startStream(bench, { ...common, node: top.node });
    const last = kind === 'commit' ? middle.node : top.node;
    return startCommit(bench, { ...common, device: top.node, top: last, base: base.node });
  };
  const from = kind === 'active commit' ? top : middle;
  return {
    bench,
    from,
    to,
    before,
    start,
    check: async () => assertSame(await contents(to.node), before, 0),
  };
}

/** Fails requests `times` times. */
function failing(
  { file }: MemoryImage,
  operation: 'read' | 'write' | 'flush',
  errno: string,
  times = 1,
): void {
  let left = times;
  file.behaviour = {
    ...AT_ONCE,
    isLate: () => true,
    fault: (wanted) => (wanted === operation && left-- > 0 ? errno : undefined),
  };
}

const ended = (bench: JobBench): boolean =>
  ['BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED'].some((event) => bench.last(event) !== undefined);

const errorsTold = (bench: JobBench): unknown[] =>
  bench.events.filter(({ event }) => event === 'BLOCK_JOB_ERROR').map(({ data }) => data);

for (const kind of KINDS) {
  const wrong = (operation: string): object => ({ device: 'job0', operation });
  const write = kind === 'stream' ? 'read' : 'write';

  test(`${kind}: one error that is to be reported is told once and ends the job`, async () => {
    for (const [side, operation] of [
      ['to', 'write'],
      ['from', 'read'],
    ] as const) {
      const { bench, start, ...images } = await copying(kind);
      failing(images[side], operation, 'EIO');
      const job = await start();
      await job.concluded;
      assert.equal(job.error, 'Input/output error');
      assert.deepEqual(errorsTold(bench), [
        { ...wrong(kind === 'stream' ? 'read' : operation), action: 'report' },
      ]);
    }
  });

  const isAtOnce = kind === 'mirror' || kind === 'active commit';
  test(`${kind}: of all that fails in flight ${isAtOnce ? 'each is' : 'one is'} told, at each stop`, async () => {
    for (const policy of ['report', 'stop'] as const) {
      const { bench, start, to } = await copying(kind, SEVERAL_PIECES);
      failing(to, 'write', 'EIO', Infinity);
      const job = await start({ onReadError: policy, onWriteError: policy });
      const told = (): number => errorsTold(bench).length;
      const isOver = (): boolean => (policy === 'stop' ? job.status === 'paused' : job.isOver);
      while (!isOver()) await turns(1);
      if (isAtOnce) assert.ok(told() > 1);
      else assert.deepEqual(errorsTold(bench), [{ ...wrong(write), action: policy }]);
      if (policy === 'report') continue;
      const before = told();
      job.resume();
      while (told() === before || !isOver()) await turns(1);
      if (!isAtOnce) assert.equal(told(), 2);
      await bench.jobs.cancelAll();
    }
  });

  test(`${kind}: an error that stops the job leaves it paused; resumed, it does what failed again`, async () => {
    const { bench, start, to, check } = await copying(kind);
    failing(to, 'write', 'ENOSPC');
    const job = await start({ onReadError: 'stop', onWriteError: 'stop' });
    while (job.status !== 'paused') await turns(1);
    assert.deepEqual(errorsTold(bench), [{ ...wrong(write), action: 'stop' }]);
    const { 'io-status': ioStatus, paused } = job.blockJobInfo();
    assert.deepEqual([ioStatus, paused], ['nospace', true]);
    await turns(20);
    assert.equal(ended(bench), false);
    job.resume();
    assert.equal(job.blockJobInfo()['io-status'], 'ok');
    while (!ended(bench)) await turns(1);
    assert.equal(job.error, undefined);
    await check();
    await bench.jobs.cancelAll();
  });

  test(`${kind}: a flush that fails is told and follows the policy, before what was copied counts`, async () => {
    const reported = await copying(kind);
    failing(reported.to, 'flush', 'EIO');
    const failed = await reported.start();
    await failed.concluded;
    assert.equal(failed.error, 'Input/output error');
    assert.deepEqual(errorsTold(reported.bench), [{ ...wrong(write), action: 'report' }]);

    const { bench, start, to, check } = await copying(kind);
    failing(to, 'flush', 'EIO', 2);
    const job = await start({ onReadError: 'stop', onWriteError: 'stop' });
    for (let stops = 1; stops <= 2; stops++) {
      while (errorsTold(bench).length < stops || job.status !== 'paused') await turns(1);
      await turns(20);
      assert.equal(ended(bench), false);
      job.resume();
    }
    while (!ended(bench)) await turns(1);
    assert.deepEqual(errorsTold(bench), new Array(2).fill({ ...wrong(write), action: 'stop' }));
    assert.equal(job.error, undefined);
    await check();
    await bench.jobs.cancelAll();

    // QEMU's mirror flushes until that succeeds, its stream ends with the error.
    const ignored = await copying(kind);
    failing(ignored.to, 'flush', 'EIO', 2);
    const last = await ignored.start({ onReadError: 'ignore', onWriteError: 'ignore' });
    while (!ended(ignored.bench)) await turns(1);
    const times = kind === 'stream' ? 1 : 2;
    assert.deepEqual(errorsTold(ignored.bench), new Array(times).fill({ ...wrong(write), action: 'ignore' }));
    assert.equal(last.error, kind === 'stream' ? 'Input/output error' : undefined);
    await ignored.bench.jobs.cancelAll();
  });

  test(`${kind}: an error of which only running out of space stops the job`, async () => {
    for (const policy of ['enospc', 'auto'] as const) {
      for (const errno of ['ENOSPC', 'EIO']) {
        const { bench, start, to } = await copying(kind);
        failing(to, 'write', errno);
        const job = await start({ onReadError: policy, onWriteError: policy });
        while (job.status !== 'paused' && job.status !== 'null') await turns(1);
        const action = errno === 'ENOSPC' ? 'stop' : 'report';
        assert.deepEqual(errorsTold(bench), [{ ...wrong(write), action }]);
        await bench.jobs.cancelAll();
      }
    }
  });

  test(`${kind}: an error that is ignored is told, and the job goes on`, { timeout: 60_000 }, async () => {
    const { bench, start, to, check } = await copying(kind);
    // A stream does nothing twice.
    const times = kind === 'stream' ? 1 : 2;
    failing(to, 'write', 'EIO', times);
    const job = await start({ onReadError: 'ignore', onWriteError: 'ignore' });
    while (!ended(bench)) await turns(1);
    const told = { ...wrong(write), action: 'ignore' };
    assert.deepEqual(errorsTold(bench), new Array(times).fill(told));
    // What a stream leaves out is still in the backing file, which it therefore keeps.
    if (kind === 'stream') assert.equal(job.error, 'Input/output error');
    else await check();
    assert.equal(to.node.backingNode()?.name, kind === 'stream' ? 'middle' : undefined);
    await bench.jobs.cancelAll();
  });

  test(`${kind}: one whose place cannot be taken out of the graph yet leaves nothing else behind`, async () => {
    const { bench, start, to, from } = await copying(kind);
    failing(to, 'write', 'EIO');
    const job = await start({ filterNodeName: 'filter' });
    const transaction = bench.graph.transaction.bind(bench.graph);
    let isRefused = false;
    bench.graph.transaction = async (build) => {
      if (isRefused) return transaction(build);
      isRefused = true;
      throw new BlockError('no-space', 'No space left on device', { errno: 'ENOSPC' });
    };
    await job.concluded;
    assert.equal(job.error, 'Input/output error');
    assert.equal(isRefused, true);
    for (const { node } of [to, from]) assert.equal(node.isBlocked, false);
    while (bench.graph.find('filter')) await turns(1);
  });

  test(`${kind}: a block status that fails is no error, and what it is about counts as data`, async () => {
    for (const side of ['from', 'to'] as const) {
      const { bench, start, check, ...images } = await copying(kind);
      const { io } = images[side].node;
      const fails = (): never => {
        throw new BlockError('io', 'Input/output error', { errno: 'EIO' });
      };
      io.tryStatus = fails;
      io.status = async () => fails();
      const job = await start();
      while (!ended(bench)) await turns(1);
      assert.equal(job.error, undefined);
      assert.deepEqual(errorsTold(bench), []);
      await check();
      await bench.jobs.cancelAll();
    }
  });
}

for (const policy of ['ignore', 'stop'] as const)
  test(`commit: what the base's server has lost is copied again, where its errors are to ${policy}, too`, async () => {
    const { start, to, check } = await copying('commit');
    let isGone = false;
    const isLost = (): boolean => isGone && to.file.bytes.every((byte) => byte === 0);
    const fault = (operation: string): string | undefined => {
      if (operation !== 'flush') return undefined;
      if (!isGone) to.file.bytes.fill(0);
      isGone = true;
      return isLost() ? 'EIO' : undefined;
    };
    to.file.behaviour = { ...AT_ONCE, fault };
    to.node.instance.takeDoubtful = () => {
      const ranges = new ByteRanges();
      if (isLost()) ranges.add(0, DISK);
      return ranges;
    };
    const job = await start({ onWriteError: policy });
    if (policy === 'stop') {
      while (job.status !== 'paused') await turns(1);
      job.resume();
    }
    await job.concluded;
    assert.equal(job.error, undefined);
    await check();
  });

test('a mirror that writes to both sides goes on when an error of the target is not to end it', async () => {
  for (const policy of ['ignore', 'stop'] as const) {
    const bench = new JobBench();
    const { top, target, guest, job, fault } = await readyMirror(bench, {
      copyMode: 'write-blocking',
      onWriteError: policy,
    });
    fault.errno = 'EIO';
    await guest.write(CLUSTER, Buffer.alloc(CLUSTER, 7));
    delete fault.errno;
    if (policy === 'stop') {
      while (job.status !== 'standby') await turns(1);
      job.resume();
    }
    job.complete();
    await job.concluded;
    assert.equal(job.error, undefined);
    assert.equal(guest.node, target.node);
    assertSame(await contents(target.node), await contents(top.node), 0);
  }
});

test('a target that cannot be closed well is durable: its backup has done well, and nothing of it stays', async () => {
  const { bench, start, to, from } = await copying('backup');
  to.node.monitorOwned = false;
  to.layer.close = () => Promise.reject(new BlockError('io', 'Input/output error', { errno: 'EIO' }));
  const job = await start({ filterNodeName: 'filter' });
  await job.concluded;
  assert.equal(job.error, undefined);
  assert.equal(from.node.isBlocked, false);
  for (const name of ['target', 'target-file', 'filter']) assert.equal(bench.graph.find(name), undefined);
});

test('zeroes that are to be fast for the guest need not be fast for the target of a mirror', async () => {
  const bench = new JobBench();
  const { target, guest, job } = await readyMirror(bench, { copyMode: 'write-blocking' });
  target.layer.map.zeroClusters = () =>
    Promise.reject(new BlockError('unsupported', 'Operation not supported', { errno: 'ENOTSUP' }));
  await guest.writeZeroes(0, 3 * CLUSTER, Flag.noFallback);
  await guest.writeZeroes(5 * CLUSTER, 2 * CLUSTER, Flag.noFallback);
  assert.equal(job.status, 'ready');
  job.complete();
  await job.concluded;
  assert.equal(job.error, undefined);
  const after = await contents(target.node);
  assert.ok(after.subarray(0, 3 * CLUSTER).every((byte) => byte === 0));
});
