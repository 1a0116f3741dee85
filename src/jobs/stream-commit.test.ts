import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ByteRanges } from '../base/byte-ranges.js';
import type { BlockBackend } from '../block/backend.js';
import type { Node } from '../block/node.js';
import { assertSame, contents, JobBench, restless, seeded } from '../../test/kit/job-bench.js';
import { loseAtFlush } from '../../test/kit/losing-image.js';
import { AT_ONCE, type MemoryImage, newMemoryImage } from '../../test/kit/memory-layer.js';
import { startCommit, startStream } from '../../test/kit/start-job.js';

const CLUSTER = 512;
const DISK = 40 * CLUSTER + 100;

/** A chain of `names`, base first, each with random data, zeroes and holes; some layers shorter. */
async function randomChain(
  bench: JobBench,
  names: string[],
  below: (n: number) => number,
): Promise<MemoryImage[]> {
  const chain: MemoryImage[] = [];
  for (const [i, name] of names.entries()) {
    const isTop = i === names.length - 1;
    const lengthBytes = isTop || below(2) === 0 ? DISK : DISK - below(20) * CLUSTER - below(100);
    const backing = chain.at(-1)?.node;
    const image = await newMemoryImage(bench.graph, name, {
      lengthBytes,
      clusterBytes: CLUSTER,
      behaviour: below(2) === 0 ? AT_ONCE : restless(below),
      ...(backing && { backing }),
    });
    const writer = await bench.guest(image.node);
    for (let n = 0; n < 12; n++) {
      const offset = below(lengthBytes - 1);
      const length = 1 + below(Math.min(3 * CLUSTER, lengthBytes - offset));
      if (below(4) === 0) await writer.writeZeroes(offset, length, 0);
      else await writer.write(offset, Buffer.alloc(length, (i + 1) * 16 + below(16)));
    }
    const root = writer.root;
    assert.ok(root);
    await bench.graph.transaction((transaction) => {
      transaction.detach(root);
      if (!isTop) transaction.setReadOnly(image.node, true);
    });
    chain.push(image);
  }
  return chain;
}

