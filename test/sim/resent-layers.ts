import assert from 'node:assert/strict';
import type { BlockBackend } from '../../src/block/backend.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { CompactDisk, compactDriver } from '../kit/compact-disk.js';
import type { Resent } from './resent.js';

/** The same as resent.ts of jobs within a chain: base <- middle <- top, of qcow2. */

const MiB = 1024 * 1024;
const KiB = 1024;
const CLUSTER = 64 * KiB;
const JOURNAL = '/tmp/journal';
const BYTES_PER_MS = MiB / 5;
const GUEST_PAUSE_MS = 400;
const NAMES = ['base', 'middle', 'top'] as const;
/** What reads of the disk at the end look at. */
const READ_BYTES = 4 * MiB;

export type LayersKind = 'commit' | 'stream';
export const LAYERS_KINDS: readonly LayersKind[] = ['commit', 'stream'];

export async function measureResentLayers(
  kind: LayersKind,
  seed: number,
  diskMiB: number,
  cuts: number,
): Promise<Resent> {
  const run = new LayersRun(kind, seed, diskMiB * MiB);
  await run.prepare();
  const meanMs = (0.8 * diskMiB * MiB) / BYTES_PER_MS / cuts;
  for (let cut = 0; cut < cuts; cut++) await run.untilCut(2 * meanMs);
  await run.finish();
  return run.result(cuts);
}

class LayersRun {
  readonly #kind: LayersKind;
  readonly #seed: number;
  readonly #diskBytes: number;
  readonly #simulation: Simulation;
  readonly #random: SeededRandom;
  readonly #disks = new Map<string, CompactDisk>();
  /** What the guest's disk holds in each cluster; 0: what it held at first. */
  readonly #written: Uint32Array;
  /** Of the last write before a cut nobody knows. */
  #doubtful = -1;
  #stamp = 2 ** 30;
  #guestBytes = 0;
  #isStarted = false;
  #isOver = false;
  #startBytes = 0;

  constructor(kind: LayersKind, seed: number, diskBytes: number) {
    this.#kind = kind;
    this.#seed = seed;
    this.#diskBytes = diskBytes;
    this.#simulation = createSimulatedHost({ seed });
    this.#random = new SeededRandom(seed);
    this.#written = new Uint32Array(diskBytes / CLUSTER);
    for (const name of NAMES) this.#disks.set(`${name}-file`, new CompactDisk(BYTES_PER_MS));
  }

