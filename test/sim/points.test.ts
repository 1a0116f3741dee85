import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { deferred } from '../../src/base/async.js';
import { allDrivers } from '../../src/drivers/index.js';
import { type LossMode, Simulation } from '../../src/host/simulated.js';
import { Disk } from '../../src/library/disk.js';
import { Engine } from '../../src/monitor/engine.js';
import type { CommandResult } from '../../src/schema/commands.js';

/** A disk whose points are made, deleted and gone back to while the power may go at each step. */

const KiB = 1024;
const DISK_BYTES = 256 * KiB;
const PIECE_BYTES = 32 * KiB;
const FIRST = '/tmp/a.qcow2';
/** POINT_SEEDS=1,2,3: other power losses; each takes half a second. */
const SEEDS = (process.env['POINT_SEEDS'] ?? '1').split(',').map(Number);
const MODES: readonly LossMode[] = ['nothing', 'everything', 'sectors', 'requests'];

type Listed = CommandResult<'x-point-list'>['disks'][number];

/** An engine with the disk open, and a guest of it. */
class Bed {
  readonly engine: Engine;
  readonly disk: Disk;

  private constructor(engine: Engine, disk: Disk) {
    this.engine = engine;
    this.disk = disk;
  }

  static async open({ host }: Simulation, image: string, isReader = false): Promise<Bed> {
    const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
    const node = await engine.opener.openImage(image, 'qcow2', { readOnly: isReader });
    return new Bed(engine, await Disk.open(engine.graph, node, { writable: !isReader }));
  }

  async write(piece: number, byte: number): Promise<void> {
    await this.disk.write(piece * PIECE_BYTES, Buffer.alloc(PIECE_BYTES, byte));
    await this.disk.flush();
  }

  /** One byte of each piece, which are all alike. */
  async content(): Promise<string> {
    const bytes = Buffer.alloc(DISK_BYTES);
    await this.disk.read(0, bytes);
    const pieces: string[] = [];
    for (let at = 0; at < DISK_BYTES; at += PIECE_BYTES) {
      const piece = bytes.subarray(at, at + PIECE_BYTES);
      pieces.push(piece.every((byte) => byte === piece[0]) ? String(piece[0]) : 'mixed');
    }
    return pieces.join(' ');
  }

  async list(): Promise<Listed> {
    const { disks } = await this.engine.execute('x-point-list', {});
    const [disk] = disks;
    assert.ok(disk);
    return disk;
  }

  /** Deletes points, asked for in a row, and waits until the copying is done. */
  async delete(...names: string[]): Promise<void> {
    const ended = deferred();
    const errors: unknown[] = [];
    const stop = this.engine.onEvent((event, data) => {
      if (event !== 'x-point-deleted') return;
      errors.push(data['error']);
      if (errors.length === names.length) ended.resolve();
    });
    for (const name of names) await this.engine.execute('x-point-delete', { name });
    await ended.promise;
    stop();
    assert.deepEqual(
      errors,
      names.map(() => undefined),
    );
  }
}

/** What a disk with points holds, and where. */
interface Scene {
  /** By a point's name, and that of the disk ('now'). */
  readonly contents: Map<string, string>;
  active: string;
}

/** Points p1 to p3, a piece or two written after each. */
async function setUp(simulation: Simulation): Promise<Scene> {
  const scene: Scene = { contents: new Map(), active: FIRST };
  const first = new Engine({ host: simulation.host, drivers: allDrivers, kind: 'storage-daemon' });
  await createImage(first.opener, FIRST, 'qcow2', {
    ...{ sizeBytes: DISK_BYTES, options: { 'cluster-size': 4096 } },
  });
  await first.close();
  const bed = await Bed.open(simulation, FIRST);
  for (let i = 0; i < 4; i++) await bed.write(i, 1);
  for (const [i, name] of ['p1', 'p2', 'p3'].entries()) {
    scene.contents.set(name, await bed.content());
    await bed.engine.execute('x-point-create', { name });
    await bed.write(i, 2 + i);
    await bed.write(i + 3, 12 + i);
  }
  scene.contents.set('now', await bed.content());
  scene.active = (await bed.list()).file;
  await bed.engine.close();
  return scene;
}

interface Crash {
  readonly after: Simulation;
  readonly what: string;
  /** The guest has written and flushed since. */
  readonly hasWritten: boolean;
}

