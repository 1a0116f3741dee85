import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockBackend } from '../block/backend.js';
import { assertSame, contents, JobBench, restless, seeded } from '../../test/kit/job-bench.js';
import { cutMemory } from '../../test/kit/memory-pieces.js';
import { newMemoryImage } from '../../test/kit/memory-layer.js';
import { CLUSTER, DISK } from '../../test/kit/mirror-bench.js';
import { startMirror } from '../../test/kit/start-job.js';
import { whileChanging } from '../../test/kit/unstable-memory.js';

/** A guest's write of memory in pieces, each byte of which changes at every moment. */
async function writeChanging(guest: BlockBackend, offset: number, lengthBytes: number): Promise<void> {
  const memory = cutMemory(lengthBytes, [700, 0, 3000], 9);
  const request = guest.requests.take().ask('write', offset, lengthBytes);
  request.setBuffers(memory.buffers, 9);
  request.isStable = false;
  const fill = (byte: number): void => {
    for (const piece of memory.pieces(0, lengthBytes)) piece.fill(byte);
  };
  fill(1);
  await whileChanging(guest.run(request), [2, 3, 4, 5, 6, 7], fill);
  guest.requests.give(request);
}

for (const copyMode of ['background', 'write-blocking'] as const) {
  test(`a ${copyMode} mirror's two sides are alike, however memory changes while it is written`, async () => {
    for (let seed = 0; seed < 20; seed++) {
      const below = seeded(seed);
      const bench = new JobBench();
      const options = { lengthBytes: DISK, clusterBytes: CLUSTER, behaviour: restless(below) };
      const top = await newMemoryImage(bench.graph, 'top', options);
      const target = await newMemoryImage(bench.graph, 'target', options);
      const guest = await bench.guest(top.node);
      const job = await startMirror(bench, {
        jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: true, copyMode,
      }); // prettier-ignore
      await bench.until('BLOCK_JOB_READY');
      const write = (): Promise<void> => {
        const offset = below(DISK - 3 * CLUSTER);
        return writeChanging(guest, offset, 1 + below(3 * CLUSTER));
      };
      for (let n = 0; n < 6; n++) await Promise.all([write(), write()]);
      // What is not dirty is there already.
      job.cancel({ force: false, softOnReady: true });
      await bench.until('BLOCK_JOB_COMPLETED');
      assertSame(await contents(target.node), await contents(top.node), seed);
      assert.ok((await contents(top.node)).some((byte) => byte > 0));
    }
  });
}
