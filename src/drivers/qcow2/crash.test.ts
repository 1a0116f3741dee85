import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CreateOptions, NodeOptions } from '../../block/driver.js';
import { Flag } from '../../block/request.js';
import { type CrashState, crashStates, seededBelow } from '../../testing/crash-states.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../testing/recorded-disk.js';
import { checkQcow2 } from './check.js';
import { createQcow2 } from './create.js';
import { qcow2Driver } from './driver.js';

const SECTOR = 512;

/** Sectors of a disk with all the values each ever had; a stamp (0: zeroes) fills a sector. */
class SectorModel {
  readonly versions: number[][];
  readonly #flushed = new Map<string, number[]>();
  #stamp: number;

  constructor(initial: readonly number[], firstStamp: number) {
    this.versions = initial.map((stamp) => [stamp]);
    this.#stamp = firstStamp;
  }

  /** A fresh stamp in [from, from + count); answers the bytes. */
  write(from: number, count: number): Buffer {
    const bytes = Buffer.alloc(count * SECTOR);
    for (let i = 0; i < count; i++) {
      const stamp = this.#stamp++;
      bytes.fill(stampBytes(stamp), i * SECTOR, (i + 1) * SECTOR);
      this.versions[from + i]?.push(stamp);
    }
    return bytes;
  }

  zero(from: number, count: number): void {
    for (let i = from; i < from + count; i++) this.versions[i]?.push(0);
  }

  /** What a flush that begins now makes durable; give it to flushed() when it has ended. */
  position(): number[] {
    return this.versions.map((list) => list.length - 1);
  }

  flushed(label: string, position: number[]): void {
    this.#flushed.set(label, position);
  }

  /** Why content cannot be what a crash left, given the flushes that had ended. */
  problem(content: Buffer, marks: readonly string[]): string | undefined {
    const least = new Array<number>(this.versions.length).fill(0);
    for (const mark of marks) {
      this.#flushed
        .get(mark)
        ?.forEach((index, sector) => (least[sector] = Math.max(least[sector] ?? 0, index)));
    }
    for (let sector = 0; sector * SECTOR < content.length; sector++) {
      const allowed = this.versions[sector]?.slice(least[sector]) ?? [0];
      const bytes = content.subarray(sector * SECTOR, (sector + 1) * SECTOR);
      const stamp = bytes.readUInt32LE(0);
      if (!bytes.equals(Buffer.alloc(SECTOR, stampBytes(stamp)))) return `sector ${sector} is torn`;
      if (!allowed.includes(stamp)) return `sector ${sector} holds ${stamp}, not one of ${allowed.join(' ')}`;
    }
    return undefined;
  }
}

function stampBytes(stamp: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(stamp);
  return bytes;
}

/** One run of a workload on 'top' (over 'base', if it has one), with flush number `drop` left out. */
interface Run {
  top: RecordedDisk;
  base: Buffer | undefined;
  /** Why a crash state is wrong. */
  problem(content: Buffer, marks: readonly string[]): Promise<string | undefined>;
}

type Workload = (drop: number | undefined) => Promise<Run>;

async function firstProblem(run: Run, seed: number): Promise<string | undefined> {
  for (const state of crashStates(run.top, seededBelow(seed))) {
    const problem = await run.problem(state.content, state.marks).catch((error: unknown) => describe(error));
    if (problem !== undefined) return `${describeState(state)}: ${problem}`;
  }
  return undefined;
}

function describe(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}

function describeState(state: CrashState): string {
  return `after [${state.marks.join(' ')}], survived ${state.survived}`;
}

/** Flushes of a run before which something had been written. */
function flushesThatMatter(disk: RecordedDisk): number[] {
  const found: number[] = [];
  let wrote = false;
  let index = 0;
  for (const event of disk.log) {
    if (event.kind === 'write') wrote = true;
    if (event.kind !== 'flush') continue;
    if (wrote) found.push(index);
    wrote = false;
    index++;
  }
  return found;
}

/** No crash breaks the workload, and each of its flushes is needed for that. */
async function everyFlushIsNeeded(workload: Workload, flushesAtLeast: number): Promise<void> {
  const whole = await workload(undefined);
  assert.equal(await firstProblem(whole, 1), undefined);
  const needed = flushesThatMatter(whole.top);
  assert.ok(needed.length >= flushesAtLeast, `${needed.length} flushes`);
  for (const drop of needed) {
    const problem = await firstProblem(await workload(drop), 1);
    assert.ok(problem !== undefined, `without flush ${drop} of ${needed.length} no crash shows a difference`);
  }
}

async function reopened(content: Buffer, base: Buffer | undefined): Promise<OpenDisk> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('top', content);
  if (base) shelf.put('base', base);
  return shelf.open('top', { readOnly: true });
}

async function corruption(content: Buffer): Promise<string | undefined> {
  const found = await checkQcow2(childOf(new RecordedDisk(content)));
  return found.corruptions + found.checkErrors > 0 ? found.messages.join('; ') : undefined;
}

