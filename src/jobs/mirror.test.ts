import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockBackend } from '../block/backend.js';
import type { Node } from '../block/node.js';
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

/** To look through the image takes time, in which guests write. */
function slowDownStatus({ file }: MemoryImage): void {
  const status = file.status.bind(file);
  file.status = async (offset, lengthBytes): ReturnType<typeof status> => {
    await new Promise((resolve) => setImmediate(resolve));
    return status(offset, lengthBytes);
  };
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
        slowDownStatus(base);
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
  await bench.until('JOB_STATUS_CHANGE', 'pending');
  first.finalize();
  await first.concluded;
  assert.equal(first.error, undefined);
});
