import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { InternalSnapshots, NodeOptions } from '../../../block/driver.js';
import { goToSnapshot, showSnapshot } from '../../../block/internal-snapshots.js';
import {
  type CrashState,
  crashStates,
  drawnCrashStates,
  seededBelow,
} from '../../../../test/kit/crash-states.js';
import { flushesThatMatter } from '../../../../test/kit/crash-runs.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';
import { FieldOffset } from '../disk/header.js';

const SECTOR = 512;
const SECTORS = 80;

function snapshotsOf(disk: OpenDisk): InternalSnapshots {
  const { snapshots } = disk.node.instance;
  assert.ok(snapshots);
  return snapshots;
}

const take = (disk: OpenDisk, name: string): Promise<void> =>
  snapshotsOf(disk).take({ name, dateSec: 1, dateNsec: 2, clockNs: 3n, icount: -1n });

/** What a disk and its snapshots hold. */
interface Content {
  disk: Buffer;
  snapshots: ReadonlyMap<string, Buffer>;
}

async function open(content: Buffer, readOnly = false): Promise<{ file: RecordedDisk; disk: OpenDisk }> {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', content);
  return { file, disk: await shelf.open('image', { readOnly }) };
}

async function contentOf(image: Buffer): Promise<Content> {
  const { disk } = await open(image, true);
  const names = snapshotsOf(disk).list.map(({ name }) => name);
  const now = await disk.read(0, disk.node.lengthBytes);
  await disk.close();
  const snapshots = new Map<string, Buffer>();
  for (const name of names) {
    const { disk: shown } = await open(image, true);
    await showSnapshot(shown.node, { name });
    snapshots.set(name, await shown.read(0, shown.node.lengthBytes));
    await shown.close();
  }
  return { disk: now, snapshots };
}

/** A write that was not flushed: each of its sectors may be there. */
const LATER = { from: 30, sectors: 30, fill: 9 };

/** `hasLater`: that write may have been made. */
function isSame(found: Content, expected: Content, hasLater: boolean): boolean {
  if (found.disk.length !== expected.disk.length || found.snapshots.size !== expected.snapshots.size)
    return false;
  for (const [name, bytes] of found.snapshots)
    if (expected.snapshots.get(name)?.equals(bytes) !== true) return false;
  const later = Buffer.alloc(SECTOR, LATER.fill);
  for (let sector = 0; sector * SECTOR < found.disk.length; sector++) {
    const part = found.disk.subarray(sector * SECTOR, (sector + 1) * SECTOR);
    if (part.equals(expected.disk.subarray(sector * SECTOR, (sector + 1) * SECTOR))) continue;
    const isInside = sector >= LATER.from && sector < LATER.from + LATER.sectors;
    if (!hasLater || !isInside || !part.equals(later)) return false;
  }
  return true;
}

/** Two snapshots, and a disk that has something of each and something of its own. */
async function start(create: NodeOptions): Promise<Buffer> {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SECTORS * SECTOR, options: create });
  const disk = await shelf.open('image');
  const write = (at: number, sectors: number, fill: number): Promise<void> =>
    disk.backend.write(at * SECTOR, Buffer.alloc(sectors * SECTOR, fill));
  await write(0, 40, 1);
  await take(disk, 'a');
  await write(10, 10, 2);
  await write(60, 10, 3);
  await take(disk, 'b');
  await write(15, 10, 4);
  await disk.close();
  return shelf.disk('image').contents();
}

const STEPS: Record<string, (disk: OpenDisk) => Promise<void>> = {
  'a snapshot is taken': (disk) => take(disk, 'c'),
  'the disk goes back': (disk) => goToSnapshot(disk.node, '1'),
  'a snapshot is deleted': (disk) => snapshotsOf(disk).delete('1'),
  'the last snapshots are deleted': async (disk) => {
    await snapshotsOf(disk).delete('2');
    await snapshotsOf(disk).delete('1');
  },
};

interface Run {
  file: RecordedDisk;
  /** What there may be after a crash, in the order in which it comes to be; the last one when the step has ended. */
  allowed: Content[];
}

async function run(image: Buffer, step: string, drop?: number): Promise<Run> {
  const { file, disk } = await open(image);
  if (drop !== undefined) file.dropFlush = (index) => index === drop;
  const allowed = [await contentOf(image)];
  await STEPS[step]?.(disk);
  file.mark('done');
  if (step === 'the last snapshots are deleted') {
    const between = await open(image);
    await snapshotsOf(between.disk).delete('2');
    allowed.push(await contentOf(between.file.contents()));
  }
  allowed.push(await contentOf(file.contents()));
  // What is free by now is used again.
  const { from, sectors, fill } = LATER;
  await disk.backend.write(from * SECTOR, Buffer.alloc(sectors * SECTOR, fill));
  await disk.close();
  return { file, allowed };
}

/** Why a crash state cannot be. */
async function problem({ content, marks }: CrashState, { allowed }: Run): Promise<string | undefined> {
  const isV2 = content.readUInt32BE(4) === 2;
  const isDirty = !isV2 && (content.readBigUInt64BE(FieldOffset.incompatible) & 1n) !== 0n;
  const found = await checkQcow2(childOf(new RecordedDisk(content)));
  // Flags may say less or more than is true, of clusters that nobody else needs.
  const harmful = found.messages.filter((text) => !/^(Leaked|ERROR OFLAG_COPIED)/.test(text));
  if (harmful.length > 0) return harmful.join('; ');
  if (found.corruptions > 0 && !isDirty && !isV2) return found.messages.join('; ');
  const isDone = marks.includes('done');
  const after = await contentOf(content);
  const candidates = isDone ? allowed.slice(-1) : allowed;
  if (!candidates.some((one) => isSame(after, one, isDone))) return 'content that cannot be';
  // Whoever goes on writing changes no snapshot.
  const { file, disk } = await open(content);
  await disk.backend.write(0, Buffer.alloc(SECTORS * SECTOR, 0x77));
  await disk.close();
  const last = await contentOf(file.contents());
  for (const [name, bytes] of after.snapshots)
    if (last.snapshots.get(name)?.equals(bytes) !== true) return `snapshot ${name} has changed`;
  const left = await checkQcow2(childOf(file));
  return left.corruptions > 0 && !isV2 ? left.messages.join('; ') : undefined;
}

async function firstProblem(of: Run, states = crashStates): Promise<string | undefined> {
  for (const state of states(of.file, seededBelow(5), 2)) {
    const found = await problem(state, of).catch((error: unknown) => String(error));
    if (found !== undefined) return `after [${state.marks.join(' ')}], survived ${state.survived}: ${found}`;
  }
  return undefined;
}

for (const create of [{ 'cluster-size': 512 }, { 'cluster-size': 1024, version: 'v2' }] as NodeOptions[])
  for (const step of Object.keys(STEPS))
    test(`${step}, ${JSON.stringify(create)}: no crash loses or changes anything`, async () => {
      assert.equal(await firstProblem(await run(await start(create), step), drawnCrashStates), undefined);
    });

test('each flush that comes before the header names something else is needed', async () => {
  const image = await start({ 'cluster-size': 512 });
  for (const step of ['a snapshot is taken', 'the disk goes back', 'a snapshot is deleted']) {
    const whole = await run(image, step);
    const needed: number[] = [];
    for (const drop of flushesThatMatter(whole.file, true))
      if ((await firstProblem(await run(image, step, drop))) !== undefined) needed.push(drop);
    assert.ok(
      needed.length >= 1,
      `${step}: ${needed.join()} of ${flushesThatMatter(whole.file, true).join()}`,
    );
  }
});
