import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  corruption,
  firstProblem,
  judgeFlushes,
  reopened,
  type Run,
  type Workload,
} from '../../../../test/kit/crash-runs.js';
import { seededBelow } from '../../../../test/kit/crash-states.js';
import { addDurable, addKept } from '../../../../test/kit/kept-bitmaps.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { childOf, DiskShelf, type OpenDisk, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { KiB } from '../../../base/limits.js';
import { BITMAP_ACTIONS } from '../../../monitor/bitmaps.js';
import { Permission } from '../../../block/permissions.js';
import { qcow2Driver } from '../driver.js';

const SECTOR = 512;
/** A few regions of a change log, which are of 64 KiB each. */
const REGION = 64 * KiB;
const SIZE = 5 * REGION;
const GRANULE = 1024;

/** A bitmap of that name is durable from now on: content at that time. */
type Since = Map<string, Buffer>;

interface Oracle {
  since: Since;
  /** Marks from which on a bitmap must be there and consistent, or be gone. */
  there: Map<string, readonly string[]>;
  gone: Map<string, readonly string[]>;
}

async function imageWithDurable(): Promise<Buffer> {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('top')), { sizeBytes: SIZE, options: { 'cluster-size': 512 } });
  const disk = await shelf.open('top');
  await disk.backend.write(0, Buffer.alloc(SECTOR, 1));
  await disk.backend.write(2 * REGION + GRANULE, Buffer.alloc(3 * SECTOR, 1));
  await addDurable(disk.node, 'bits', GRANULE);
  await disk.close();
  return shelf.disk('top').contents();
}

/** What is wrong with the durable bitmaps of an image that a crash left. */
async function problemOf(
  content: Buffer,
  marks: readonly string[],
  oracle: Oracle,
): Promise<string | undefined> {
  const corrupt = await corruption(content);
  if (corrupt !== undefined) return corrupt;
  const disk = await reopened(content, undefined);
  const { node } = disk;
  for (const [name, from] of oracle.there) {
    const bitmap = node.findBitmap(name);
    const isGone = oracle.gone.get(name)?.some((mark) => marks.includes(mark));
    if (from.some((mark) => mark === '' || marks.includes(mark)) && !isGone) {
      if (!bitmap || bitmap.inconsistent) return `bitmap ${name} is lost`;
      if (!bitmap.durable) return `bitmap ${name} is not durable`;
    }
    const before = oracle.since.get(name);
    if (!bitmap || bitmap.inconsistent || !before) continue;
    const now = await disk.read(0, Math.min(node.lengthBytes, before.length));
    for (let at = 0; at < now.length; at += GRANULE)
      if (now.compare(before, at, at + GRANULE, at, at + GRANULE) !== 0 && !bitmap.isDirty(at))
        return `bitmap ${name} does not know of the change at ${at}`;
  }
  return undefined;
}

interface Stage {
  disk: OpenDisk;
  shelf: DiskShelf;
  top: RecordedDisk;
  since: Since;
}

function durableRun(
  content: Buffer,
  steps: (stage: Stage) => Promise<void>,
  {
    there = { bits: [''] },
    gone = {},
  }: { there?: Record<string, string[]>; gone?: Record<string, string[]> },
): Workload {
  return async (drop): Promise<Run> => {
    const before = await (await reopened(content, undefined)).read(0, SIZE);
    const since: Since = new Map([['bits', before]]);
    const oracle: Oracle = {
      since,
      there: new Map(Object.entries(there)),
      gone: new Map(Object.entries(gone)),
    };
    const shelf = new DiskShelf([qcow2Driver]);
    const top = shelf.put('top', content);
    if (drop !== undefined) top.dropFlush = (index) => index === drop;
    await steps({ disk: await shelf.open('top'), shelf, top, since });
    return { top, base: undefined, problem: (crashed, marks) => problemOf(crashed, marks, oracle) };
  };
}

/** No crash breaks it, and the flushes that order it are missed. */
async function assertSafe(workload: Workload): Promise<void> {
  const { needed } = await judgeFlushes(workload);
  assert.ok(needed.length >= 3, `only flushes ${needed.join()} are needed`);
}

