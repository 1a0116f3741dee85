import { defined } from '../../src/base/assert.js';
import { isZero } from '../../src/base/zero.js';
import { createImage } from '../../src/block/create.js';
import type { BlockBackend } from '../../src/block/backend.js';
import { Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import {
  createSimulatedHost,
  type LossMode,
  type Operation,
  SeededRandom,
  type Simulation,
} from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import type { JsonObject } from '../../src/schema/types.js';
import { TestBed } from '../kit/test-disk.js';
import { type Allowed, fillSector, problemOf, SECTOR_BYTES } from './guest-disk.js';

/** What happens to a disk, one thing after the other. */
export const KINDS = [
  ...(['write', 'zero', 'discard', 'flush', 'snapshot', 'commit'] as const),
  ...(['stream', 'mirror', 'backup', 'resize', 'bitmap'] as const),
] as const;
export type Kind = (typeof KINDS)[number];

/** All sequences of one to `most` kinds that begin with these. */
export function* sequences(first: readonly Kind[], most: number): Generator<readonly Kind[]> {
  if (first.length > 0) yield first;
  if (first.length < most) for (const kind of KINDS) yield* sequences([...first, kind], most);
}

const CLUSTER_BYTES = 4096;
const DISK_BYTES = 6 * CLUSTER_BYTES;
const SECTORS_A_CLUSTER = CLUSTER_BYTES / SECTOR_BYTES;

/** What of the write cache is kept: nothing, all, and drawn parts. */
const LOSSES: readonly LossMode[] = ['nothing', 'everything', 'requests', 'sectors', 'sectors'];

/** Operations that leave the disk as it is. */
const LOOKS: ReadonlySet<Operation['kind']> = new Set(['open', 'stat', 'read', 'compute']);

/** What a disk must hold: by sector, the stamps it may have. */
interface Moment extends Allowed {
  /** In its shortest form. */
  readonly text: string;
}

/** A machine as a power loss leaves it, and what must be on it. */
interface CrashState {
  readonly machine: Simulation;
  readonly where: string;
  /** The guest's image, and copies that are done, each with what it must hold. */
  readonly images: ReadonlyMap<string, Moment>;
}

/** The guest's disk, sector by sector: every stamp that it may have after a power loss, the last one for certain now. */
class Disk {
  #sectors: number[][];
  #stamp = 0;

  constructor(sectorCount: number) {
    this.#sectors = Array.from({ length: sectorCount }, () => [0]);
  }

  get sectorCount(): number {
    return this.#sectors.length;
  }

  /** A change begins: of whole sectors, to new stamps or to zeroes. */
  begin(first: number, count: number, toZero: boolean): Buffer {
    const bytes = Buffer.alloc(count * SECTOR_BYTES);
    for (let i = 0; i < count; i++) {
      const stamp = toZero ? 0 : ++this.#stamp;
      if (!toZero) fillSector(bytes, i, stamp);
      this.#sectors[first + i]?.push(stamp);
    }
    return bytes;
  }

  /** The last change has not been made. */
  takeBack(first: number, count: number): void {
    for (let i = first; i < first + count; i++) this.#sectors[i]?.pop();
  }

  grow(sectorCount: number): void {
    while (this.#sectors.length < sectorCount) this.#sectors.push([0]);
  }

  /** All that was written is durable. */
  flushed(): void {
    this.#sectors = this.#sectors.map((stamps) => stamps.slice(-1));
  }

  moment(): Moment {
    const stamps = this.#sectors.map((all) => [...all]);
    return {
      sectorCount: stamps.length,
      at: (sector) => stamps[sector] ?? [],
      text: stamps.map((all) => all.join()).join(' '),
    };
  }

  /** Only what it holds now. */
  now(): Moment {
    const stamps = this.#sectors.map((all) => all.at(-1) ?? 0);
    return { sectorCount: stamps.length, at: (sector) => [stamps[sector] ?? -1], text: stamps.join(' ') };
  }
}

/** What is made wrong, to see that it shows. */
export interface Flaws {
  dropsFlushes?: boolean;
}

/** One run of a sequence, on a machine of its own. */
class Run {
  readonly states: CrashState[] = [];
  readonly #kinds: readonly Kind[];
  readonly #seed: number;
  readonly #random: SeededRandom;
  readonly #simulation: Simulation;
  readonly #every: number;
  readonly #disk = new Disk(DISK_BYTES / SECTOR_BYTES);
  readonly #copies = new Map<string, Moment>();
  #engine: Engine | undefined;
  #guest: BlockBackend | undefined;
  #images = 0;
  #points = 0;
  #at = 'start';

  constructor(kinds: readonly Kind[], seed: number, every: number, { dropsFlushes = false }: Flaws) {
    this.#kinds = kinds;
    this.#seed = seed;
    this.#every = every;
    this.#random = new SeededRandom(seed);
    this.#simulation = createSimulatedHost({
      seed,
      refuseProbability: 0.3,
      ...(dropsFlushes && { dropFlush: () => this.#at !== 'start' }),
      onOperation: (operation) => this.#operation(operation),
    });
  }

  /** Before each change of a file: what would be there if the power went now. */
  #operation({ kind, path, index }: Operation): void {
    if (!this.#guest?.root || LOOKS.has(kind)) return;
    if (this.#points++ % this.#every !== 0) return;
    const { filename } = this.#guest.node.storage;
    const images = new Map(this.#copies).set(filename, this.#disk.moment());
    for (const [i, mode] of LOSSES.entries()) {
      const machine = this.#simulation.ifPowerWent(this.#seed + 10 * index + i, mode);
      const where = `${this.#at}, before ${kind} ${path} (${index}), ${mode} kept`;
      this.states.push({ machine, where, images });
    }
  }

  async run(): Promise<void> {
    await this.#simulation.run(async () => {
      const { host } = this.#simulation;
      const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
      this.#engine = engine;
      await createImage(engine.opener, '/tmp/base', 'qcow2', image());
      await createImage(engine.opener, '/tmp/top', 'qcow2', {
        ...image(),
        backingFile: '/tmp/base',
        backingFormat: 'qcow2',
      });
      await host.files.syncDirectory('/tmp');
      await engine.addNode({ driver: 'qcow2', 'node-name': 'base', file: file('/tmp/base'), backing: null });
      await this.#attach('base');
      await this.#change(0, 4, false);
      await this.#flush();
      await this.#detach();
      await engine.addNode({ driver: 'qcow2', 'node-name': 'top', file: file('/tmp/top'), backing: 'base' });
      await this.#attach('top');
      await this.#change(1, 2, false);
      await this.#flush();
      for (const [i, kind] of this.#kinds.entries()) {
        this.#at = `${i + 1}: ${kind}`;
        await this.#do(kind);
      }
      this.#at = 'end';
      await this.#detach();
      await engine.close();
    });
  }

  async #attach(node: string): Promise<void> {
    const { graph } = defined(this.#engine, 'engine');
    const perm = Permission.consistentRead | Permission.write;
    const guest = graph.createBackend({ description: 'a guest', perm, shared: 15 });
    await graph.transaction((transaction) => void transaction.attach(guest, 'root', graph.node(node)));
    this.#guest = guest;
  }

  async #detach(): Promise<void> {
    const { graph } = defined(this.#engine, 'engine');
    const root = defined(this.#guest?.root, 'root');
    await graph.transaction((transaction) => transaction.detach(root));
  }

  #backend(): BlockBackend {
    return defined(this.#guest, 'guest');
  }

  /** Of clusters, less a sector at the end: so that some of the old is to be kept. */
  async #change(cluster: number, clusters: number, toZero: boolean): Promise<void> {
    const first = cluster * SECTORS_A_CLUSTER;
    const count = clusters * SECTORS_A_CLUSTER - 1;
    const bytes = this.#disk.begin(first, count, toZero);
    if (toZero) await this.#backend().writeZeroes(first * SECTOR_BYTES, bytes.length);
    else await this.#backend().write(first * SECTOR_BYTES, bytes);
  }

  async #flush(): Promise<void> {
    await this.#backend().flush();
    this.#disk.flushed();
  }

  async #do(kind: Kind): Promise<void> {
    switch (kind) {
      case 'write':
        return this.#change(this.#random.below(4), 2, false);
      case 'zero':
        return this.#change(this.#random.below(4), 2, true);
      case 'discard': {
        const first = this.#random.below(5) * SECTORS_A_CLUSTER;
        this.#disk.begin(first, SECTORS_A_CLUSTER, true);
        await this.#backend().discard(first * SECTOR_BYTES, CLUSTER_BYTES);
        // A discard may do nothing, and does where the node ignores them.
        const found = Buffer.alloc(CLUSTER_BYTES);
        await this.#backend().read(first * SECTOR_BYTES, found);
        if (!isZero(found)) this.#disk.takeBack(first, SECTORS_A_CLUSTER);
        return;
      }
      case 'flush':
        return this.#flush();
      case 'snapshot':
        return this.#snapshot();
      case 'commit':
        return this.#commit();
      case 'stream':
        return this.#job('block-stream', { device: this.#top() });
      case 'mirror':
        return this.#mirror();
      case 'backup':
        return this.#backup();
      case 'resize':
        return this.#resize();
      case 'bitmap': {
        const name = `bits${this.#images++}`;
        await this.#execute('block-dirty-bitmap-add', { node: this.#top(), name });
        await this.#change(2, 1, false);
      }
    }
  }

  /** Node of the guest's disk. */
  #top(): string {
    return this.#backend().node.skipFilters().name;
  }

  async #execute(command: string, args: JsonObject): Promise<void> {
    await defined(this.#engine, 'engine').hub.execute(command, args);
  }

  async #snapshot(): Promise<void> {
    const name = `over${this.#images++}`;
    await this.#execute('blockdev-snapshot-sync', {
      ...{ 'node-name': this.#top(), 'snapshot-node-name': name, format: 'qcow2' },
      'snapshot-file': `/tmp/${name}`,
    });
  }

  /** Of the active layer, which a guest writes meanwhile. */
  async #commit(): Promise<void> {
    const { node } = this.#backend();
    const base = node.backingNode();
    if (!base) return;
    const old = this.#top();
    await this.#job('block-commit', { device: old, 'base-node': base.name });
    const { graph } = defined(this.#engine, 'engine');
    if (graph.nodes.has(old)) await this.#execute('blockdev-del', { 'node-name': old });
  }

  async #mirror(): Promise<void> {
    const name = await this.#target();
    await this.#job('blockdev-mirror', { device: this.#top(), target: name, sync: 'full' });
  }

  /** The copy holds the moment of its start, durably when the job is over. */
  async #backup(): Promise<void> {
    const name = await this.#target();
    const moment = this.#disk.now();
    await this.#job('blockdev-backup', { device: this.#top(), target: name, sync: 'full' });
    this.#copies.set(`/tmp/${name}`, moment);
    await this.#execute('blockdev-del', { 'node-name': name });
  }

  async #target(): Promise<string> {
    const { opener, host } = defined(this.#engine, 'engine');
    const name = `copy${this.#images++}`;
    const sizeBytes = this.#disk.sectorCount * SECTOR_BYTES;
    await createImage(opener, `/tmp/${name}`, 'qcow2', { ...image(), sizeBytes });
    // As who manages disks does before something depends on the name.
    await host.files.syncDirectory('/tmp');
    await this.#execute('blockdev-add', { driver: 'qcow2', 'node-name': name, file: file(`/tmp/${name}`) });
    return name;
  }

  async #resize(): Promise<void> {
    const sizeBytes = (this.#disk.sectorCount + SECTORS_A_CLUSTER) * SECTOR_BYTES;
    this.#disk.grow(this.#disk.sectorCount + SECTORS_A_CLUSTER);
    await this.#execute('block_resize', { 'node-name': this.#top(), size: sizeBytes });
  }

  /** Runs a job to its end, a guest writing meanwhile. */
  async #job(command: string, args: JsonObject): Promise<void> {
    const { jobs } = defined(this.#engine, 'engine');
    const id = `job${this.#images++}`;
    await this.#execute(command, { ...args, 'job-id': id });
    const job = defined(jobs.find(id), id);
    const { clock } = this.#simulation.host;
    await this.#change(this.#random.below(5), 1, false);
    while (!job.isReady && !job.isOver) await clock.sleep(1);
    if (job.isReady) await this.#execute('block-job-complete', { device: id });
    await job.result();
  }
}

