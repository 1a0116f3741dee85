import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  corruption,
  judgeFlushes,
  firstProblem,
  reopened,
  type Run,
  type Workload,
} from '../../../../test/kit/crash-runs.js';
import { addKept } from '../../../../test/kit/kept-bitmaps.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { Permission } from '../../../block/permissions.js';
import { qcow2Driver } from '../driver.js';

const SECTOR = 512;
const SECTORS = 64;
const SIZE = SECTORS * SECTOR;

/** An image with data in its first half and a bitmap 'bits' (none dirty), and 'more', all dirty. */
async function imageWithBitmaps(): Promise<Buffer> {
  const shelf = new DiskShelf([qcow2Driver]);
  const options = { 'cluster-size': 512 };
  await createQcow2(childOf(shelf.put('top')), { sizeBytes: SIZE, options });
  const disk = await shelf.open('top');
  await disk.backend.write(0, Buffer.alloc(SIZE / 2, 1));
  addKept(disk.node, 'bits');
  addKept(disk.node, 'more').setAll();
  await disk.close();
  return shelf.disk('top').contents();
}

/** What a run leaves to be judged by: for each bitmap, the content since when it has recorded. */
interface Oracle {
  since: Map<string, Buffer>;
  /** What must be there and consistent, from a mark on; what must be gone. */
  kept: Map<string, readonly string[]>;
}

/** What is wrong with the bitmaps of an image: one said to be consistent lacks a change. */
async function bitmapProblem(
  content: Buffer,
  marks: readonly string[],
  oracle: Oracle,
): Promise<string | undefined> {
  const corrupt = await corruption(content);
  if (corrupt !== undefined) return corrupt;
  const disk = await reopened(content, undefined);
  const now = await disk.read(0, SIZE);
  const consistent: string[] = [];
  for (const bitmap of disk.node.dirtyBitmaps) {
    if (bitmap.inconsistent) continue;
    const name = bitmap.name ?? '';
    consistent.push(name);
    const before = oracle.since.get(name);
    for (let at = 0; before && at < SIZE; at += SECTOR)
      if (now.compare(before, at, at + SECTOR, at, at + SECTOR) !== 0 && !bitmap.isDirty(at))
        return `bitmap ${name} does not know of the change at ${at}`;
  }
  for (const mark of marks) {
    const kept = oracle.kept.get(mark);
    if (kept && kept.join() !== consistent.join()) return `after ${mark} there are ${consistent.join()}`;
  }
  return undefined;
}

/** Runs `steps` on the image with bitmaps; what they change in the oracle counts for all crash states. */
function bitmapRun(
  content: Buffer,
  steps: (disk: OpenDisk, shelf: DiskShelf, top: RecordedDisk) => Promise<void>,
  kept: Oracle['kept'],
): (drop: number | undefined) => Promise<Run> {
  return async (drop) => {
    const before = await (await reopened(content, undefined)).read(0, SIZE);
    const oracle: Oracle = { since: new Map([['bits', before]]), kept };
    const shelf = new DiskShelf([qcow2Driver]);
    const top = shelf.put('top', content);
    if (drop !== undefined) top.dropFlush = (index) => index === drop;
    await steps(await shelf.open('top'), shelf, top);
    return { top, base: undefined, problem: (crashed, marks) => bitmapProblem(crashed, marks, oracle) };
  };
}

/** No crash breaks it, and the flushes that order it are missed: in use, stored before the header, what comes after it. */
async function assertSafe(workload: Workload): Promise<void> {
  const { needed } = await judgeFlushes(workload);
  assert.ok(needed.length >= 3, `only flushes ${needed.join()} are needed`);
}

async function setReadOnly(shelf: DiskShelf, disk: OpenDisk, readOnly: boolean): Promise<void> {
  const writing = readOnly ? 0 : Permission.write;
  await shelf.graph.transaction((transaction) => {
    transaction.setPermissions(disk.backend, Permission.consistentRead + writing, disk.backend.shared);
    transaction.setReadOnly(disk.node, readOnly);
  });
}

