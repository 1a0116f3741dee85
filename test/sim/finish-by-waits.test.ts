import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../../src/base/error.js';
import type { BlockBackend } from '../../src/block/backend.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import type { HostClock } from '../../src/host/host.js';
import { createSimulatedHost } from '../../src/host/simulated.js';
import type { Job } from '../../src/jobs/job.js';
import { Engine } from '../../src/monitor/engine.js';
import { STAMPED_BLOCK_BYTES, StampedDisk, stampedDriver } from '../kit/stamped-disk.js';

/** How long guests' changes wait while a mirror with x-finish-by holds them back: in simulated time. */

const MiB = 1024 * 1024;
const DISK_BYTES = 1024 * MiB;
/** What the link takes. */
const BYTES_PER_MS = MiB / 5;

/** A target whose writes fail from some time on. */
class FailingDisk extends StampedDisk {
  fails = false;

  override takes(clock: HostClock, lengthBytes: number): Promise<void> {
    return this.fails ? Promise.reject(errnoError('EIO')) : super.takes(clock, lengthBytes);
  }
}

interface Bench {
  readonly clock: HostClock;
  readonly engine: Engine;
  readonly guest: BlockBackend;
  readonly source: StampedDisk;
  readonly target: FailingDisk;
  readonly job: Job;
  /** Answers how long it took until all of them were done. */
  readonly writes: (count: number, lengthBytes: number) => Promise<number>;
  readonly took: (request: Promise<unknown>) => Promise<number>;
}

/**
 * A mirror that is late, under a guest that writes at `share` of the link's rate until its changes go to both sides; then
 * `body`, with nothing in flight of the guest.
 */
async function late(share: number, body: (bench: Bench) => Promise<void>): Promise<void> {
  const simulation = createSimulatedHost({ seed: 1 });
  const { host } = simulation;
  const { clock } = host;
  const source = new StampedDisk(DISK_BYTES, 100 * BYTES_PER_MS);
  const target = new FailingDisk(DISK_BYTES, BYTES_PER_MS);
  source.fill();
  await simulation.run(async () => {
    const disks = new Map<string, StampedDisk>([
      ['source', source],
      ['target', target],
    ]);
    const drivers = [...allDrivers, stampedDriver(disks)];
    const engine = new Engine({ host, drivers, kind: 'storage-daemon' });
    for (const name of disks.keys())
      await engine.addNode({ driver: 'stamped', 'node-name': name, discard: 'unmap' });
    const guest = engine.graph.createBackend({
      description: 'a guest',
      perm: Permission.consistentRead | Permission.write,
      shared: ALL_PERMISSIONS,
    });
    const node = engine.graph.node('source');
    await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
    await engine.execute('blockdev-mirror', {
      ...{ 'job-id': 'j', device: 'source', target: 'target', sync: 'full' },
      ...{ 'x-finish-by': 1, 'auto-dismiss': false },
    });
    const job = engine.jobs.find('j');
    assert.ok(job);
    let stamp = 2 ** 30;
    let at = 0;
    const write = (lengthBytes: number): Promise<void> => {
      const bytes = stampedBytes(lengthBytes, stamp);
      stamp += lengthBytes / STAMPED_BLOCK_BYTES;
      const offset = at;
      at = (at + lengthBytes) % DISK_BYTES;
      return guest.write(offset, bytes, 0);
    };
    const took = async (request: Promise<unknown>): Promise<number> => {
      const begunMs = clock.nowMs();
      await request;
      return clock.nowMs() - begunMs;
    };
    while (wayOf(job) !== 'both-sides') {
      await write(STAMPED_BLOCK_BYTES);
      await clock.sleep(STAMPED_BLOCK_BYTES / (share * BYTES_PER_MS));
      assert.ok(clock.nowMs() < 60_000, 'its changes never go to both sides');
    }
    const writes = (count: number, lengthBytes: number): Promise<number> =>
      took(Promise.all(Array.from({ length: count }, () => write(lengthBytes))));
    await body({ clock, engine, guest, source, target, job, writes, took });
    await engine.close();
  });
}

/** Blocks with one stamp after the other. */
function stampedBytes(lengthBytes: number, after: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  for (let i = 0; i < lengthBytes; i += STAMPED_BLOCK_BYTES)
    bytes.writeUInt32LE(after + 1 + i / STAMPED_BLOCK_BYTES, i);
  return bytes;
}