/** Writes at random until told to end, keeping a model of the disk. */
function writeOn(guest: BlockBackend, model: Buffer, below: (n: number) => number): () => Promise<void> {
  let stop = false;
  const loop = async (): Promise<void> => {
    while (!stop) {
      const offset = below(model.length - 1);
      const length = 1 + below(Math.min(2 * CLUSTER, model.length - offset));
      const byte = 1 + below(255);
      await guest.write(offset, Buffer.alloc(length, byte));
      model.fill(byte, offset, offset + length);
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const done = loop();
  return async () => {
    stop = true;
    await done;
  };
}

const chainOf = (node: Node): string[] => [...node.chain()].map(({ name }) => name);

test('stream of a whole chain under a writer keeps the content and ends without a backing file', async () => {
  for (let seed = 0; seed < 40; seed++) {
    const below = seeded(seed);
    const bench = new JobBench();
    const chain = await randomChain(bench, ['a', 'b', 'c', 'd'], below);
    const top = chain[3];
    assert.ok(top);
    const guest = await bench.guest(top.node);
    const model = await contents(top.node);
    const stop = writeOn(guest, model, below);
    const job = await startStream(bench, { jobId: 'job0', node: top.node });
    await job.concluded;
    await stop();
    assertSame(await contents(top.node), model, seed);
    assert.deepEqual(chainOf(top.node), ['d']);
    assert.deepEqual(top.layer.header, { filename: undefined, format: undefined });
    assert.deepEqual(bench.story('job0').filter((s) => s !== 'paused'), [
      'created', 'running', 'waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null',
    ]); // prettier-ignore
    assert.deepEqual(bench.last('BLOCK_JOB_COMPLETED'), {
      device: 'job0', len: DISK, offset: DISK, speed: 0, type: 'stream',
    }); // prettier-ignore
    assert.equal(guest.node, top.node);
    assert.equal(bench.graph.nodes.size, 8);
  }
});

test('stream with a base pulls up only what lies above it, also into a node below the top', async () => {
  for (let seed = 0; seed < 40; seed++) {
    const below = seeded(seed);
    const bench = new JobBench();
    const chain = await randomChain(bench, ['a', 'b', 'c', 'd'], below);
    const [a, , c, d] = chain as [MemoryImage, MemoryImage, MemoryImage, MemoryImage];
    const guest = await bench.guest(d.node);
    const model = await contents(d.node);
    const node = below(2) === 0 ? d : c;
    const stop = writeOn(guest, model, below);
    const bottom = chain[1]?.node;
    const job = await startStream(bench, {
      jobId: 'job0',
      node: node.node,
      ...(below(2) === 0 || !bottom ? { base: a.node } : { bottom }),
    });
    await job.concluded;
    await stop();
    assert.equal(job.error, undefined);
    assertSame(await contents(d.node), model, seed);
    assert.deepEqual(chainOf(node.node), [node.node.name, 'a']);
    assert.deepEqual(node.layer.header, { filename: './a.img', format: 'layer' });
    assert.equal(c.node.readOnly, true);
  }
});

test('commit of middle layers keeps the content and leaves every overlay on the base', async () => {
  for (let seed = 0; seed < 40; seed++) {
    const below = seeded(seed);
    const bench = new JobBench();
    const chain = await randomChain(bench, ['a', 'b', 'c', 'd'], below);
    const [a, b, c, d] = chain as [MemoryImage, MemoryImage, MemoryImage, MemoryImage];
    const e = await newMemoryImage(bench.graph, 'e', {
      lengthBytes: DISK, clusterBytes: CLUSTER, backing: c.node, readOnly: true,
    }); // prettier-ignore
    const guest = await bench.guest(d.node);
    const model = await contents(d.node);
    const second = await contents(e.node);
    const base = below(2) === 0 ? a : b;
    const stop = writeOn(guest, model, below);
    const job = await startCommit(bench, {
      jobId: 'job0',
      device: e.node,
      top: c.node,
      base: base.node,
    });
    await job.concluded;
    await stop();
    assert.equal(job.error, undefined, `seed ${seed}`);
    assertSame(await contents(d.node), model, seed);
    assertSame(await contents(e.node), second, seed);
    for (const overlay of [d, e]) {
      assert.equal(overlay.node.backingNode(), base.node);
      assert.deepEqual(overlay.layer.header, { filename: `./${base.node.name}.img`, format: 'layer' });
    }
    assert.equal(base.node.readOnly, true);
    assert.equal(e.node.readOnly, true);
    assert.deepEqual(bench.last('BLOCK_JOB_COMPLETED')?.['type'], 'commit');
  }
});

test('a cancelled stream keeps what it copied and the chain, and can be started again', async () => {
  const bench = new JobBench();
  const below = seeded(1);
  const chain = await randomChain(bench, ['a', 'b'], below);
  const top = chain[1];
  assert.ok(top);
  const before = await contents(top.node);
  const job = await startStream(bench, { jobId: 'job0', node: top.node, speed: 1 });
  await job.cancel({ force: false, softOnReady: true });
  await job.concluded;
  assert.deepEqual(bench.story('job0'), [
    'created', 'running', 'aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null',
  ]); // prettier-ignore
  assert.deepEqual(chainOf(top.node), ['b', 'a']);
  const again = await startStream(bench, { jobId: 'job0', node: top.node });
  await again.concluded;
  assert.deepEqual(await contents(top.node), before);
  assert.deepEqual(chainOf(top.node), ['b']);
});

test("what a commit's base has lost at a flush is copied again, though it is told once", async () => {
  const bench = new JobBench();
  const options = { lengthBytes: 8 * CLUSTER, clusterBytes: CLUSTER };
  const base = await newMemoryImage(bench.graph, 'base', options);
  const middle = await newMemoryImage(bench.graph, 'middle', { ...options, backing: base.node });
  const writer = await bench.guest(middle.node);
  await writer.write(2 * CLUSTER, Buffer.alloc(5 * CLUSTER, 7));
  const { root } = writer;
  assert.ok(root);
  await bench.graph.transaction((transaction) => transaction.detach(root));
  const top = await newMemoryImage(bench.graph, 'top', { ...options, backing: middle.node });
  const model = await contents(top.node);
  loseAtFlush(base);
  const { instance } = base.node;
  const lost = instance.takeDoubtful?.bind(instance);
  let tellings = 0;
  instance.takeDoubtful = () => {
    const ranges = tellings === 0 ? lost?.() : undefined;
    if (ranges?.isEmpty === false) tellings++;
    return ranges ?? new ByteRanges();
  };
  const job = await startCommit(bench, {
    ...{ jobId: 'job0', device: top.node, top: middle.node, base: base.node, onWriteError: 'ignore' },
  });
  await job.result();
  assert.equal(tellings, 1);
  assertSame(await contents(base.node), model, 0);
});