for (const synchronous of [true, false])
  test(`written and closed (${synchronous ? 'sync' : 'async'}): no crash loses a bit unseen`, async () => {
    const content = await imageWithBitmaps();
    const steps = async (disk: OpenDisk, _: DiskShelf, top: RecordedDisk): Promise<void> => {
      top.synchronous = synchronous;
      await disk.backend.write(3 * SECTOR, Buffer.alloc(SECTOR, 2));
      await disk.backend.write(40 * SECTOR, Buffer.alloc(2 * SECTOR, 2));
      await disk.backend.flush();
      await disk.backend.write(SECTOR, Buffer.alloc(SECTOR, 3));
      await disk.close();
      top.mark('closed');
    };
    await assertSafe(bitmapRun(content, steps, new Map([['closed', ['more', 'bits']]])));
  });

test('removed: gone for good, and its clusters are free only then', async () => {
  const content = await imageWithBitmaps();
  const steps = async (disk: OpenDisk, _: DiskShelf, top: RecordedDisk): Promise<void> => {
    const { node, backend } = disk;
    const { dirtyBitmaps } = node;
    await node.instance.bitmaps?.remove('more');
    dirtyBitmaps.splice(
      dirtyBitmaps.findIndex(({ name }) => name === 'more'),
      1,
    );
    top.mark('removed');
    await backend.write(40 * SECTOR, Buffer.alloc(8 * SECTOR, 2));
    await backend.flush();
    await disk.close();
    top.mark('closed');
  };
  await assertSafe(bitmapRun(content, steps, new Map([['closed', ['bits']]])));
});

test('turned read-only and writable again: what is stored is in use again before the next change', async () => {
  const content = await imageWithBitmaps();
  const steps = async (disk: OpenDisk, shelf: DiskShelf, top: RecordedDisk): Promise<void> => {
    await disk.backend.write(3 * SECTOR, Buffer.alloc(SECTOR, 2));
    await setReadOnly(shelf, disk, true);
    top.mark('read-only');
    await setReadOnly(shelf, disk, false);
    // In place: nothing of the image but the mark changes.
    top.mark('writable');
    await disk.backend.write(5 * SECTOR, Buffer.alloc(SECTOR, 3));
    await disk.backend.flush();
    top.mark('written');
  };
  const kept = new Map([['written', []]]);
  await assertSafe(bitmapRun(content, steps, kept));
});

test('a change of mode that is taken back after bitmaps were stored: they are in use again', async () => {
  const content = await imageWithBitmaps();
  const steps = async (disk: OpenDisk, _: DiskShelf, top: RecordedDisk): Promise<void> => {
    await disk.backend.write(3 * SECTOR, Buffer.alloc(SECTOR, 2));
    const prepared = await disk.instance.prepareReadOnly?.(true);
    prepared?.abort();
    await disk.backend.write(5 * SECTOR, Buffer.alloc(SECTOR, 3));
    await disk.backend.flush();
    top.mark('written');
  };
  await assertSafe(bitmapRun(content, steps, new Map([['written', []]])));
});

test('a header that may not have come to disk is told anew before the next change', async () => {
  const content = await imageWithBitmaps();
  for (const failing of [0, 1, 2, 3, 4, 5]) {
    const steps = async (disk: OpenDisk, _: DiskShelf, top: RecordedDisk): Promise<void> => {
      await disk.backend.write(3 * SECTOR, Buffer.alloc(SECTOR, 2));
      await disk.backend.flush();
      let flushes = 0;
      top.failure = (event) => (event === 'flush' && flushes++ === failing ? new Error('no') : undefined);
      const prepared = await disk.instance.prepareReadOnly?.(true).catch(() => undefined);
      top.failure = () => undefined;
      prepared?.abort();
      await disk.backend.write(5 * SECTOR, Buffer.alloc(SECTOR, 3));
      await disk.backend.flush();
      top.mark('written');
    };
    const run = await bitmapRun(content, steps, new Map([['written', []]]))(undefined);
    assert.equal(await firstProblem(run, 1), undefined, `flush ${failing} fails`);
  }
});