interface Case {
  /** So many steps lie between two of which it is looked what a power loss leaves. */
  readonly everyNth: number;
  readonly work: (bed: Bed) => Promise<unknown>;
  /** Points that are usable afterwards, */
  readonly after: readonly string[];
  /** and when it is half done. */
  readonly between?: readonly string[];
  /** What the disk shows afterwards: that of a point, or as it did. */
  readonly shows?: string;
}

const CASES: Readonly<Record<string, Case>> = {
  create: {
    everyNth: 2,
    work: (bed) => bed.engine.execute('x-point-create', { name: 'p4' }),
    after: ['p1', 'p2', 'p3', 'p4'],
  },
  'create, and delete the one before': {
    everyNth: 2,
    work: async (bed) => {
      await bed.engine.execute('x-point-create', { name: 'p4' });
      await bed.delete('p3');
    },
    between: ['p1', 'p2', 'p3', 'p4'],
    after: ['p1', 'p2', 'p4'],
  },
  'delete the first': { everyNth: 1, work: (bed) => bed.delete('p1'), after: ['p2', 'p3'] },
  'delete one between': { everyNth: 2, work: (bed) => bed.delete('p2'), after: ['p1', 'p3'] },
  'delete the last': { everyNth: 2, work: (bed) => bed.delete('p3'), after: ['p1', 'p2'] },
  'delete two in a row': {
    everyNth: 1,
    work: (bed) => bed.delete('p1', 'p2'),
    between: ['p2', 'p3'],
    after: ['p3'],
  },
  'delete two in a row, the later first': {
    everyNth: 1,
    work: (bed) => bed.delete('p3', 'p2'),
    between: ['p1', 'p2'],
    after: ['p1'],
  },
  revert: {
    everyNth: 1,
    work: (bed) => bed.engine.execute('x-point-revert', { name: 'p2' }),
    after: ['p1', 'p2'],
    shows: 'p2',
  },
  'revert to an image': {
    everyNth: 1,
    work: async (bed) => {
      const image = (await bed.list()).points.find(({ name }) => name === 'p2')?.node ?? '';
      await bed.engine.execute('x-point-revert', { image });
    },
    after: ['p1', 'p2'],
    shows: 'p2',
  },
};

const BEFORE = ['p1', 'p2', 'p3'];
/** What the guest writes when the work is done. */
const LATER = { piece: 7, byte: 99 };

/** Runs a case and keeps what the disk would be had the power gone. */
async function crashesOf(
  seed: number,
  { work, shows, everyNth }: Case,
): Promise<{ scene: Scene; crashes: Crash[] }> {
  const crashes: Crash[] = [];
  let isWatching = false;
  let hasWritten = false;
  let count = 0;
  const onOperation = ({ kind, path, index }: { kind: string; path: string; index: number }): void => {
    if (!isWatching || !['write', 'flush', 'create', 'unlink', 'syncDirectory', 'truncate'].includes(kind))
      return;
    if (count++ % everyNth !== seed % everyNth) return;
    const mode = MODES[crashes.length % MODES.length] ?? 'nothing';
    const after = simulation.ifPowerWent(seed * 1000 + index, mode);
    crashes.push({ after, what: `before ${kind} ${path} (${index}, ${mode})`, hasWritten });
  };
  const simulation: Simulation = new Simulation({ seed, onOperation });
  const scene = await simulation.run(async () => {
    const made = await setUp(simulation);
    const bed = await Bed.open(simulation, made.active, shows !== undefined);
    isWatching = true;
    await work(bed);
    if (shows === undefined) {
      await bed.write(LATER.piece, LATER.byte);
      hasWritten = true;
      await bed.disk.flush();
      await bed.write(LATER.piece, LATER.byte);
    }
    isWatching = false;
    const last = simulation.ifPowerWent(seed, 'nothing');
    await bed.engine.close();
    crashes.push({ after: last, what: 'at the end', hasWritten });
    return made;
  });
  return { scene, crashes };
}

/** The disk as the next one who opens it finds it: `image`, or what is told to be the active one. */
async function openNext(after: Simulation, image: string): Promise<{ bed: Bed; listed: Listed }> {
  const bed = await Bed.open(after, image, true);
  const listed = await bed.list();
  const elsewhere = listed['active-elsewhere'];
  if (elsewhere === undefined) return { bed, listed };
  await bed.engine.close();
  return openNext(after, elsewhere);
}

