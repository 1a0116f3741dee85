import assert from 'node:assert/strict';
import type { BlockBackend } from '../../src/block/backend.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import type { HostClock } from '../../src/host/host.js';
import { createSimulatedHost, SeededRandom } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import type { Job } from '../../src/jobs/job.js';
import { handOn } from '../kit/passed-jobs.js';
import { STAMPED_BLOCK_BYTES, StampedDisk, stampedDriver } from '../kit/stamped-disk.js';

/** A mirror over a link of a known rate, with x-finish-by, under a guest that writes nearly as fast. */

const MiB = 1024 * 1024;
/** What the link takes. */
const BYTES_PER_MS = MiB / 5;
/** The guest's requests at a time. */
const DEPTH = 32;
/** Of the guest's rate one value for each. */
const WINDOW_MS = 500;

export interface Writer {
  /** Of the link's rate. */
  readonly share: number;
  /** Part of the disk where it writes 90% of it; 1: it writes everywhere alike. */
  readonly hotShare: number;
}

export interface Finished {
  /** From start to READY. */
  seconds: number;
  /** Over the link, in disks. */
  copiedDisks: number;
  /** Least rate of the guest in any half second, of the rate that it wants. */
  leastShare: number;
  /** What was told of the end before guests were held back: seconds and bytes from then on, and when that was. */
  told: { secondsAt: number; seconds: number; copied: number } | undefined;
  copiedAfterTold: number;
  ways: string[];
}

export async function finishBy(
  seed: number,
  diskMiB: number,
  writer: Writer,
  seconds: number | undefined,
  /** Seconds after the start when another process goes on with it. */
  takeovers: readonly number[] = [],
): Promise<Finished> {
  const simulation = createSimulatedHost({ seed });
  const random = new SeededRandom(seed);
  const size = diskMiB * MiB;
  const source = new StampedDisk(size, 100 * BYTES_PER_MS);
  const target = new StampedDisk(size, BYTES_PER_MS);
  source.fill();
  let result: Finished | undefined;
  await simulation.run(async () => {
    const { host } = simulation;
    const disks = new Map([
      ['source', source],
      ['target', target],
    ]);
    const engine = new Engine({
      host,
      drivers: [...allDrivers, stampedDriver(disks)],
      kind: 'storage-daemon',
    });
    for (const name of disks.keys()) await engine.addNode({ driver: 'stamped', 'node-name': name });
    const guest = engine.graph.createBackend({
      description: 'a guest',
      perm: Permission.consistentRead | Permission.write,
      shared: ALL_PERMISSIONS,
    });
    const node = engine.graph.node('source');
    await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
    const load = new Load(guest, host.clock, random, writer);
    load.begin();
    const begunMs = host.clock.nowMs();
    await engine.execute('blockdev-mirror', {
      ...{ 'job-id': 'j', device: 'source', target: 'target', sync: 'full' },
      ...(seconds !== undefined && { 'x-finish-by': seconds }),
    });
    let job = engine.jobs.find('j');
    assert.ok(job);
    const left = [...takeovers];
    let told: Finished['told'];
    let copiedWhenTold = 0;
    const ways: string[] = [];
    while (!job.isReady) {
      await host.clock.sleep(50);
      assert.ok(host.clock.nowMs() - begunMs < 600_000, 'it does not end');
      const finish = job.progressInfo()['finish'] as Told | undefined;
      if (!finish) continue;
      const [next = Infinity] = left;
      if (host.clock.nowMs() - begunMs >= next * 1000) {
        left.shift();
        job = await load.whileStill(() => handOver(engine, finish));
      }
      if (ways.at(-1) !== finish.way) ways.push(finish.way);
      // What the link and the guest do is known after a second.
      const secondsAt = (host.clock.nowMs() - begunMs) / 1000;
      if (!told && secondsAt > 1.5 && finish['both-sides']) {
        told = { secondsAt, ...finish['both-sides'] };
        copiedWhenTold = target.writtenBytes;
      }
    }
    assert.deepEqual(left, [], 'all takeovers were done');
    const tookMs = host.clock.nowMs() - begunMs;
    const copied = target.writtenBytes;
    await load.end();
    result = {
      seconds: tookMs / 1000,
      copiedDisks: copied / size,
      leastShare: load.leastShare(begunMs, begunMs + tookMs),
      ...{ told, ways, copiedAfterTold: copied - copiedWhenTold },
    };
    job.complete();
    await job.concluded;
    assert.equal(job.error, undefined);
    assert.deepEqual(target.stamps, source.stamps);
    await engine.close();
  });
  assert.ok(result);
  return result;
}

