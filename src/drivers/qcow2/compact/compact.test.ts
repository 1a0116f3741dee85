import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { describeState, flushesThatMatter } from '../../../../test/kit/crash-runs.js';
import { addKept } from '../../../../test/kit/kept-bitmaps.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import type { ImageCompaction, NodeOptions } from '../../../block/driver.js';
import { showSnapshot } from '../../../block/internal-snapshots.js';
import { Flag } from '../../../block/request.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';

interface Kind {
  create: NodeOptions & { 'cluster-size': number };
  snapshots?: boolean;
  bitmaps?: boolean;
  compressed?: boolean;
  clusters?: number;
}

const KINDS: Readonly<Record<string, Kind>> = {
  plain: { create: { 'cluster-size': 512 } },
  'version 2': { create: { 'cluster-size': 1024, version: 'v2' } },
  snapshots: { create: { 'cluster-size': 512 }, snapshots: true },
  bitmaps: { create: { 'cluster-size': 512 }, bitmaps: true },
  compressed: { create: { 'cluster-size': 4096 }, compressed: true, clusters: 40 },
  'compressed, refcounts of a bit': {
    create: { 'cluster-size': 4096, 'refcount-bits': 1 },
    compressed: true,
    clusters: 40,
  },
  'compressed, snapshots': {
    create: { 'cluster-size': 4096 },
    compressed: true,
    snapshots: true,
    clusters: 40,
  },
  subclusters: { create: { 'cluster-size': 16384, 'extended-l2': true }, snapshots: true, clusters: 30 },
  'wide refcounts, all of it': {
    create: { 'cluster-size': 512, 'refcount-bits': 64 },
    snapshots: true,
    bitmaps: true,
    clusters: 160,
  },
};

/** An image that has been written to and has lost much of that again. */
async function worn(
  { create, snapshots, bitmaps, compressed, clusters = 100 }: Kind,
  seed: number,
): Promise<Buffer> {
  const below = seededBelow(seed);
  const cluster = create['cluster-size'];
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: clusters * cluster, options: create });
  const disk = await shelf.open('image');
  if (bitmaps === true) {
    addKept(disk.node, 'some');
    addKept(disk.node, 'all').setAll();
  }
  for (let step = 0; step < 60; step++) {
    const at = below(clusters) * cluster;
    const length = Math.min((1 + below(8)) * cluster, clusters * cluster - at);
    if (snapshots === true && step % 25 === 20)
      await disk.node.instance.snapshots?.take({
        ...{ name: `s${step}`, dateSec: 1, dateNsec: 2, clockNs: 3n, icount: -1n },
      });
    const bytes = Buffer.alloc(length, 1 + (step % 250));
    for (let i = 0; i < length; i += 1 + below(40)) bytes[i] = below(256);
    if (step % 3 === 2 && step > 20) await disk.backend.discard(at, length);
    else if (compressed === true && step % 2 === 0)
      for (let done = 0; done < length; done += cluster)
        await writeCompressed(disk, at + done, bytes.subarray(done, done + cluster));
    else await disk.backend.write(at + below(2) * 100, bytes.subarray(0, length - 100));
    if (step % 10 === 0) await disk.backend.flush();
  }
  await disk.backend.discard(0, Math.floor(clusters / 3) * cluster);
  await disk.close();
  return shelf.disk('image').contents();
}

/** One that has data already gets it as it is. */
async function writeCompressed(disk: OpenDisk, at: number, bytes: Buffer): Promise<void> {
  await disk.backend.discard(at, bytes.length);
  await disk.backend.write(at, bytes, Flag.compressed);
}

/** What an image shows: the disk, each snapshot, and which bitmaps it keeps. */
async function shown(image: Buffer): Promise<Record<string, string>> {
  const open = async (): Promise<OpenDisk> => {
    const shelf = new DiskShelf([qcow2Driver]);
    shelf.put('image', image);
    return shelf.open('image', { readOnly: true });
  };
  const disk = await open();
  const answer: Record<string, string> = {
    '': (await disk.read(0, disk.node.lengthBytes)).toString('latin1'),
    bitmaps: disk.node.dirtyBitmaps.map((bitmap) => `${bitmap.name} ${bitmap.dirtyBytes}`).join(),
  };
  const names = disk.instance.snapshots?.list.map(({ name }) => name) ?? [];
  await disk.close();
  for (const name of names) {
    const then = await open();
    await showSnapshot(then.node, { name });
    answer[name] = (await then.read(0, then.node.lengthBytes)).toString('latin1');
    await then.close();
  }
  return answer;
}

async function compact(file: RecordedDisk, isDryRun = false): Promise<ImageCompaction> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.disks.set('image', file);
  const disk = await shelf.open('image', { forCheck: true, readOnly: isDryRun });
  const result = await disk.instance.compact?.({ isDryRun });
  await disk.close();
  assert.ok(result);
  return result;
}

/** Free clusters before the last one in use. */
async function holes(file: RecordedDisk): Promise<number> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.disks.set('image', file);
  const disk = await shelf.open('image', { readOnly: true });
  const use = await disk.instance.fileUse?.();
  await disk.close();
  assert.ok(use);
  return use.freeBytes / use.clusterBytes;
}

const findings = async (image: Buffer): Promise<string[]> =>
  (await checkQcow2(childOf(new RecordedDisk(image)))).messages;