for (const synchronous of [true, false])
  test(`written, retired, written and closed (${synchronous ? 'sync' : 'async'}): no crash loses it or a bit`, async () => {
    const content = await imageWithDurable();
    const steps = async ({ disk, top }: Stage): Promise<void> => {
      top.synchronous = synchronous;
      const log = disk.instance.changeLog;
      assert.ok(log, 'a durable bitmap has a log');
      const write = async (offset: number, bytes: Buffer): Promise<void> => {
        if (!disk.backend.tryWrite(offset, bytes, 0)) await disk.backend.write(offset, bytes);
      };
      await write(SECTOR, Buffer.alloc(SECTOR, 2));
      await write(2 * REGION + GRANULE, Buffer.alloc(2 * SECTOR, 2));
      await disk.backend.flush();
      await write(2 * SECTOR, Buffer.alloc(SECTOR, 2));
      await log.retire();
      await log.retire();
      assert.equal(log.openBytes, 0);
      // In place, and its table is in memory: at once, were it not for the log.
      await write(2 * REGION + 2 * GRANULE, Buffer.alloc(SECTOR, 3));
      await write(5 * SECTOR, Buffer.alloc(SECTOR, 3));
      await disk.backend.discard(2 * REGION, 4096);
      await disk.backend.writeZeroes(0, 2 * SECTOR, 0);
      await log.retire();
      await disk.backend.write(3 * REGION, Buffer.alloc(SECTOR, 3));
      await disk.close();
      top.mark('closed');
    };
    const workload = durableRun(content, steps, {});
    if (synchronous) await assertSafe(workload);
    else assert.equal(await firstProblem(await workload(undefined), 1), undefined);
  });

test('a crashed image is used again: the bits of before stay', async () => {
  const content = await imageWithDurable();
  const first = await durableRun(
    content,
    async ({ disk }) => {
      await disk.backend.write(3 * SECTOR, Buffer.alloc(SECTOR, 2));
      await disk.backend.flush();
    },
    {},
  )(undefined);
  const crashed = first.top.contents();
  const before = await (await reopened(content, undefined)).read(0, SIZE);
  const steps = async ({ disk, since, top }: Stage): Promise<void> => {
    since.set('bits', before);
    await disk.backend.write(4 * REGION, Buffer.alloc(SECTOR, 2));
    await disk.backend.flush();
    await disk.instance.changeLog?.retire();
    await disk.instance.changeLog?.retire();
    await disk.close();
    top.mark('closed');
  };
  const run = await durableRun(crashed, steps, {})(undefined);
  assert.equal(await firstProblem(run, 1), undefined);
  const closed = await reopened(run.top.contents(), undefined);
  assert.equal(closed.node.findBitmap('bits')?.granulesBytes, REGION + GRANULE);
});

test('made durable, merged into, disabled and enabled, removed: what is answered holds', async () => {
  const content = await imageWithDurable();
  const steps = async ({ disk, top, since, shelf }: Stage): Promise<void> => {
    const { node, backend } = disk;
    const engine = { graph: shelf.graph };
    await backend.write(SECTOR, Buffer.alloc(SECTOR, 7));
    since.set('more', await disk.read(0, SIZE));
    await addDurable(node, 'more', GRANULE);
    top.mark('made');
    await backend.write(2 * REGION, Buffer.alloc(SECTOR, 2));
    const other = addKept(node, 'other', GRANULE);
    other.persistent = false;
    other.set(3 * REGION + 32 * GRANULE, GRANULE);
    const args = { node: node.name, name: 'more' };
    await BITMAP_ACTIONS['block-dirty-bitmap-merge'](engine, {
      ...{ node: node.name, target: 'more', bitmaps: ['other'] },
    }).settle();
    top.mark('merged');
    await BITMAP_ACTIONS['block-dirty-bitmap-disable'](engine, args).settle();
    await BITMAP_ACTIONS['block-dirty-bitmap-enable'](engine, args).settle();
    top.mark('enabled');
    await backend.write(3 * REGION, Buffer.alloc(SECTOR, 2));
    await backend.flush();
    await (await BITMAP_ACTIONS['block-dirty-bitmap-remove'](engine, { ...args, name: 'bits' })).settle();
    top.mark('removed');
    await backend.write(4 * REGION, Buffer.alloc(8 * SECTOR, 2));
    await backend.flush();
  };
  const workload = durableRun(content, steps, {
    there: { bits: [''], more: ['made'] },
    gone: { bits: ['enabled'] },
  });
  const run = await workload(undefined);
  const problem: Run['problem'] = async (crashed, marks) => {
    const found = await run.problem(crashed, marks);
    if (found !== undefined || !marks.includes('merged')) return found;
    const more = (await reopened(crashed, undefined)).node.findBitmap('more');
    if (more?.isDirty(3 * REGION + 32 * GRANULE) !== true) return 'what was merged is lost';
    return marks.includes('enabled') && !more.enabled ? 'it does not record' : undefined;
  };
  assert.equal(await firstProblem({ ...run, problem }, 1), undefined);
});