/** Builds the images, runs `steps` on the open top and makes a Run that compares sectors. */
async function sectorRun(
  drop: number | undefined,
  options: {
    sectors: number;
    create: NodeOptions;
    withBase: boolean;
    prepare?: (disk: OpenDisk, model: SectorModel) => Promise<void>;
  },
  steps: (disk: OpenDisk, model: SectorModel, flush: () => Promise<void>) => Promise<void>,
): Promise<Run> {
  const shelf = new DiskShelf([qcow2Driver]);
  const sizeBytes = options.sectors * SECTOR;
  const create: CreateOptions = { sizeBytes, options: options.create };
  let initial = new Array<number>(options.sectors).fill(0);
  if (options.withBase) {
    await createQcow2(childOf(shelf.put('base')), create);
    const base = await shelf.open('base');
    const model = new SectorModel(initial, 1_000_000);
    await base.backend.write(0, model.write(0, options.sectors));
    await base.close();
    initial = model.versions.map((list) => list.at(-1) ?? 0);
    Object.assign(create, { backingFile: 'base', backingFormat: 'qcow2' });
  }
  await createQcow2(childOf(shelf.put('top')), create);
  let model = new SectorModel(initial, 1);
  if (options.prepare) {
    const disk = await shelf.open('top');
    await options.prepare(disk, model);
    await disk.close();
    model = new SectorModel(
      model.versions.map((list) => list.at(-1) ?? 0),
      100_000,
    );
  }
  // Recording begins with what is there now.
  const top = shelf.put('top', shelf.disk('top').contents());
  if (drop !== undefined) top.dropFlush = (index) => index === drop;
  const disk = await shelf.open('top');
  let flushes = 0;
  await steps(disk, model, async () => {
    const position = model.position();
    await disk.backend.flush();
    const label = `flush${flushes++}`;
    model.flushed(label, position);
    top.mark(label);
  });
  const base = options.withBase ? shelf.disk('base').contents() : undefined;
  return {
    top,
    base,
    problem: async (content, marks) => {
      const corrupt = await corruption(content);
      if (corrupt !== undefined) return corrupt;
      const disk = await reopened(content, base);
      return model.problem(await disk.read(0, sizeBytes), marks);
    },
  };
}

async function write(disk: OpenDisk, model: SectorModel, from: number, count: number): Promise<void> {
  await disk.backend.write(from * SECTOR, model.write(from, count));
}

test('allocating writes over a backing file: every flush is needed, no crash breaks the image', async () => {
  await everyFlushIsNeeded(
    (drop) =>
      sectorRun(
        drop,
        { sectors: 256, create: { 'cluster-size': 4096 }, withBase: true },
        async (disk, model, flush) => {
          await write(disk, model, 3, 10);
          await flush();
          await write(disk, model, 3, 2);
          await write(disk, model, 40, 3);
          await flush();
          await write(disk, model, 200, 30);
          await flush();
        },
      ),
    6,
  );
});

test('discard, zero and reuse of clusters: nobody sees foreign data', async () => {
  await everyFlushIsNeeded(
    (drop) =>
      sectorRun(
        drop,
        {
          sectors: 128,
          create: { 'cluster-size': 512 },
          withBase: true,
          prepare: (disk, model) => write(disk, model, 0, 64),
        },
        async (disk, model, flush) => {
          await disk.backend.discard(0, 16 * SECTOR);
          model.zero(0, 16);
          await flush();
          await write(disk, model, 80, 8);
          await flush();
          await write(disk, model, 100, 8);
          await disk.backend.writeZeroes(32 * SECTOR, 8 * SECTOR, Flag.none);
          model.zero(32, 8);
          await flush();
          await write(disk, model, 34, 2);
          await flush();
        },
      ),
    6,
  );
});

test('without a flush, writes and discards in any mix leave each sector old or new', async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const below = seededBelow(seed * 7919);
    const unit = 1 + below(2);
    const run = await sectorRun(
      undefined,
      {
        sectors: 160,
        create: { 'cluster-size': unit * SECTOR, 'refcount-bits': 64 },
        withBase: below(2) === 0,
      },
      async (disk, model, flush) => {
        for (let i = 0; i < 14; i++) {
          const from = below(150);
          const count = 1 + below(10);
          switch (below(6)) {
            case 0: {
              await disk.backend.discard(from * SECTOR, count * SECTOR);
              const first = Math.ceil(from / unit) * unit;
              model.zero(first, Math.max(0, Math.floor((from + count) / unit) * unit - first));
              break;
            }
            case 1:
              await disk.backend.writeZeroes(from * SECTOR, count * SECTOR, below(2) ? Flag.mayUnmap : 0);
              model.zero(from, count);
              break;
            case 2:
              await flush();
              break;
            default: {
              // Requests run while a flush does.
              const others = below(3) === 0 ? flush() : undefined;
              await write(disk, model, from, count);
              await others;
            }
          }
        }
      },
    );
    assert.equal(await firstProblem(run, seed), undefined, `seed ${seed}`);
  }
});

test('the refcount table grows: every flush is needed', async () => {
  // 64-bit refcounts in 512-byte clusters: one block describes 32 KiB, one table cluster 2 MiB.
  const sectors = 3970;
  await everyFlushIsNeeded(
    (drop) =>
      sectorRun(
        drop,
        {
          sectors,
          create: { 'cluster-size': 512, 'refcount-bits': 64 },
          withBase: false,
          prepare: (disk, model) => write(disk, model, 0, 3890),
        },
        async (disk, model, flush) => {
          await write(disk, model, 3890, 80);
          await flush();
        },
      ),
    3,
  );
});
