import assert from 'node:assert/strict';
import { test } from 'node:test';
import { JobBench } from '../testing/job-bench.js';
import { newMemoryImage } from '../testing/memory-layer.js';

const CLUSTER = 4096;
const DISK = 64 * CLUSTER;

test('a mirror that takes over flushes most of the target before it holds guests back, the rest then', async () => {
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
  const job = await bench.jobs.startMirror({
    jobId: 'job0',
    device: top.node,
    target: target.node,
    sync: 'full',
    targetIsNew: true,
  });
  await bench.until('BLOCK_JOB_READY');
  job.complete();
  await job.concluded;
  assert.deepEqual(held, [false, true]);
});