for (const [name, one] of Object.entries(CASES))
  test(`${name}: wherever the power goes, the disk and its points are as before or as after`, async () => {
    for (const seed of SEEDS) {
      const { scene, crashes } = await crashesOf(seed, one);
      assert.ok(crashes.length > 9, String(crashes.length));
      const seen = new Set<string>();
      for (const { after, what, hasWritten } of crashes)
        await after.run(async () => {
          // Who had the answer knows the new active image; who had not, the old one.
          const { bed, listed } = await openNext(after, scene.active);
          const usable = listed.points.filter(({ state }) => state === 'usable');
          const names = usable.map((point) => point.name).join(' ');
          seen.add(names);
          const states = [BEFORE, one.after, one.between ?? one.after].map((state) => state.join(' '));
          assert.ok(states.includes(names), `${what}: ${names}`);
          const shown = await bed.content();
          const now = scene.contents.get('now') ?? '';
          const expected = [now, withLater(now)];
          if (one.shows !== undefined) expected.push(scene.contents.get(one.shows) ?? '');
          assert.ok((hasWritten ? [withLater(now)] : expected).includes(shown), `${what}: ${shown}`);
          await bed.engine.close();
          for (const { name: point, file = '' } of usable) {
            const reader = await Bed.open(after, file, true);
            assert.equal(await reader.content(), scene.contents.get(point) ?? now, `${what}: ${point}`);
            await reader.engine.close();
          }
          await finishDeletions(after, listed, shown, what);
        });
      assert.ok(seen.size >= 2, [...seen].join('; '));
    }
  });

/** Deletions that a power loss has cut short go on when they are asked for again, in any order; then no image is left over. */
async function finishDeletions(
  after: Simulation,
  { file, points }: Listed,
  shown: string,
  what: string,
): Promise<void> {
  const names = points.filter(({ state }) => state === 'deleting').map(({ name }) => name);
  if (names.length === 0) return;
  const bed = await Bed.open(after, file);
  await bed.delete(...(what.length % 2 === 0 ? names : names.reverse()));
  assert.equal(await bed.content(), shown, what);
  const { points: left } = await bed.list();
  const imageCount = [...bed.engine.graph.nodes.values()].filter(
    ({ driver }) => driver.name === 'qcow2',
  ).length;
  assert.equal(imageCount, left.length + 1, what);
  await bed.engine.close();
}

function withLater(content: string): string {
  const pieces = content.split(' ');
  pieces[LATER.piece] = String(LATER.byte);
  return pieces.join(' ');
}

test('the first point: wherever the power goes, it is there or there is none, and a next one can be made', async () => {
  for (const seed of SEEDS) {
    const crashes: Array<{ after: Simulation; what: string }> = [];
    let isWatching = false;
    const onOperation = ({ kind, path, index }: { kind: string; path: string; index: number }): void => {
      if (!isWatching) return;
      const mode = MODES[index % MODES.length] ?? 'nothing';
      const after = simulation.ifPowerWent(seed * 1000 + index, mode);
      crashes.push({ after, what: `before ${kind} ${path} (${index}, ${mode})` });
    };
    const simulation: Simulation = new Simulation({ seed, onOperation });
    await simulation.run(async () => {
      const maker = new Engine({ host: simulation.host, drivers: allDrivers, kind: 'storage-daemon' });
      await createImage(maker.opener, FIRST, 'qcow2', { sizeBytes: DISK_BYTES });
      await maker.close();
      const bed = await Bed.open(simulation, FIRST);
      isWatching = true;
      await bed.engine.execute('x-point-create', { name: 'p1' });
      isWatching = false;
      await bed.engine.close();
    });
    assert.ok(crashes.some(({ what }) => what.startsWith('before write /tmp/a.points')));
    for (const { after, what } of crashes)
      await after.run(async () => {
        let bed = await Bed.open(after, FIRST);
        const names = ['p2'];
        await bed.engine.execute('x-point-create', { name: 'p2' }).catch(async (error: unknown) => {
          // The point was made: the disk goes on in another image.
          const [, active] = /whose active image is '([^']+)': open that$/.exec(String(error)) ?? [];
          if (active === undefined) throw new Error(what, { cause: error });
          names.push('p1');
          await bed.engine.close();
          bed = await Bed.open(after, active);
          await bed.engine.execute('x-point-create', { name: 'p2' });
        });
        const usable = (await bed.list()).points.filter(({ state }) => state === 'usable');
        for (const name of names)
          assert.ok(
            usable.some((point) => point.name === name),
            what,
          );
        await bed.engine.close();
      });
  }
});
