import assert from 'node:assert/strict';
import type { BlockBackend } from '../../src/block/backend.js';
import { createImage } from '../../src/block/create.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';

/** A persisted job that is cut off by power losses, again and again, under a guest that writes. */

const KiB = 1024;
const DISK = 2048 * KiB;
const JOURNAL = '/tmp/journal';
const SPEED = 192 * KiB;

export type CutKind = 'backup' | 'commit' | 'active-commit' | 'stream';
export const CUT_KINDS: readonly CutKind[] = ['backup', 'commit', 'active-commit', 'stream'];

/** Answers how often the job went on. */
export async function cutJob(kind: CutKind, seed: number, cuts = 4): Promise<number> {
  const run = new CutRun(kind, seed);
  await run.prepare();
  for (let cut = 0; cut < cuts; cut++) await run.untilCut();
  await run.finish();
  return run.resumed;
}

class CutRun {
  readonly #kind: CutKind;
  readonly #seed: number;
  readonly #simulation: Simulation;
  readonly #random: SeededRandom;
  /** What the guest's disk holds, and after a power loss for certain, but for `#pending`. */
  readonly #model = Buffer.alloc(DISK);
  #pending: { offset: number; lengthBytes: number } | undefined;
  /** Of a backup. */
  #point: Buffer | undefined;
  #isStarted = false;
  #isOver = false;
  resumed = 0;

  constructor(kind: CutKind, seed: number) {
    this.#kind = kind;
    this.#seed = seed;
    this.#simulation = createSimulatedHost({ seed });
    this.#random = new SeededRandom(seed);
  }