  #target(): CompactDisk {
    const disk = this.#disks.get(this.#kind === 'commit' ? 'base-file' : 'top-file');
    assert.ok(disk);
    return disk;
  }

  #engine(): Engine {
    const { host } = this.#simulation;
    const drivers = [...allDrivers, compactDriver(this.#disks)];
    return new Engine({ host, drivers, kind: 'storage-daemon' });
  }

  async #open(engine: Engine): Promise<BlockBackend> {
    let backing: string | null = null;
    for (const name of NAMES) {
      await engine.addNode({ driver: 'compact', 'node-name': `${name}-file` });
      await engine.addNode({ driver: 'qcow2', 'node-name': name, file: `${name}-file`, backing });
      backing = name;
    }
    return this.#guest(engine, 'top');
  }

  async #guest(engine: Engine, name: string): Promise<BlockBackend> {
    const guest = engine.graph.createBackend({
      description: 'a guest',
      perm: Permission.consistentRead | Permission.write,
      shared: ALL_PERMISSIONS,
    });
    const node = engine.graph.node(name);
    await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
    return guest;
  }

  /** The middle one holds the disk: what a commit brings down, and a stream up. */
  async prepare(): Promise<void> {
    await this.#simulation.run(async () => {
      const engine = this.#engine();
      for (const name of NAMES) {
        const file = `${name}-file`;
        await engine.addNode({ driver: 'compact', 'node-name': file });
        const options = { driver: 'qcow2', file, size: this.#diskBytes } as const;
        await engine.execute('blockdev-create', { 'job-id': `create-${name}`, options });
        const job = engine.jobs.find(`create-${name}`);
        await job?.concluded;
        assert.equal(job?.error, undefined);
      }
      await engine.addNode({ driver: 'qcow2', 'node-name': 'middle', file: 'middle-file' });
      const guest = await this.#guest(engine, 'middle');
      const bytes = Buffer.alloc(MiB);
      for (let at = 0; at < this.#diskBytes; at += MiB) {
        for (let i = 0; i < MiB; i += CLUSTER) bytes.writeUInt32LE(1 + (at + i) / CLUSTER, i);
        await guest.write(at, bytes);
      }
      await guest.flush();
      await engine.close();
    });
    this.#startBytes = this.#target().dataBytes;
  }

  async #goOn(engine: Engine): Promise<void> {
    if (this.#isStarted) {
      const resumed = await engine
        .execute('x-job-resume', { journal: JOURNAL, 'if-changed': 'ignore' })
        .catch((error: unknown) => error as Error);
      if (!(resumed instanceof Error)) return;
      assert.equal(resumed.message, "Job 'j' has completed", `${this.#kind}, seed ${this.#seed}`);
      this.#isOver = true;
      return;
    }
    const job = { 'job-id': 'j', device: 'top', 'x-persist': JOURNAL };
    if (this.#kind === 'stream') await engine.execute('block-stream', { ...job, 'base-node': 'base' });
    else await engine.execute('block-commit', { ...job, 'top-node': 'middle', 'base-node': 'base' });
    this.#isStarted = true;
  }

  async #write(guest: BlockBackend): Promise<void> {
    const cluster = this.#random.below(this.#written.length);
    const bytes = Buffer.alloc(CLUSTER);
    bytes.writeUInt32LE(++this.#stamp);
    this.#doubtful = cluster;
    this.#guestBytes += CLUSTER;
    await guest.write(cluster * CLUSTER, bytes, 0);
    await guest.flush();
    this.#written[cluster] = this.#stamp;
    this.#doubtful = -1;
  }

  /** What was under way at the cut is one or the other. */
  async #settle(guest: BlockBackend): Promise<void> {
    if (this.#doubtful < 0) return;
    const bytes = Buffer.alloc(CLUSTER);
    await guest.read(this.#doubtful * CLUSTER, bytes);
    this.#written[this.#doubtful] = bytes.readUInt32LE();
    this.#doubtful = -1;
  }

  async untilCut(mostMs: number): Promise<void> {
    if (this.#isOver) return;
    const forMs = this.#random.below(Math.ceil(mostMs));
    await this.#simulation.run(async () => {
      const engine = this.#engine();
      const guest = await this.#open(engine);
      await this.#settle(guest);
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
    for (const disk of this.#disks.values()) disk.powerLoss(this.#random);
  }

  async finish(): Promise<void> {
    await this.#simulation.run(async () => {
      const engine = this.#engine();
      const guest = await this.#open(engine);
      await this.#settle(guest);
      await this.#goOn(engine);
      const job = engine.jobs.find('j');
      await job?.concluded;
      assert.equal(job?.error, undefined, `${this.#kind}, seed ${this.#seed}`);
      await this.#check(guest);
      await engine.close();
    });
  }

  async #check(guest: BlockBackend): Promise<void> {
    const bytes = Buffer.alloc(READ_BYTES);
    for (let at = 0; at < this.#diskBytes; at += READ_BYTES) {
      await guest.read(at, bytes);
      for (let i = 0; i < READ_BYTES; i += CLUSTER) {
        const cluster = (at + i) / CLUSTER;
        const expected = this.#written[cluster] || 1 + cluster;
        const text = `${this.#kind}, seed ${this.#seed}: cluster ${cluster}`;
        assert.equal(bytes.readUInt32LE(i), expected, text);
      }
    }
  }

  /** A cluster that a guest wrote before a stream came there was not to be sent. */
  result(cuts: number): Resent {
    const sent = this.#target().dataBytes - this.#startBytes;
    const own = this.#kind === 'stream' ? this.#guestBytes : 0;
    return { cuts, diskBytes: this.#diskBytes, againBytes: sent - own - this.#diskBytes };
  }
}
