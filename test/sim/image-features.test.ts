import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockBackend } from '../../src/block/backend.js';
import { createImage } from '../../src/block/create.js';
import type { NodeOptions } from '../../src/block/driver.js';
import { BITMAP_ACTIONS } from '../../src/monitor/bitmaps.js';
import { findByName, showSnapshot, snapshotNow, snapshotsOf } from '../../src/block/internal-snapshots.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { Flag } from '../../src/block/request.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { isNoSpace } from './filler.js';

/** Power losses and full disks under images of each feature; what a flush has answered is there afterwards. */

const SEEDS = Number(process.env['SEEDS'] ?? 6);
const FIRST_SEED = Number(process.env['SEED'] ?? 0);
const SECTOR = 512;
const CLUSTER = 16384;
const CLUSTERS = 24;
const SIZE = CLUSTERS * CLUSTER;
const STEPS = 60;

interface Feature {
  create: NodeOptions;
  open?: NodeOptions;
  compresses?: boolean;
  hasSnapshots?: boolean;
  hasBitmap?: boolean;
}

const EXTENDED = { 'extended-l2': true };
const ENCRYPTION = { format: 'luks', 'key-secret': 's' };
const FAST = { ...ENCRYPTION, 'iter-time': 0, 'cipher-alg': 'aes-128' };
const DATA = '/tmp/data';

const FEATURES: Readonly<Record<string, Feature>> = {
  'compressed writes': { create: {}, compresses: true },
  'compressed writes and internal snapshots': { create: {}, compresses: true, hasSnapshots: true },
  subclusters: { create: EXTENDED },
  'subclusters, compressed writes and snapshots': {
    create: EXTENDED,
    compresses: true,
    hasSnapshots: true,
  },
  'an external data file': { create: { 'data-file': DATA } },
  'a raw data file': { create: { 'data-file': DATA, 'data-file-raw': true } },
  'a data file and subclusters': { create: { 'data-file': DATA, ...EXTENDED } },
  'a bitmap, and compressed writes': { create: {}, compresses: true, hasBitmap: true },
  'a bitmap of a disk with subclusters and snapshots': {
    create: EXTENDED,
    hasSnapshots: true,
    hasBitmap: true,
  },
  LUKS: { create: { encrypt: FAST }, open: { encrypt: ENCRYPTION } },
  'LUKS, subclusters and snapshots': {
    create: { encrypt: FAST, ...EXTENDED },
    open: { encrypt: ENCRYPTION },
    hasSnapshots: true,
  },
};

/** What each sector may hold: stamps, oldest first; those before the last flush do not come back. */
class Sectors {
  readonly #versions = Array.from({ length: SIZE / SECTOR }, () => [0]);
  #stamp = 1;

  /** New stamps for sectors [from, from + count), as bytes. */
  write(from: number, count: number): Buffer {
    const bytes = Buffer.alloc(count * SECTOR);
    for (let i = 0; i < count; i++) {
      this.#versions[from + i]?.push(this.#stamp);
      for (let at = 0; at < SECTOR; at += 4) bytes.writeUInt32LE(this.#stamp, i * SECTOR + at);
      this.#stamp++;
    }
    return bytes;
  }

  zero(from: number, count: number): void {
    for (let i = from; i < from + count; i++) this.#versions[i]?.push(0);
  }

  /** What a request that failed, or a discard, has left. */
  adopt(content: Buffer, from: number): void {
    for (let at = 0; at < content.length; at += SECTOR)
      this.#versions[from + at / SECTOR]?.push(content.readUInt32LE(at));
  }

  /** A flush that begins now; calls back when it has ended. */
  flush(): () => void {
    const lengths = this.#versions.map((list) => list.length);
    return () => {
      this.#versions.forEach((list, sector) => void list.splice(0, (lengths[sector] ?? 1) - 1));
      // Others may have flushed meanwhile, and cut more.
    };
  }

  problem(content: Buffer): string | undefined {
    for (const [sector, versions] of this.#versions.entries()) {
      const bytes = content.subarray(sector * SECTOR, (sector + 1) * SECTOR);
      const stamp = bytes.readUInt32LE(0);
      if (bytes.compare(bytes, 4, SECTOR, 0, SECTOR - 4) !== 0) return `sector ${sector} is torn`;
      if (!versions.includes(stamp)) return `sector ${sector} holds ${stamp}, not ${versions.join(' ')}`;
    }
    return undefined;
  }
}

/** One image, its guest, and what must be true of it. */
class Bed {
  readonly sectors = new Sectors();
  /** What snapshots show; those that were being made or deleted may be there or not. */
  readonly snapshots = new Map<string, { content: Buffer; isCertain: boolean }>();
  readonly #random: SeededRandom;
  readonly #feature: Feature;
  readonly #simulation: Simulation;
  #taken = 0;