  /** top on middle on base, all with data; for a backup top alone, and a target. */
  async prepare(): Promise<void> {
    const { host } = this.#simulation;
    await this.#simulation.run(async () => {
      const layers = this.#kind === 'backup' ? ['top'] : ['base', 'middle', 'top'];
      let below: string | undefined;
      for (const name of layers) {
        const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
        const backing = below === undefined ? {} : { backingFile: `/tmp/${below}`, backingFormat: 'qcow2' };
        await createImage(engine.opener, `/tmp/${name}`, 'qcow2', {
          sizeBytes: DISK,
          options: {},
          ...backing,
        });
        below = name;
        const guest = await openDisk(engine, name);
        for (let i = 0; i < 24; i++) await this.#write(guest, 64 * KiB);
        await engine.close();
      }
      const maker = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
      await createImage(maker.opener, '/tmp/target', 'raw', { sizeBytes: DISK, options: {} });
      await maker.close();
    });
  }

  async #write(guest: BlockBackend, most: number, isFlushed = true): Promise<void> {
    const offset = this.#random.below(DISK / 512) * 512;
    const lengthBytes = Math.min(DISK - offset, 512 * (1 + this.#random.below(most / 512)));
    const bytes = Buffer.alloc(lengthBytes, 1 + this.#random.below(255));
    this.#pending = { offset, lengthBytes };
    if (!guest.tryWrite(offset, bytes, 0)) await guest.write(offset, bytes, 0);
    if (isFlushed) await guest.flush();
    bytes.copy(this.#model, offset);
    this.#pending = undefined;
  }

  /** Boots, lets the job go on and the guest write, and cuts the power. */
  async untilCut(): Promise<void> {
    const isFirst = !this.#isStarted;
    const forMs = this.#random.below(isFirst ? 400 : 2500);
    await this.#simulation.run(async () => {
      const { engine, guest } = await this.#boot();
      if (this.#isOver) return;
      // A backup that has begun has its point in time for certain.
      if (!this.#isStarted && this.#kind === 'backup')
        for (let i = 0; i < 5; i++) await this.#write(guest, 16 * KiB, false);
      await this.#goOn(engine, SPEED);
      const over = guest.clock.nowMs() + forMs;
      while (guest.clock.nowMs() < over) {
        await guest.clock.sleep(this.#random.below(400));
        // The first cut comes before the guest's next flush.
        if (!isFirst) await this.#write(guest, 16 * KiB);
      }
    });
    this.#simulation.powerLoss();
    this.#simulation.reboot();
  }

  async #boot(): Promise<{ engine: Engine; guest: BlockBackend }> {
    const { host } = this.#simulation;
    const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
    const guest = await openDisk(engine, 'top');
    if (this.#kind === 'backup') await openDisk(engine, 'target', 'raw');
    const { offset, lengthBytes } = this.#pending ?? { offset: 0, lengthBytes: 0 };
    if (lengthBytes > 0) await guest.read(offset, this.#model.subarray(offset, offset + lengthBytes));
    this.#pending = undefined;
    await this.#check(guest);
    return { engine, guest };
  }

  async #check(guest: BlockBackend): Promise<void> {
    const bytes = Buffer.alloc(DISK);
    await guest.read(0, bytes);
    const at = bytes.findIndex((byte, i) => byte !== this.#model[i]);
    assert.equal(at, -1, `${this.#kind}, seed ${this.#seed}: byte ${at} of the guest's disk`);
  }

  /** Starts the job or resumes it. */
  async #goOn(engine: Engine, speed: number): Promise<void> {
    if (this.#isStarted) {
      const resumed = await engine
        .execute('x-job-resume', { journal: JOURNAL, 'if-changed': 'ignore' })
        .catch((error: unknown) => error as Error);
      if (resumed instanceof Error) {
        assert.equal(resumed.message, "Job 'j' has completed", `${this.#kind}, seed ${this.#seed}`);
        this.#isOver = true;
        return;
      }
      if (this.#kind === 'backup') assert.equal(resumed.point, 'kept');
      this.resumed++;
      engine.jobs.find('j')?.setSpeed(speed);
      return;
    }
    this.#point = Buffer.from(this.#model);
    await this.#start(engine, { 'job-id': 'j', speed, 'x-persist': JOURNAL });
    this.#isStarted = true;
  }

  async #start(
    engine: Engine,
    common: { 'job-id': string; speed: number; 'x-persist': string },
  ): Promise<void> {
    const nameOf = (file: string): string => {
      const node = [...engine.graph.nodes.values()].find(
        ({ storage, driver }) => storage.filename === `/tmp/${file}` && driver.name === 'qcow2',
      );
      assert.ok(node);
      return node.name;
    };
    if (this.#kind === 'backup')
      await engine.execute('blockdev-backup', { ...common, device: 'top', target: 'target', sync: 'full' });
    else if (this.#kind === 'stream')
      await engine.execute('block-stream', { ...common, device: 'top', 'base-node': nameOf('base') });
    else if (this.#kind === 'commit') {
      const ends = { 'top-node': nameOf('middle'), 'base-node': nameOf('base') };
      await engine.execute('block-commit', { ...common, device: 'top', ...ends });
    } else await engine.execute('block-commit', { ...common, device: 'top', 'base-node': nameOf('base') });
  }

  /** Ends the job; what it was for is right. */
  async finish(): Promise<void> {
    await this.#simulation.run(async () => {
      const { engine, guest } = await this.#boot();
      await this.#goOn(engine, 0);
      const job = engine.jobs.find('j');
      for (let i = 0; i < 10; i++) await this.#write(guest, 16 * KiB);
      if (this.#kind === 'active-commit' && job) {
        while (!job.isReady) await guest.clock.sleep(10);
        await engine.execute('job-complete', { id: 'j' });
      }
      await job?.concluded;
      assert.equal(job?.error, undefined, `${this.#kind}, seed ${this.#seed}`);
      await this.#check(guest);
      const [told] = await engine.execute('x-job-history', { journal: JOURNAL });
      assert.equal(told?.state, 'completed');
      await engine.close();
    });
    if (this.#kind === 'backup') {
      const [target, point] = [this.#simulation.contentOf('/tmp/target'), this.#point];
      assert.ok(target && point);
      const at = point.findIndex((byte, i) => byte !== target[i]);
      assert.equal(at, -1, `backup, seed ${this.#seed}: byte ${at} of the point in time`);
    } else await this.#checkChain();
  }

  /** What left the chain is not in it any more, and without it the disk is right. */
  async #checkChain(): Promise<void> {
    const { host } = this.#simulation;
    await this.#simulation.run(async () => {
      const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
      const guest = await openDisk(engine, this.#kind === 'active-commit' ? 'base' : 'top');
      await this.#check(guest);
      const files = [...engine.graph.nodes.values()].map(({ storage }) => storage.filename);
      assert.ok(!files.includes('/tmp/middle'), `${this.#kind}, seed ${this.#seed}: the chain is as it was`);
      await engine.close();
    });
  }
}

async function openDisk(engine: Engine, name: string, driver = 'qcow2'): Promise<BlockBackend> {
  const file = { driver: 'file', filename: `/tmp/${name}` };
  await engine.addNode({ driver, 'node-name': name, file });
  const guest = engine.graph.createBackend({
    description: 'a guest',
    perm: name === 'target' ? 0 : Permission.consistentRead | Permission.write,
    shared: ALL_PERMISSIONS,
  });
  const node = engine.graph.node(name);
  await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
  return guest;
}
