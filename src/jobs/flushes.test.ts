import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assertSame, contents, JobBench } from '../../test/kit/job-bench.js';
import { newMemoryImage } from '../../test/kit/memory-layer.js';
import { readyMirror, turns } from '../../test/kit/mirror-bench.js';
import { startMirror, startStream } from '../../test/kit/start-job.js';

const CLUSTER = 4096;
const DISK = 64 * CLUSTER;

test('a mirror that takes over flushes the target before it holds guests back, and with the guest from then on', async () => {
  const bench = new JobBench();
  const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
  const top = await newMemoryImage(bench.graph, 'top', options);
  const target = await newMemoryImage(bench.graph, 'target', options);
  const guest = await bench.guest(top.node);
  await guest.write(0, Buffer.alloc(DISK, 1));
  const held: boolean[] = [];
  const flush = target.file.flush.bind(target.file);
  target.file.flush = (): Promise<void> => {
    held.push(guest.isQuiesced);
    return flush();
  };
  const job = await startMirror(bench, {
    jobId: 'job0',
    device: top.node,
    target: target.node,
    sync: 'full',
    targetIsNew: true,
    autoFinalize: false,
  });
  await bench.until('BLOCK_JOB_READY');
  // What was copied is durable when the job says that it is READY.
  assert.deepEqual(held.splice(0), [false]);
  await guest.flush();
  assert.deepEqual(held, []);
  job.complete();
  while (job.status !== 'pending') await turns(1);
  assert.deepEqual(held, [false]);
  await guest.write(0, Buffer.alloc(CLUSTER, 2));
  await guest.flush();
  assert.deepEqual(held, [false, false]);
  job.finalize();
  await job.concluded;
  assert.deepEqual(held, [false, false]);
  assert.equal((await contents(target.node))[0], 2);
});

test('what a target did not take while the job waited to take over is copied and flushed before guests move', async () => {
  const bench = new JobBench();
  const more = { autoFinalize: false, onWriteError: 'ignore' } as const;
  const { top, target, guest, job, fault } = await readyMirror(bench, more);
  job.complete();
  while (job.status !== 'pending') await turns(1);
  fault.errno = 'EIO';
  await guest.write(0, Buffer.alloc(CLUSTER, 2));
  delete fault.errno;
  const before = target.file.flushes;
  job.finalize();
  await job.concluded;
  assert.equal(job.error, undefined);
  assert.equal(guest.node, target.node);
  assert.equal(target.file.flushes, before + 1);
  assertSame(await contents(target.node), await contents(top.node), 0);
});

test('a stream that has nothing to pull up flushes nothing', async () => {
  const bench = new JobBench();
  const top = await newMemoryImage(bench.graph, 'top', { lengthBytes: DISK, clusterBytes: CLUSTER });
  const job = await startStream(bench, { jobId: 'job0', node: top.node });
  await job.concluded;
  assert.equal(job.error, undefined);
  assert.equal(top.file.flushes, 0);
});