function image(): { sizeBytes: number; options: JsonObject } {
  return { sizeBytes: DISK_BYTES, options: { 'cluster-size': CLUSTER_BYTES } };
}

function file(filename: string): JsonObject {
  return { driver: 'file', filename };
}

/** What is wrong with the images of a machine whose power went; undefined: nothing. */
async function problemIn({ machine, images }: CrashState): Promise<string | undefined> {
  return machine.run(async () => {
    const bed = new TestBed(machine.host, allDrivers, '/tmp');
    for (const [path, moment] of images) {
      const disk = await bed.open({ driver: 'qcow2', file: file(path) });
      const content = await disk.readAll();
      const problem = problemOf(content, moment);
      if (problem !== undefined) return `${path}: ${problem}`;
      for (
        let node = disk.node.skipFilters() as typeof disk.node | undefined;
        node;
        node = node.backingNode()
      ) {
        const lines: string[] = [];
        const found = await node.instance.check?.('none', (line) => void lines.push(line));
        if (found && found.corruptions + found.checkErrors > 0)
          return `${node.filename}: ${lines.join('; ')}`;
      }
      await disk.close();
    }
    return undefined;
  });
}

/** What must be found, and what is there: states that are alike in both need be looked at once. */
function keyOf({ machine, images }: CrashState): string {
  const parts: string[] = [];
  for (const [path, { text }] of images) parts.push(path, text);
  for (const path of machine.paths()) parts.push(path, machine.contentOf(path)?.toString('latin1') ?? '');
  return parts.join('\n');
}

/**
 * Runs a sequence, and looks at every state that a power loss may leave: at each `every`th change of a file. Answers how
 * many there were. Errors: what is wrong with one, and which.
 */
export async function proveSequence(
  kinds: readonly Kind[],
  seed: number,
  every = 1,
  flaws: Flaws = {},
): Promise<number> {
  const run = new Run(kinds, seed, every, flaws);
  await run.run();
  const known = new Set<string>();
  for (const state of run.states) {
    const key = keyOf(state);
    if (known.has(key)) continue;
    known.add(key);
    const problem = await problemIn(state).catch((error: unknown) => String(error));
    if (problem !== undefined)
      throw new Error(`${kinds.join(' ')} (seed ${seed}), ${state.where}: ${problem}`);
  }
  return run.states.length;
}