for (const [name, kind] of Object.entries(KINDS))
  test(`${name}: a compact file shows the same, and has no hole that what is behind it would fit into`, async () => {
    for (let seed = 1; seed <= 4; seed++) {
      const image = await worn(kind, seed);
      const before = await shown(image);
      const file = new RecordedDisk(image);
      const foreseen = await compact(file, true);
      assert.ok(file.contents().equals(image), 'a dry run changes nothing');
      const result = await compact(file);
      const after = file.contents();
      assert.deepEqual(await findings(after), []);
      assert.deepEqual(await shown(after), before);
      assert.equal(result.lengthBytes, after.length);
      assert.equal(result.formerBytes, image.length);
      assert.ok((await holes(file)) <= 4, `${await holes(file)} holes`);
      const cluster = kind.create['cluster-size'];
      assert.ok(
        result.lengthBytes < image.length && result.movedBytes > 0,
        `${image.length} ${after.length}`,
      );
      assert.ok(
        Math.abs(foreseen.lengthBytes - result.lengthBytes) <= 4 * cluster,
        JSON.stringify([foreseen, result]),
      );
      const again = await compact(file);
      assert.ok(again.movedBytes <= cluster, JSON.stringify(again));
    }
  });

/** Why a state that a crash left is wrong. */
async function crashProblem(content: Buffer, before: Record<string, string>): Promise<string | undefined> {
  const found = await checkQcow2(childOf(new RecordedDisk(content)));
  if (found.corruptions + found.checkErrors > 0) return found.messages.join('; ');
  const after = await shown(content);
  const other = Object.keys(before).filter((name) => after[name] !== before[name]);
  return other.length > 0 ? `what '${other.join()}' shows` : undefined;
}

/** A compaction whose flush number `drop` does nothing. */
async function recorded(image: Buffer, drop?: number): Promise<RecordedDisk> {
  const file = new RecordedDisk(image);
  if (drop !== undefined) file.dropFlush = (index) => index === drop;
  await compact(file);
  return file;
}

async function firstProblem(file: RecordedDisk, before: Record<string, string>): Promise<string | undefined> {
  for (const state of crashStates(file, seededBelow(7), 2)) {
    const problem = await crashProblem(state.content, before).catch((error: unknown) => String(error));
    if (problem !== undefined) return `${describeState(state)}: ${problem}`;
  }
  return undefined;
}

for (const [name, kind] of Object.entries(KINDS))
  test(`${name}: no crash in the middle changes what an image shows, and it leaves leaks at most`, async () => {
    const image = await worn({ ...kind, clusters: Math.min(40, kind.clusters ?? 40) }, 5);
    assert.equal(await firstProblem(await recorded(image), await shown(image)), undefined);
  });

test('what was begun before a crash goes on, and nothing of it is left over', async () => {
  const kind = { ...KINDS['wide refcounts, all of it'], create: { 'cluster-size': 512 }, clusters: 60 };
  const image = await worn(kind, 6);
  const before = await shown(image);
  const whole = await recorded(image);
  for (const { content } of crashStates(whole, seededBelow(8), 0)) {
    const file = new RecordedDisk(content);
    await compact(file);
    assert.deepEqual(await findings(file.contents()), []);
    assert.deepEqual(await shown(file.contents()), before);
    assert.ok(file.lengthBytes <= whole.lengthBytes + 512, `${file.lengthBytes} ${whole.lengthBytes}`);
  }
});

test('flushes stand between copies, what names them, and refcounts that fall', async () => {
  // In this one clusters of several owners move, and the header does not change.
  const image = await worn({ create: { 'cluster-size': 512 }, snapshots: true, clusters: 60 }, 8);
  const before = await shown(image);
  const needed: number[] = [];
  for (const drop of flushesThatMatter(await recorded(image)))
    if ((await firstProblem(await recorded(image, drop), before)) !== undefined) needed.push(drop);
  assert.ok(needed.length >= 2, `only flushes ${needed.join()} are needed`);
});

test('what cannot be compacted is refused by name, and is what it was', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('data');
  const dataFile = { dataFile: { io: childOf(shelf.disk('data')), filename: 'data' } };
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: 1 << 20, ...dataFile });
  const before = shelf.disk('image').contents();
  const disk = await shelf.open('image', {
    forCheck: true,
    'data-file': { driver: 'file', filename: 'data' },
  });
  await assert.rejects(disk.instance.compact?.({}) ?? Promise.resolve(), /Its data is in another file/);
  await disk.close();
  assert.ok(shelf.disk('image').contents().equals(before));
});

test('an image with errors is refused, and one with leaks loses them', async () => {
  const image = await worn({ create: { 'cluster-size': 512 } }, 3);
  const leaky = Buffer.concat([image, Buffer.alloc(512)]);
  const broken = Buffer.from(image);
  const l1Offset = Number(image.readBigUInt64BE(40));
  const l2Offset = Number(image.readBigUInt64BE(l1Offset) & 0xfffffffffffe00n);
  for (let at = l2Offset; at < l2Offset + 512; at += 8) {
    // An entry lost: its cluster is a leak. An entry twice: its cluster is used more often than it counts.
    if (image.readBigUInt64BE(at) < 512n) continue;
    image.copy(broken, at + 8, at, at + 8);
    leaky.fill(0, at, at + 8);
    break;
  }
  await assert.rejects(compact(new RecordedDisk(broken)), /has errors: it is to be repaired first/);
  const file = new RecordedDisk(leaky);
  assert.equal((await compact(file)).leakedBytes, 512);
  assert.deepEqual(await findings(file.contents()), []);
});