function finishOf(job: Job): { way?: string; 'guest-percent'?: number } {
  return (job.progressInfo()['finish'] ?? {}) as { way?: string; 'guest-percent'?: number };
}

const wayOf = (job: Job): string | undefined => finishOf(job).way;

test('a busy guest is held to half its rate', () =>
  late(0.8, async ({ job, writes }) => {
    assert.equal(finishOf(job)['guest-percent'], 50);
    const tookMs = await writes(32, MiB);
    // On an idle link it would be 160 ms.
    assert.ok(tookMs > 300, `${tookMs} ms`);
  }));

test('a guest that writes little is not held back, however late it is', () =>
  late(0.05, async ({ job, writes }) => {
    assert.equal(finishOf(job)['guest-percent'], 100);
    const tookMs = await writes(16, MiB);
    assert.ok(tookMs < 400, `${tookMs} ms`);
  }));

test('writes behind zeroes of the whole disk wait for next to nothing', () =>
  late(0.8, async ({ guest, job, writes, took }) => {
    assert.ok((await took(guest.writeZeroes(0, DISK_BYTES / 2, 0))) < 100);
    const tookMs = await writes(1, STAMPED_BLOCK_BYTES);
    assert.ok(tookMs < 100, `${tookMs} ms`);
    assert.ok(!job.isReady, 'it is in step');
  }));

test('writes that wait when the job is cancelled wait no longer', () =>
  late(0.8, async ({ engine, clock, job, writes }) => {
    const waiting = writes(64, MiB);
    await clock.sleep(50);
    assert.ok(!job.isReady);
    await engine.execute('block-job-cancel', { device: 'j', force: true });
    // The link takes as much in 320 ms; at half the guest's rate it is 800.
    const tookMs = await waiting;
    assert.ok(tookMs < 500, `${tookMs} ms`);
    await job.concluded;
  }));

test('writes that wait when the job is paused wait no longer, nor do others while it rests; it goes on as before', () =>
  late(0.8, async ({ clock, source, target, job, writes }) => {
    const waiting = writes(64, MiB);
    await clock.sleep(50);
    job.pause();
    // The link takes as much in 320 ms.
    const tookMs = await waiting;
    assert.ok(tookMs < 200, `${tookMs} ms`);
    while (job.status !== 'paused') await clock.sleep(1);
    const restingMs = await writes(64, MiB);
    assert.ok(restingMs < 50, `${restingMs} ms`);
    job.resume();
    const heldMs = await writes(32, MiB);
    assert.ok(heldMs > 300, `${heldMs} ms`);
    while (!job.isReady) await clock.sleep(1);
    job.complete();
    await job.concluded;
    assert.equal(job.error, undefined);
    assert.deepEqual(target.stamps, source.stamps);
  }));

test('a write while the job rests goes to the source alone, behind what is under way to both sides', () =>
  late(0.8, async ({ clock, guest, source, target, job, took }) => {
    const lengthBytes = 8 * MiB;
    const write = (stamp: number): Promise<void> =>
      guest.write(DISK_BYTES / 2, stampedBytes(lengthBytes, stamp), 0);
    const first = write(2 ** 31);
    await clock.sleep(5);
    job.pause();
    const second = took(write(2 ** 31 + 2 ** 20));
    await first;
    // The link takes as much in 40 ms.
    const tookMs = await second;
    assert.ok(tookMs < 60, `${tookMs} ms`);
    job.resume();
    while (!job.isReady) await clock.sleep(1);
    job.complete();
    await job.concluded;
    assert.equal(job.error, undefined);
    assert.deepEqual(target.stamps, source.stamps);
  }));

test('writes that wait when the job fails wait no longer', () =>
  late(0.8, async ({ clock, target, job, writes, took }) => {
    const waiting = writes(64, MiB);
    await clock.sleep(50);
    target.fails = true;
    const endedMs = await took(job.concluded);
    const tookMs = await waiting;
    assert.equal(job.error, 'Input/output error');
    assert.ok(endedMs < 400 && tookMs < 500, `${endedMs} ms, ${tookMs} ms`);
  }));

test('writes that wait when the target is in step wait no longer', () =>
  late(0.8, async ({ clock, job, took, guest, writes }) => {
    // All that is dirty is zeroes: it is in step soon.
    const waiting = writes(160, MiB);
    await took(guest.writeZeroes(0, DISK_BYTES, 0));
    while (!job.isReady) await clock.sleep(1);
    const tookMs = await waiting;
    assert.ok(tookMs < 1500, `${tookMs} ms`);
  }));