/** What is told of the end. */
interface Told {
  way: string;
  'seconds-left': number;
  'both-sides'?: { seconds: number; copied: number };
}

/** Another one goes on, and tells about the same from its first moment on. */
async function handOver(engine: Engine, before: Told): Promise<Job> {
  const { job } = await handOn(engine.jobs, 'j');
  const now = job.progressInfo()['finish'] as unknown as Told;
  assert.equal(now.way, before.way);
  assert.ok(Math.abs(now['seconds-left'] - before['seconds-left']) <= 1, 'its time is as long as it was');
  const [copied = 0, expected = 0] = [now['both-sides']?.copied, before['both-sides']?.copied];
  assert.ok(
    copied > 0 && Math.abs(copied - expected) < 0.1 * expected,
    `${copied} bytes, and before ${expected}`,
  );
  return job;
}

/** Writes block after block at its rate, as long as answers come. */
class Load {
  readonly #guest: BlockBackend;
  readonly #clock: HostClock;
  readonly #random: SeededRandom;
  readonly #writer: Writer;
  readonly #windows = new Map<number, number>();
  readonly #running: Array<Promise<void>> = [];
  #dueMs = 0;
  #stamp = 2 ** 30;
  #ends = false;

  constructor(guest: BlockBackend, clock: HostClock, random: SeededRandom, writer: Writer) {
    this.#guest = guest;
    this.#clock = clock;
    this.#random = random;
    this.#writer = writer;
  }

  async whileStill<T>(body: () => Promise<T>): Promise<T> {
    await this.end();
    const result = await body();
    this.begin();
    return result;
  }

  begin(): void {
    this.#ends = false;
    this.#dueMs = this.#clock.nowMs();
    for (let i = 0; i < DEPTH; i++) this.#running.push(this.#work());
  }

  async end(): Promise<void> {
    this.#ends = true;
    await Promise.all(this.#running.splice(0));
  }

  async #work(): Promise<void> {
    const everyMs = STAMPED_BLOCK_BYTES / (this.#writer.share * BYTES_PER_MS);
    while (!this.#ends) {
      const nowMs = this.#clock.nowMs();
      // What could not be written is not caught up on.
      this.#dueMs = Math.max(this.#dueMs, nowMs - 20) + everyMs;
      if (this.#dueMs > nowMs) await this.#clock.sleep(this.#dueMs - nowMs);
      const bytes = Buffer.alloc(STAMPED_BLOCK_BYTES);
      bytes.writeUInt32LE(++this.#stamp);
      await this.#guest.write(this.#place() * STAMPED_BLOCK_BYTES, bytes, 0);
      const window = Math.floor(this.#clock.nowMs() / WINDOW_MS);
      this.#windows.set(window, (this.#windows.get(window) ?? 0) + STAMPED_BLOCK_BYTES);
    }
  }

  #place(): number {
    const blocks = this.#guest.lengthBytes / STAMPED_BLOCK_BYTES;
    const { hotShare } = this.#writer;
    const hot = Math.floor(blocks * hotShare);
    if (hotShare === 1) return this.#random.below(blocks);
    // In the middle of the disk.
    const first = Math.floor(0.37 * blocks);
    return this.#random.below(10) < 9 ? first + this.#random.below(hot) : this.#random.below(blocks);
  }

  leastShare(fromMs: number, toMs: number): number {
    const wanted = this.#writer.share * BYTES_PER_MS * WINDOW_MS;
    let least = Infinity;
    for (let at = Math.ceil(fromMs / WINDOW_MS); at < Math.floor(toMs / WINDOW_MS); at++)
      least = Math.min(least, (this.#windows.get(at) ?? 0) / wanted);
    return least;
  }
}
