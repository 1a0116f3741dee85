import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../../../base/error.js';
import type { CreateOptions, NodeOptions } from '../../../block/driver.js';
import { Flag, newMapping } from '../../../block/request.js';
import {
  corruption,
  describeState,
  everyFlushIsNeeded,
  firstProblem,
  reopened,
  type Run,
} from '../../../../test/kit/crash-runs.js';
import { crashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { qcow2Driver } from '../driver.js';
import { FieldOffset } from '../disk/header.js';

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
      // Equal to itself moved by one stamp: the stamp fills the sector.
      if (bytes.compare(bytes, 4, SECTOR, 0, SECTOR - 4) !== 0) return `sector ${sector} is torn`;
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

/** Builds the images, runs `steps` on the open top and makes a Run that compares sectors. */
async function sectorRun(
  drop: number | undefined,
  options: {
    sectors: number;
    create: NodeOptions;
    withBase: boolean;
    prepare?: (disk: OpenDisk, model: SectorModel) => Promise<void>;
    /** The image as it is at first, with what of the model it holds; else an empty one. */
    start?: (model: SectorModel) => Buffer;
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
  let model = new SectorModel(initial, 1);
  if (options.start) shelf.put('top', options.start(model));
  else await createQcow2(childOf(shelf.put('top')), create);
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

/** 128 sectors in 16 clusters, all compressed: a handful of host clusters hold them. */
function compressedStart(model: SectorModel): Buffer {
  const image = new HandmadeQcow2({ sizeBytes: 128 * SECTOR, clusterBytes: 4096, clusters: 64 });
  const content = model.write(0, 128);
  image.compressed(
    0,
    Array.from({ length: 16 }, (_, i) => content.subarray(i * 4096, (i + 1) * 4096)),
  );
  return Buffer.from(image.bytes);
}

test('compressed clusters are overwritten, discarded and their space used again: no crash breaks the image', async () => {
  const run = await sectorRun(
    undefined,
    { sectors: 128, create: {}, withBase: false, start: compressedStart },
    async (disk, model, flush) => {
      await write(disk, model, 3, 10);
      await flush();
      await disk.backend.discard(16 * SECTOR, 64 * SECTOR);
      model.zero(16, 64);
      await flush();
      await write(disk, model, 80, 48);
      await flush();
      await write(disk, model, 16, 30);
      await flush();
    },
  );
  for (const seed of [1, 2, 3]) assert.equal(await firstProblem(run, seed), undefined);
  const left = await checkQcow2(childOf(new RecordedDisk(run.top.contents())));
  assert.deepEqual([left.corruptions, left.leaks, left.compressedClusters], [0, 0, 0]);
});

test('clusters are compressed over a backing file: every flush is needed, no crash breaks the image', async () => {
  const compress = (disk: OpenDisk, model: SectorModel, from: number, count: number): Promise<void> =>
    disk.backend.write(from * SECTOR, model.write(from, count), Flag.compressed);
  await everyFlushIsNeeded(
    (drop) =>
      sectorRun(
        drop,
        { sectors: 256, create: { 'cluster-size': 4096 }, withBase: true },
        async (disk, model, flush) => {
          await compress(disk, model, 0, 64);
          await flush();
          await disk.backend.discard(8 * SECTOR, 16 * SECTOR);
          model.zero(8, 16);
          await flush();
          await compress(disk, model, 8, 16);
          await write(disk, model, 3, 2);
          await flush();
          await compress(disk, model, 128, 64);
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

/** A run whose crash states are judged by `problem` on the opened image; `done` becomes true at the mark 'done'. */
async function headerRun(
  drop: number | undefined,
  top: RecordedDisk,
  base: Buffer | undefined,
  change: (disk: OpenDisk) => Promise<void>,
  problem: (disk: OpenDisk, done: boolean) => Promise<string | undefined>,
): Promise<Run> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.disks.set('top', top);
  if (base) shelf.put('base', base);
  if (drop !== undefined) top.dropFlush = (index) => index === drop;
  const disk = await shelf.open('top', base ? {} : { backing: null });
  await change(disk);
  top.mark('done');
  return {
    top,
    base,
    problem: async (content, marks) => {
      const corrupt = await corruption(content);
      if (corrupt !== undefined) return corrupt;
      const crashed = new DiskShelf([qcow2Driver]);
      crashed.put('top', content);
      if (base) crashed.put('base', base);
      const opened = await crashed.open('top', { readOnly: true, ...(base ? {} : { backing: null }) });
      return problem(opened, marks.includes('done'));
    },
  };
}

async function created(options: CreateOptions): Promise<Buffer> {
  const disk = new RecordedDisk();
  await createQcow2(childOf(disk), options);
  return disk.contents();
}

async function withoutName(options: CreateOptions): Promise<Buffer> {
  const shelf = new DiskShelf([qcow2Driver]);
  const top = shelf.put('top', await created(options));
  const disk = await shelf.open('top', { backing: null });
  await disk.instance.changeBacking?.(undefined, undefined);
  return top.contents();
}

const LONG_NAMES = ['first', 'second'].map((name) => `/${name}`.repeat(60));

for (const [from, to] of [
  ['old.qcow2', 'new.raw'],
  ['old.qcow2', LONG_NAMES[0]],
  [LONG_NAMES[0], LONG_NAMES[1]],
  [LONG_NAMES[1], undefined],
  [undefined, LONG_NAMES[1]],
]) {
  test(`backing file ${from?.slice(0, 12)} to ${to?.slice(0, 12)}: the old or the new one, never a mixture`, async () => {
    // Where there is no name, one was: what is not written is not a name of no length.
    const named = { sizeBytes: 65536, backingFile: from ?? LONG_NAMES[0] ?? '', backingFormat: 'qcow2' };
    const before = from === undefined ? undefined : { filename: from, format: 'qcow2' };
    const after = to === undefined ? undefined : { filename: to, format: 'raw' };
    const content = from === undefined ? await withoutName(named) : await created(named);
    await everyFlushIsNeeded(
      (drop) =>
        headerRun(
          drop,
          new RecordedDisk(content),
          undefined,
          async (disk) => disk.instance.changeBacking?.(to, to === undefined ? undefined : 'raw'),
          async (disk, done) => {
            const found = JSON.stringify(disk.instance.backing);
            if (found === JSON.stringify(after)) return undefined;
            return !done && found === JSON.stringify(before) ? undefined : `backing is ${found}`;
          },
        ),
      (to?.length ?? 0) > 100 ? 2 : 1,
    );
  });
}

test('a change of the backing file that failed leaves each name whole until another one is durable', async () => {
  const names = ['first', 'second', 'third'].map((name) => `/${name}`.repeat(60));
  const options = { 'cluster-size': 4096 };
  const old = { sizeBytes: 65536, backingFile: names[0] ?? '', backingFormat: 'raw', options };
  const shelf = new DiskShelf([qcow2Driver]);
  const top = shelf.put('top', await created(old));
  const disk = await shelf.open('top', { backing: null });
  let switched = false;
  top.failure = (event, offset) => {
    if (event === 'write' && offset === 0) switched = true;
    return event === 'flush' && switched ? errnoError('EIO') : undefined;
  };
  await assert.rejects(async () => disk.instance.changeBacking?.(names[1], 'raw'), { errno: 'EIO' });
  top.failure = () => undefined;
  await disk.instance.changeBacking?.(names[2], 'raw');
  for (const state of crashStates(top, seededBelow(1))) {
    const crashed = new DiskShelf([qcow2Driver]);
    crashed.put('top', state.content);
    const { backing } = (await crashed.open('top', { readOnly: true, backing: null })).instance;
    assert.ok(names.includes(backing?.filename ?? ''), `${describeState(state)}: ${backing?.filename}`);
  }
});

test('growing over a longer backing file: the old size, or the new one with zeroes', async () => {
  const oldBytes = 20 * SECTOR + SECTOR;
  const newBytes = 400 * SECTOR;
  const options = { 'cluster-size': 1024 };
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('base')), { sizeBytes: newBytes, options });
  const baseDisk = await shelf.open('base');
  await baseDisk.backend.write(0, Buffer.alloc(newBytes, 0xbb));
  await baseDisk.close();
  const base = shelf.disk('base').contents();
  const backing = { backingFile: 'base', backingFormat: 'qcow2' };
  const top = shelf.put('top', await created({ sizeBytes: oldBytes, ...backing, options }));
  // The L2 table is there already: the zeroes over the backing file are changes in place, to be durable before
  // the header's sector names the new size.
  const topDisk = await shelf.open('top');
  await topDisk.backend.write(0, Buffer.alloc(SECTOR, 0xbb));
  await topDisk.close();
  const content = top.contents();
  await everyFlushIsNeeded(
    (drop) =>
      headerRun(
        drop,
        new RecordedDisk(content),
        base,
        (disk) => disk.backend.truncate(newBytes),
        async (disk, done) => {
          const size = disk.node.lengthBytes;
          if (size !== newBytes && (done || size !== oldBytes)) return `size ${size}`;
          const expected = Buffer.alloc(size, 0xbb);
          expected.fill(0, oldBytes);
          return (await disk.read(0, size)).equals(expected) ? undefined : 'other content';
        },
      ),
    3,
  );
});

test('growing that failed after the header named the larger L1 table: what is linked next is safe all the same', async () => {
  const oldBytes = 64 * SECTOR;
  const newBytes = 100 * oldBytes;
  const disk = new RecordedDisk();
  const options = { 'cluster-size': SECTOR };
  await createQcow2(childOf(disk), { sizeBytes: oldBytes, options });
  const shelf = new DiskShelf([qcow2Driver]);
  const top = shelf.put('top', disk.contents());
  const open = await shelf.open('top');
  let switched = false;
  let failures = 1;
  top.failure = (event, offset) => {
    if (event === 'write' && offset === 0) switched = true;
    return event === 'flush' && switched && failures-- > 0 ? errnoError('EIO') : undefined;
  };
  await assert.rejects(open.backend.truncate(newBytes));
  await open.backend.write(0, Buffer.alloc(oldBytes, 0x11));
  await open.backend.flush();
  await open.backend.truncate(newBytes);
  await open.close();
  for (const state of crashStates(top, seededBelow(1)))
    assert.equal(await corruption(state.content), undefined, describeState(state));
  const found = await checkQcow2(childOf(new RecordedDisk(top.contents())));
  assert.equal(found.leaks, 0);
});

test('growing hides what a last cluster held behind the old end', async () => {
  const oldBytes = 5 * SECTOR;
  const disk = new RecordedDisk();
  await createQcow2(childOf(disk), { sizeBytes: oldBytes });
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.disks.set('top', disk);
  const open = await shelf.open('top');
  await open.backend.write(0, Buffer.alloc(oldBytes, 1));
  await open.backend.flush();
  const mapping = newMapping();
  assert.ok(open.instance.map?.tryMap(0, oldBytes, mapping));
  await open.close();
  const used = disk.contents().subarray(0, mapping.hostOffset + oldBytes);
  const content = Buffer.concat([used, Buffer.alloc(65536 - oldBytes, 0xdd)]);
  await everyFlushIsNeeded(
    (drop) =>
      headerRun(
        drop,
        new RecordedDisk(content),
        undefined,
        (top) => top.backend.truncate(20 * SECTOR),
        async (top, done) => {
          const size = top.node.lengthBytes;
          if (size !== 20 * SECTOR && (done || size !== oldBytes)) return `size ${size}`;
          const expected = Buffer.alloc(size);
          expected.fill(1, 0, oldBytes);
          return (await top.read(0, size)).equals(expected) ? undefined : 'other content';
        },
      ),
    2,
  );
});

test('making an image over an older one: none or the new one', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('old')), { sizeBytes: 300 * SECTOR, options: { 'cluster-size': 512 } });
  const old = await shelf.open('old');
  await old.backend.write(0, Buffer.alloc(300 * SECTOR, 1));
  await old.close();
  const content = shelf.disk('old').contents();
  await everyFlushIsNeeded(async (drop) => {
    const top = new RecordedDisk(content);
    if (drop !== undefined) top.dropFlush = (index) => index === drop;
    await createQcow2(childOf(top), { sizeBytes: 65536, options: { 'cluster-size': 1024 } });
    top.mark('done');
    return {
      top,
      base: undefined,
      problem: async (crashed, marks) => {
        const done = marks.includes('done');
        if (!done && crashed.readUInt32BE(0) === 0) return undefined;
        const corrupt = await corruption(crashed);
        if (corrupt !== undefined) return corrupt;
        const disk = await reopened(crashed, undefined);
        const size = disk.node.lengthBytes;
        const untouched = !done && size === 300 * SECTOR;
        const expected = Buffer.alloc(size, untouched ? 1 : 0);
        if (!untouched && size !== 65536) return `size ${size}`;
        return (await disk.read(0, size)).equals(expected) ? undefined : 'other content';
      },
    };
  }, 3);
});

test('auto-clear features are cleared durably before anything changes', async () => {
  const disk = new RecordedDisk(await created({ sizeBytes: 64 * SECTOR, options: { 'cluster-size': 512 } }));
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.disks.set('top', disk);
  const before = await shelf.open('top');
  await before.backend.write(0, Buffer.alloc(2 * SECTOR, 9));
  await before.close();
  const content = disk.contents();
  content.writeBigUInt64BE(1n, FieldOffset.autoclear);
  await everyFlushIsNeeded(
    (drop) =>
      headerRun(
        drop,
        new RecordedDisk(content),
        undefined,
        async (top) => {
          await top.backend.write(0, Buffer.alloc(SECTOR, 1));
          // In place: nothing but the flush of the header orders it.
          await top.backend.write(SECTOR, Buffer.alloc(SECTOR, 1));
          await top.backend.flush();
        },
        async (top, done) => {
          const autoclear = Buffer.alloc(8);
          await top.node.child('file').read(FieldOffset.autoclear, autoclear);
          const found = await top.read(0, 2 * SECTOR);
          if (done && found[0] !== 1) return 'flushed data is gone';
          return found.includes(1) && autoclear.readBigUInt64BE(0) !== 0n
            ? 'changed under a promise'
            : undefined;
        },
      ),
    3,
  );
});

test('the mark of a broken image is durable without a flush of a guest', async () => {
  const image = new HandmadeQcow2({ sizeBytes: 4 * 65536, clusters: 16 });
  image.entry(0, BigInt(image.l1Offset) | (1n << 63n));
  const shelf = new DiskShelf([qcow2Driver]);
  const top = shelf.put('top', image.bytes);
  const disk = await shelf.open('top');
  await assert.rejects(disk.backend.write(0, Buffer.alloc(SECTOR, 1)), /Preventing invalid write/);
  // Everything is in memory: nothing of it outlives this turn.
  await new Promise((resolve) => setImmediate(resolve));
  top.mark('marked');
  for (const { content, marks } of crashStates(top, seededBelow(1))) {
    if (marks.includes('marked')) assert.equal(content.readBigUInt64BE(FieldOffset.incompatible), 2n);
  }
});
