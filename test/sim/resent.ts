import assert from 'node:assert/strict';
import type { BlockBackend } from '../../src/block/backend.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { STAMPED_BLOCK_BYTES, StampedDisk, stampedDriver } from '../kit/stamped-disk.js';

/** How much a persisted job sends again that is cut off by power losses at random moments, under a guest that writes. */

const MiB = 1024 * 1024;
const JOURNAL = '/tmp/journal';
/** Of either disk. */
const BYTES_PER_MS = MiB / 5;
/** A guest's write comes as often, on the average. */
const GUEST_PAUSE_MS = 400;

export type ResentKind = 'mirror' | 'backup';
export const RESENT_KINDS: readonly ResentKind[] = ['mirror', 'backup'];

export interface Resent {
  cuts: number;
  diskBytes: number;
  /** Sent, of what the target had been sent already. */
  againBytes: number;
}

export async function measureResent(
  kind: ResentKind,
  seed: number,
  diskMiB: number,
  cuts: number,
): Promise<Resent> {
  const run = new ResentRun(kind, seed, diskMiB * MiB);
  // So that the last cut comes shortly before the end.
  const meanMs = (0.8 * run.source.lengthBytes) / BYTES_PER_MS / cuts;
  for (let cut = 0; cut < cuts; cut++) await run.untilCut(2 * meanMs);
  await run.finish();
  return run.result(cuts);
}

class ResentRun {
  readonly source: StampedDisk;
  readonly #kind: ResentKind;
  readonly #seed: number;
  readonly #target: StampedDisk;
  readonly #simulation: Simulation;
  readonly #random: SeededRandom;
  /** Of a backup. */
  #point: Uint32Array | undefined;
  #lastStamp = 2 ** 30;
  /** What a guest changed that the target had. */
  #changedBytes = 0;
  #isStarted = false;

  constructor(kind: ResentKind, seed: number, diskBytes: number) {
    this.#kind = kind;
    this.#seed = seed;
    this.source = new StampedDisk(diskBytes, BYTES_PER_MS);
    this.#target = new StampedDisk(diskBytes, BYTES_PER_MS);
    this.source.fill();
    this.#simulation = createSimulatedHost({ seed });
    this.#random = new SeededRandom(seed);
  }

  async #boot(): Promise<{ engine: Engine; guest: BlockBackend }> {
    const { host } = this.#simulation;
    const disks = new Map([
      ['source', this.source],
      ['target', this.#target],
    ]);
    const drivers = [...allDrivers, stampedDriver(disks)];
    const engine = new Engine({ host, drivers, kind: 'storage-daemon' });
    for (const name of disks.keys()) await engine.addNode({ driver: 'stamped', 'node-name': name });
    const guest = engine.graph.createBackend({
      description: 'a guest',
      perm: Permission.consistentRead | Permission.write,
      shared: ALL_PERMISSIONS,
    });
    const node = engine.graph.node('source');
    await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
    return { engine, guest };
  }

  async #goOn(engine: Engine): Promise<void> {
    if (this.#isStarted) {
      const resumed = await engine.execute('x-job-resume', { journal: JOURNAL, 'if-changed': 'ignore' });
      if (this.#kind === 'backup') assert.equal(resumed.point, 'kept');
      return;
    }
    const job = {
      'job-id': 'j',
      device: 'source',
      target: 'target',
      sync: 'full',
      'x-persist': JOURNAL,
    } as const;
    this.#point = this.source.stamps.slice();
    if (this.#kind === 'mirror') await engine.execute('blockdev-mirror', job);
    else await engine.execute('blockdev-backup', job);
    this.#isStarted = true;
  }

  async #write(guest: BlockBackend): Promise<void> {
    const block = this.#random.below(this.source.stamps.length);
    const bytes = Buffer.alloc(STAMPED_BLOCK_BYTES);
    bytes.writeUInt32LE(++this.#lastStamp);
    const isThere = this.#target.stamps[block] === this.source.stamps[block];
    if (this.#kind === 'mirror' && isThere) this.#changedBytes += STAMPED_BLOCK_BYTES;
    await guest.write(block * STAMPED_BLOCK_BYTES, bytes, 0);
  }

  async untilCut(mostMs: number): Promise<void> {
    const forMs = this.#random.below(Math.ceil(mostMs));
    await this.#simulation.run(async () => {
      const { engine, guest } = await this.#boot();
      await this.#goOn(engine);
      const { clock } = guest;
      const endMs = clock.nowMs() + forMs;
      for (;;) {
        const pauseMs = this.#random.below(2 * GUEST_PAUSE_MS);
        await clock.sleep(Math.min(pauseMs, endMs - clock.nowMs()));
        if (clock.nowMs() >= endMs) return;
        await this.#write(guest);
      }
    });
    this.#simulation.powerLoss();
    this.#simulation.reboot();
    for (const disk of [this.source, this.#target]) disk.powerLoss(this.#random);
  }

  async finish(): Promise<void> {
    await this.#simulation.run(async () => {
      const { engine, guest } = await this.#boot();
      await this.#goOn(engine);
      const job = engine.jobs.find('j');
      assert.ok(job);
      if (this.#kind === 'mirror') {
        while (!job.isReady) await guest.clock.sleep(20);
        await engine.execute('block-job-cancel', { device: 'j' });
      }
      await job.concluded;
      assert.equal(job.error, undefined);
      await engine.close();
    });
    const expected = this.#kind === 'mirror' ? this.source.stamps : this.#point;
    const at = this.#target.stamps.findIndex((stamp, block) => stamp !== expected?.[block]);
    assert.equal(at, -1, `${this.#kind}, seed ${this.#seed}: block ${at}`);
  }

  result(cuts: number): Resent {
    const diskBytes = this.source.lengthBytes;
    return { cuts, diskBytes, againBytes: this.#target.writtenBytes - diskBytes - this.#changedBytes };
  }
}