for (const failing of [undefined, 0, 1, 2, 3, 4, 5])
  test(`a removal ${failing === undefined ? 'beside writes' : `of which event ${failing} fails`}: while it is there, it knows of all`, async () => {
    const content = await imageWithDurable();
    const steps = async ({ disk, top, shelf }: Stage): Promise<void> => {
      const write = (region: number): Promise<void> =>
        disk.backend.write(2 * REGION + region * GRANULE, Buffer.alloc(SECTOR, 7)).catch(() => undefined);
      await disk.backend.write(0, Buffer.alloc(SECTOR, 7));
      let events = 0;
      if (failing !== undefined) top.failure = () => (events++ === failing ? new Error('no') : undefined);
      top.mark('removing');
      const args = { node: disk.node.name, name: 'bits' };
      const removed = BITMAP_ACTIONS['block-dirty-bitmap-remove']({ graph: shelf.graph }, args)
        .then((action) => action.settle())
        .catch(() => undefined);
      if (failing !== undefined) await removed;
      await write(1);
      await removed;
      await write(2);
      await disk.backend.flush().catch(() => undefined);
      await disk.close().catch(() => undefined);
    };
    const run = await durableRun(content, steps, { gone: { bits: ['removing'] } })(undefined);
    assert.equal(await firstProblem(run, 1), undefined);
  });

test('the last bitmap goes, and another comes, while changes wait for their regions', async () => {
  const content = await imageWithDurable();
  for (let turns = 0; turns < 150; turns++) {
    const shelf = new DiskShelf([qcow2Driver]);
    shelf.put('top', content);
    const disk = await shelf.open('top');
    const { node, backend } = disk;
    const write = (region: number): Promise<void> =>
      backend.write(region * REGION + 8 * KiB, Buffer.alloc(SECTOR, region));
    await write(0);
    const args = { node: node.name, name: 'bits' };
    const removal = BITMAP_ACTIONS['block-dirty-bitmap-remove']({ graph: shelf.graph }, args);
    const removed = removal.then((action) => action.settle());
    for (let i = 0; i < turns; i++) await Promise.resolve();
    const writes = [write(1)];
    for (let i = 0; i < turns % 7; i++) await Promise.resolve();
    await Promise.all([...writes, write(3), removed]);
    await Promise.all([write(4), addDurable(node, 'more', GRANULE)]);
    await write(2);
    assert.equal(node.findBitmap('more')?.isDirty(2 * REGION + 8 * KiB), true);
    await disk.close();
  }
});

test('grown and made smaller: the bits of what is there are right', async () => {
  const content = await imageWithDurable();
  const steps = async ({ disk, top }: Stage): Promise<void> => {
    await disk.backend.write(3 * SECTOR, Buffer.alloc(SECTOR, 2));
    await disk.backend.truncate(90 * REGION);
    top.mark('grown');
    await disk.backend.write(80 * REGION, Buffer.alloc(SECTOR, 2));
    await disk.backend.flush();
    top.mark('written');
    await disk.backend.truncate(SIZE);
    await disk.backend.write(2 * REGION + 5 * GRANULE, Buffer.alloc(SECTOR, 2));
    await disk.close();
  };
  const workload = durableRun(content, steps, {});
  const run = await workload(undefined);
  assert.equal(
    await firstProblem(
      {
        ...run,
        problem: async (crashed, marks) => {
          const problem = await run.problem(crashed, marks);
          if (problem !== undefined || !marks.includes('written')) return problem;
          const { node } = await reopened(crashed, undefined);
          if (node.lengthBytes === SIZE) return undefined;
          return node.findBitmap('bits')?.isDirty(80 * REGION) === true
            ? undefined
            : 'new space is not tracked';
        },
      },
      1,
    ),
    undefined,
  );
});

test('read-only and writable again, and a failure of each write and flush: never a bit too few', async () => {
  const content = await imageWithDurable();
  for (let failing = 0; failing < 10; failing++) {
    const steps = async ({ disk, shelf, top }: Stage): Promise<void> => {
      const random = seededBelow(failing + 1);
      const attempt = (body: () => Promise<unknown>): Promise<unknown> => body().catch(() => undefined);
      const write = (): Promise<unknown> =>
        attempt(async () => disk.backend.write(random(SIZE / SECTOR) * SECTOR, Buffer.alloc(SECTOR, 5)));
      await write();
      let events = 0;
      top.failure = () => (events++ === failing ? new Error('no') : undefined);
      await write();
      await attempt(async () => disk.instance.changeLog?.retire());
      await attempt(async () => disk.instance.changeLog?.retire());
      await attempt(async () => setReadOnly(shelf, disk, true));
      await attempt(async () => setReadOnly(shelf, disk, false));
      await write();
      await attempt(async () => disk.backend.flush());
      await write();
      await attempt(async () => disk.close());
    };
    const run = await durableRun(content, steps, {})(undefined);
    assert.equal(await firstProblem(run, 1), undefined, `event ${failing} fails`);
  }
});

async function setReadOnly(shelf: DiskShelf, disk: OpenDisk, readOnly: boolean): Promise<void> {
  const writing = readOnly ? 0 : Permission.write;
  await shelf.graph.transaction((transaction) => {
    transaction.setPermissions(disk.backend, Permission.consistentRead + writing, disk.backend.shared);
    transaction.setReadOnly(disk.node, readOnly);
  });
}