  constructor(simulation: Simulation, feature: Feature, seed: number) {
    this.#simulation = simulation;
    this.#feature = feature;
    this.#random = new SeededRandom(seed + 1000);
  }

  async engine(): Promise<Engine> {
    const engine = new Engine({ host: this.#simulation.host, drivers: allDrivers, kind: 'storage-daemon' });
    await engine.graph.objects.add({ 'qom-type': 'secret', id: 's', data: 'password' });
    return engine;
  }

  async create(engine: Engine): Promise<void> {
    const options = { 'cluster-size': CLUSTER, 'refcount-bits': 16, ...this.#feature.create };
    await createImage(engine.opener, '/tmp/image', 'qcow2', { sizeBytes: SIZE, options });
  }

  async open(engine: Engine, readOnly = false, isCheck = false): Promise<BlockBackend> {
    const context = { readOnly, discard: 'unmap' as const, forCheck: isCheck };
    const node = await engine.opener.openImage('/tmp/image', 'qcow2', context, this.#feature.open);
    const guest = engine.graph.createBackend({
      description: 'a guest',
      perm: Permission.consistentRead | (readOnly ? 0 : Permission.write),
      shared: ALL_PERMISSIONS,
    });
    await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
    return guest;
  }

  async addBitmap(engine: Engine, { node }: BlockBackend): Promise<void> {
    if (this.#feature.hasBitmap !== true) return;
    const args = { node: node.name, name: 'kept', persistent: true, granularity: CLUSTER };
    BITMAP_ACTIONS['block-dirty-bitmap-add'](engine, args);
  }

  /** The guest's life until the power goes. */
  async live(engine: Engine, guest: BlockBackend): Promise<void> {
    for (let step = 0; step < STEPS; step++) {
      const [from, count] = this.#range();
      try {
        await this.#step(engine, guest, from, count);
      } catch (error) {
        if (!isNoSpace(error)) throw error;
        this.#simulation.limitSpace(undefined);
        await this.#adopt(guest, 0, SIZE / SECTOR);
      }
    }
    this.#simulation.limitSpace(undefined);
  }

  #range(): [from: number, count: number] {
    const from = this.#random.below(SIZE / SECTOR);
    return [from, 1 + this.#random.below(Math.min(3 * (CLUSTER / SECTOR), SIZE / SECTOR - from))];
  }

  async #step(engine: Engine, guest: BlockBackend, from: number, count: number): Promise<void> {
    const random = this.#random;
    const [offset, lengthBytes] = [from * SECTOR, count * SECTOR];
    const kind = random.below(10);
    if (kind < 4)
      await guest.write(offset, this.sectors.write(from, count), random.chance(0.1) ? Flag.fua : 0);
    else if (kind === 4) {
      this.sectors.zero(from, count);
      await guest.writeZeroes(offset, lengthBytes, random.chance(0.5) ? Flag.mayUnmap : 0);
    } else if (kind === 5) {
      await guest.discard(offset, lengthBytes);
      await this.#adopt(guest, from, count);
    } else if (kind === 6 && this.#feature.compresses === true) await this.#compress(guest);
    else if (kind === 7 && this.#feature.hasSnapshots === true) await this.#snapshot(engine, guest);
    else if (kind === 8 && random.chance(0.3)) {
      const left = random.below(4 * CLUSTER);
      const tells = random.chance(0.5) ? 'early' : 'late';
      this.#simulation.limitSpace({ capacityBytes: this.#simulation.usedBytes + left, tells });
    } else {
      const flushed = this.sectors.flush();
      // Writes of other guests go on.
      const other = guest.write(offset, this.sectors.write(from, count));
      const [flush, write] = await Promise.allSettled([guest.flush(), other]);
      if (flush.status === 'fulfilled') flushed();
      for (const one of [flush, write]) if (one.status === 'rejected') throw one.reason;
    }
  }

  async #adopt(guest: BlockBackend, from: number, count: number): Promise<void> {
    const content = Buffer.alloc(count * SECTOR);
    await guest.read(from * SECTOR, content);
    this.sectors.adopt(content, from);
  }

  /** Only what has no data yet takes it. */
  async #compress(guest: BlockBackend): Promise<void> {
    const first = this.#random.below(CLUSTERS - 1) * (CLUSTER / SECTOR);
    const count = (CLUSTER / SECTOR) * 2;
    await guest.discard(first * SECTOR, count * SECTOR);
    await this.#adopt(guest, first, count);
    const bytes = this.sectors.write(first, count);
    await guest.write(first * SECTOR, bytes, Flag.compressed).catch(async (error: unknown) => {
      await this.#adopt(guest, first, count);
      // A snapshot or a data file keeps clusters where they are.
      if ((error as { errno?: string }).errno !== 'EIO') throw error;
    });
  }

  async #snapshot(engine: Engine, guest: BlockBackend): Promise<void> {
    const { node } = guest;
    const content = Buffer.alloc(SIZE);
    await guest.read(0, content);
    await engine.graph.drained([node], async () => {
      const snapshots = snapshotsOf(node);
      const [name] = [...this.snapshots.keys()];
      if (name !== undefined && this.#random.chance(0.4)) {
        const kept = this.snapshots.get(name);
        if (kept) kept.isCertain = false;
        const found = findByName(node, name);
        if (found) await snapshots?.delete(found.id);
        this.snapshots.delete(name);
        return;
      }
      const kept = { content, isCertain: false };
      const fresh = `s${this.#taken++}`;
      this.snapshots.set(fresh, kept);
      const flushed = this.sectors.flush();
      await snapshots?.take(snapshotNow(engine.host.clock, fresh));
      flushed();
      kept.isCertain = true;
    });
  }

  /** After the power came back: opened as a guest opens it, then checked. */
  async judge(): Promise<void> {
    const engine = await this.engine();
    const guest = await this.open(engine);
    const content = Buffer.alloc(SIZE);
    await guest.read(0, content);
    assert.equal(this.sectors.problem(content), undefined);
    const names = (snapshotsOf(guest.node)?.list ?? []).map(({ name }) => name);
    await this.#closed(engine, guest);
    const checked = await this.open(engine, true, true);
    const lines: string[] = [];
    const found = await checked.node.instance.check?.('none', (line) => lines.push(line));
    assert.deepEqual([found?.corruptions, found?.checkErrors], [0, 0], lines.join('\n'));
    await this.#closed(engine, checked);
    for (const [name, kept] of this.snapshots) {
      if (!names.includes(name)) {
        assert.ok(!kept.isCertain, `snapshot ${name} is gone`);
        continue;
      }
      const shown = await this.open(engine, true);
      await showSnapshot(shown.node, { name });
      await shown.read(0, content);
      assert.ok(content.equals(kept.content), `snapshot ${name} shows something else`);
      await this.#closed(engine, shown);
    }
    await engine.close();
  }

  async #closed(engine: Engine, { root, node }: BlockBackend): Promise<void> {
    if (root) await engine.graph.transaction((transaction) => void transaction.detach(root));
    await engine.graph.collect([node]);
  }
}

for (const [what, feature] of Object.entries(FEATURES))
  test(`power losses and full disks: ${what}`, async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      let [cutAt, isOff] = [Infinity, false];
      const simulation: Simulation = createSimulatedHost({
        seed,
        onOperation: ({ index }) => {
          if (index < cutAt) return;
          cutAt = Infinity;
          isOff = true;
          simulation.powerLoss();
        },
      });
      const bed = new Bed(simulation, feature, seed);
      await simulation.run(async () => {
        const engine = await bed.engine();
        await bed.create(engine);
        const guest = await bed.open(engine);
        await bed.addBitmap(engine, guest);
        cutAt = simulation.operationCount + 20 + new SeededRandom(seed).below(600);
        const life = bed.live(engine, guest).then(() => simulation.powerLoss());
        const ended = life.catch((error: unknown) => {
          if (!isOff) throw error;
        });
        await Promise.race([ended, simulation.powerLost]);
      });
      cutAt = Infinity;
      simulation.limitSpace(undefined);
      simulation.reboot();
      await simulation
        .run(() => bed.judge())
        .catch((error: unknown) => {
          throw new Error(`SEED=${seed} SEEDS=1: ${(error as Error).message}`, { cause: error });
        });
    }
  });
