import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../base/async.js';
import { MiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import type { Node } from '../block/node.js';
import { assertSame, contents, JobBench } from '../../test/kit/job-bench.js';
import { AT_ONCE, type MemoryFile, newMemoryImage } from '../../test/kit/memory-layer.js';
import { turns } from '../../test/kit/mirror-bench.js';
import type { Job } from './job.js';
import { startBackup, startMirror } from '../../test/kit/start-job.js';

const CLUSTER = 65536;
const DISK = 32 * MiB;
/** Longest request of somebody's copy that a guest may have to wait for. */
const MOST_BYTES = 2 * MiB;

/** A target that can neither zero nor say what is zero, and takes its writes one by one. */
class SlowTarget {
  readonly file: MemoryFile;
  readonly #waiting: Array<() => void> = [];
  /** Only requests below this offset are counted. */
  countedBelow = Infinity;
  #bytes = 0;
  #isSlow = false;

  constructor(file: MemoryFile) {
    this.file = file;
    const write = file.write.bind(file);
    file.tryWrite = () => false;
    file.write = async (request, from, lengthBytes, offset) => {
      if (this.#isSlow) await new Promise<void>((resolve) => this.#waiting.push(resolve));
      await write(request, from, lengthBytes, offset);
      if (offset < this.countedBelow) this.#bytes += lengthBytes;
    };
  }

  get isBusy(): boolean {
    return this.#waiting.length > 0;
  }

  beginSlowly(): void {
    this.#isSlow = true;
  }

  /** What is asked from now on is quick; what waits goes on waiting. */
  endSlowly(): void {
    this.#isSlow = false;
  }

  goOn(): void {
    this.endSlowly();
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** How many bytes it must take, the oldest request first, before the guest's request is done. */
  async bytesUntil(request: Promise<void>): Promise<number> {
    let isDone = false;
    void request.then(() => (isDone = true));
    const before = this.#bytes;
    for (;;) {
      await turns(20);
      if (isDone) return this.#bytes - before;
      this.#waiting.shift()?.();
    }
  }
}

interface Bench {
  bench: JobBench;
  source: Node;
  sourceFile: MemoryFile;
  guest: BlockBackend;
  target: SlowTarget;
  targetNode: Node;
}

async function slowBench(): Promise<Bench> {
  const bench = new JobBench();
  const options = { lengthBytes: DISK, clusterBytes: CLUSTER };
  const { node: source, file: sourceFile } = await newMemoryImage(bench.graph, 'top', options);
  const { file, node } = await newMemoryImage(bench.graph, 'target', options);
  await bench.graph.transaction((transaction) => transaction.detach(node.child('file')));
  await file.truncate(DISK);
  file.bytes.fill(9);
  const target = new SlowTarget(file);
  return {
    bench,
    source,
    sourceFile,
    guest: await bench.guest(source),
    target,
    targetNode: bench.graph.node('target-file'),
  };
}

/** A mirror of one request at a time. */
function slowMirror({ bench, source, targetNode }: Bench, more: object = {}): Promise<Job> {
  return startMirror(bench, {
    ...{ jobId: 'job0', device: source, target: targetNode, sync: 'full', targetIsNew: false, bufSize: 1 },
    ...more,
  });
}

test('a write of the guest does not wait for the zeroes of a backup', async () => {
  const { bench, source, guest, target, targetNode } = await slowBench();
  const before = await contents(source);
  target.beginSlowly();
  const job = await startBackup(bench, {
    ...{ jobId: 'job0', device: source, target: targetNode, sync: 'full' },
  });
  while (!target.isBusy) await turns(1);
  const write = guest.write(20 * MiB, Buffer.alloc(4096, 1));
  assert.equal(await target.bytesUntil(write), 0);
  target.goOn();
  await job.concluded;
  assert.equal(job.error, undefined);
  assertSame(await contents(targetNode), before, 0);
});

test('zeroes that a backup has failed to write are still to be copied by the next one', async () => {
  const { bench, source, guest, target, targetNode } = await slowBench();
  const job = await startBackup(bench, {
    ...{ jobId: 'job0', device: source, target: targetNode, sync: 'full', onWriteError: 'stop' },
  });
  let left = 1;
  const fault = (): string | undefined => (left-- > 0 ? 'EIO' : undefined);
  target.file.behaviour = { ...AT_ONCE, fault: (what) => (what === 'write' ? fault() : undefined) };
  const before = await contents(source);
  while (job.status !== 'paused') await turns(1);
  // The guest may change what is known to have been zero.
  await guest.write(0, Buffer.alloc(MiB, 5));
  assert.ok(Number(job.blockJobInfo()['offset']) < DISK);
  job.resume();
  await job.concluded;
  assert.equal(job.error, undefined);
  assertSame(await contents(targetNode), before, 0);
});

for (const granularity of [65536, 16 * MiB]) {
  test(`a write to both sides waits for one request of the mirror, granules of ${granularity} bytes`, async () => {
    const parts = await slowBench();
    const { bench, source, guest, target, targetNode } = parts;
    await guest.write(24 * MiB, Buffer.alloc(2 * MiB, 3));
    target.beginSlowly();
    const job = await slowMirror(parts, { copyMode: 'write-blocking', granularity });
    while (!target.isBusy) await turns(1);
    // Where the mirror is at work on a long stretch: its request, and the guest's own.
    target.countedBelow = Math.max(MOST_BYTES, granularity);
    const write = guest.write(4096, Buffer.alloc(4096, 1));
    const waited = await target.bytesUntil(write);
    assert.ok(waited <= MOST_BYTES + 4096, `${waited} bytes`);
    target.goOn();
    await bench.until('BLOCK_JOB_READY');
    assertSame(await contents(targetNode), await contents(source), 0);
    await job.cancelNow();
  });
}

test('when a mirror ends at a point in time, a write of the guest waits for one request', async () => {
  const parts = await slowBench();
  const { bench, source, guest, target, targetNode } = parts;
  const job = await slowMirror(parts, { granularity: 16 * MiB });
  await bench.until('BLOCK_JOB_READY');
  job.pause();
  while (job.status !== 'standby') await turns(1);
  await guest.write(0, Buffer.alloc(4096, 1));
  await guest.write(16 * MiB, Buffer.alloc(4096, 1));
  const before = await contents(source);
  job.resume();
  target.beginSlowly();
  await job.cancel({ force: false, softOnReady: true });
  while (!target.isBusy) await turns(1);
  const waited = await target.bytesUntil(guest.write(20 * MiB, Buffer.alloc(4096, 2)));
  // The job's own request, whatever it is at, may be before it in the queue.
  assert.ok(waited <= 2 * MOST_BYTES, `${waited} bytes`);
  target.goOn();
  await job.concluded;
  assertSame(await contents(targetNode), before, 0);
});

test('nothing is copied while guests are held back for a mirror that takes over', async () => {
  const parts = await slowBench();
  const { bench, source, guest, target, targetNode } = parts;
  const heldBytes: number[] = [];
  const { file } = target;
  const write = file.write.bind(file);
  file.write = async (request, from, lengthBytes, offset) => {
    if (guest.isQuiesced) heldBytes.push(lengthBytes);
    await write(request, from, lengthBytes, offset);
  };
  let isOver = false;
  const writer = (async () => {
    for (let n = 0; !isOver; n = (n + 7) % 512) {
      await guest.write(n * CLUSTER, Buffer.alloc(4096, n % 251));
      await new Promise((resolve) => setImmediate(resolve));
    }
  })();
  const job = await slowMirror(parts);
  await bench.until('BLOCK_JOB_READY');
  job.complete();
  await job.concluded;
  isOver = true;
  await writer;
  assert.deepEqual(heldBytes, []);
  assert.equal(guest.node, targetNode);
  assert.equal(source.parents.size, 0);
});

test('a section of the source does not wait for what a job has under way to its target, one of the target does', async () => {
  for (const kind of ['mirror', 'backup'] as const) {
    const parts = await slowBench();
    const { bench, source, guest, target, targetNode } = parts;
    await guest.write(0, Buffer.alloc(8 * MiB, 1));
    target.beginSlowly();
    const copy = { jobId: 'job0', device: source, target: targetNode, sync: 'full' } as const;
    const job = kind === 'mirror' ? await slowMirror(parts) : await startBackup(bench, copy);
    while (!target.isBusy) await turns(1);
    const reached = deferred();
    // Nothing reads the source meanwhile, and the job goes on afterwards.
    let reads = 0;
    const { io } = source;
    const [tryRead, read] = [io.tryRead.bind(io), io.read.bind(io)];
    await bench.graph.drained([source], async () => {
      io.tryRead = (...part) => (reads++, tryRead(...part));
      io.read = (...part) => (reads++, read(...part));
      await turns(50);
      assert.equal(reads, 0);
    });
    const section = bench.graph.drained([targetNode], () => reached.resolve());
    await turns(50);
    let isReached = false;
    void reached.promise.then(() => (isReached = true));
    await turns(5);
    assert.equal(isReached, false);
    target.goOn();
    await section;
    if (kind === 'mirror') await bench.until('BLOCK_JOB_READY');
    else await job.concluded;
    assert.equal(job.error, undefined);
    assertSame(await contents(targetNode), await contents(source), 0);
    await job.cancelNow();
  }
});

test('a write to both sides does not wait for one that only waits itself', async () => {
  const { bench, source, sourceFile, guest, targetNode } = await slowBench();
  await guest.write(0, Buffer.alloc(4 * MiB, 1));
  const job = await startMirror(bench, {
    ...{ jobId: 'job0', device: source, target: targetNode, sync: 'full', targetIsNew: false },
    copyMode: 'write-blocking',
  });
  await bench.until('BLOCK_JOB_READY');
  const held = new SlowTarget(sourceFile);
  held.beginSlowly();
  const first = guest.write(0, Buffer.alloc(MiB, 2));
  while (!held.isBusy) await turns(1);
  held.endSlowly();
  const waiting = [3, 4].map((byte) => guest.write(0, Buffer.alloc(2 * MiB, byte)));
  await turns(20);
  await guest.write(MiB, Buffer.alloc(2 * MiB, 5));
  held.goOn();
  await Promise.all([first, ...waiting]);
  assertSame(await contents(targetNode), await contents(source), 0);
  await job.cancelNow();
});

for (const granularity of [65536, 16 * MiB])
  for (const [what, change] of [
    ['a discard that the source ignores', (guest: BlockBackend) => guest.discard(0, DISK)],
    ['zeroes that the target can only write', (guest: BlockBackend) => guest.writeZeroes(0, DISK, 0)],
  ] as const)
    test(`behind ${what}, a write to both sides waits for one request, granules of ${granularity} bytes`, async () => {
      const parts = await slowBench();
      const { bench, source, guest, target, targetNode } = parts;
      await guest.write(0, Buffer.alloc(DISK, 1));
      const job = await slowMirror(parts, { copyMode: 'write-blocking', granularity });
      await bench.until('BLOCK_JOB_READY');
      target.beginSlowly();
      const changed = change(guest);
      while (!target.isBusy) await turns(1);
      const write = guest.write(20 * MiB, Buffer.alloc(4096, 2));
      const waited = await target.bytesUntil(write);
      assert.ok(waited <= 2 * MOST_BYTES + 4096, `${waited} bytes`);
      // Whoever asks for much waits for it himself: the mirror keeps up.
      let isDone = false;
      void changed.then(() => (isDone = true));
      await turns(20);
      assert.equal(isDone, false);
      target.goOn();
      await changed;
      assert.equal(job.blockJobInfo()['actively-synced'], true);
      job.complete();
      await job.concluded;
      assert.equal(job.error, undefined);
      assert.equal(guest.node, targetNode);
      assertSame(await contents(targetNode), await contents(source), 0);
    });

test('what a long discard has left is copied before guests are held for a mirror that takes over', async () => {
  const parts = await slowBench();
  const { bench, source, guest, target, targetNode } = parts;
  await guest.write(0, Buffer.alloc(DISK, 1));
  const job = await slowMirror(parts, { copyMode: 'write-blocking', autoFinalize: false });
  await bench.until('BLOCK_JOB_READY');
  job.complete();
  await bench.until('JOB_STATUS_CHANGE', 'pending');
  target.beginSlowly();
  const discarded = guest.discard(0, DISK);
  while (!target.isBusy) await turns(1);
  let heldBytes = 0;
  const { file } = target;
  const write = file.write.bind(file);
  file.write = async (request, from, lengthBytes, offset) => {
    if (guest.isQuiesced) heldBytes += lengthBytes;
    await write(request, from, lengthBytes, offset);
  };
  job.finalize();
  await turns(20);
  target.goOn();
  await discarded;
  await job.concluded;
  assert.equal(job.error, undefined);
  assert.ok(heldBytes <= MOST_BYTES, `${heldBytes} bytes`);
  assert.equal(guest.node, targetNode);
  assertSame(await contents(targetNode), await contents(source), 0);
});
