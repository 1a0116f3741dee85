import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { COPIED, DamagedQcow2, ownEntry } from '../../../../test/kit/damaged-qcow2.js';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import type { ImageCheck, RepairMode } from '../../../block/driver.js';
import { FieldOffset } from '../disk/header.js';
import { qcow2Driver } from '../driver.js';
import { checkQcow2 } from './check.js';

const CLUSTER = 1024;
/** Two L2 tables. */
const SIZE = 130 * CLUSTER;

/** Guest clusters 0, 2, 3 and 40 hold data; 5 keeps a host cluster for zeroes. */
function soundImage(): DamagedQcow2 {
  const image = new HandmadeQcow2({ sizeBytes: SIZE, clusterBytes: CLUSTER, clusters: 24 });
  image.data(0, 1);
  image.data(2, 3);
  image.data(3, 4);
  image.entry(5, BigInt(image.cluster(9)) | COPIED | 1n);
  image.data(40, 6);
  return new DamagedQcow2(image.bytes);
}

type Damage = (image: DamagedQcow2) => void;

/** What is damaged, and how many of the flushes of its repair some crash must miss when they are left out. */
const DAMAGES: ReadonlyArray<readonly [string, Damage, number]> = [
  ['leaks', (i) => (i.setRefcount(20 * CLUSTER, 1), i.setRefcount(22 * CLUSTER, 7)), 1],
  [
    'a cluster that leaks references',
    (i) => (i.setRefcount(i.data(0), 3), i.setEntry(0, BigInt(i.data(0)))),
    1,
  ],
  ['data used twice', (i) => i.setEntry(1, i.entry(0)), 2],
  ['an L2 table used twice', (i) => i.set(i.l1 + 8, i.u64(i.l1)), 2],
  ['flags', (i) => (i.setEntry(0, BigInt(i.data(0))), i.set(i.l1, BigInt(i.l2))), 1],
  ['a preallocated cluster between clusters', (i) => i.setEntry(5, i.entry(5) + 512n), 1],
  ['data counted as free', (i) => i.setRefcount(i.data(0), 0), 2],
  ['no refcount block', (i) => i.set(i.refcountTable, 0n), 2],
  ['reserved bits of the refcount table', (i) => i.set(i.refcountTable, i.u64(i.refcountTable) | 1n), 2],
  ['a refcount block between clusters', (i) => i.set(i.refcountTable, i.u64(i.refcountTable) | 512n), 2],
  ['a refcount block behind the end', (i) => i.set(i.refcountTable, 2n ** 40n), 2],
  ['a refcount block named twice', (i) => i.set(i.refcountTable + 8, i.u64(i.refcountTable)), 2],
  ['the L1 table as refcount block', (i) => i.set(i.refcountTable, BigInt(i.l1)), 2],
  ['data on the L1 table', (i) => i.setEntry(0, ownEntry(i.l1)), 2],
  ['bits that say dirty and corrupt', (i) => (i.set(72, 3n), i.setRefcount(i.data(2), 2)), 1],
  ['a lost end, and free clusters in use', (i) => (i.setRefcount(i.data(0), 0), i.truncate(9 * CLUSTER)), 2],
];

interface Repaired {
  result: ImageCheck;
  file: RecordedDisk;
  lines: string[];
}

/** Ends without closing the image, as a crash does. */
async function repair(content: Buffer, mode: RepairMode, dropFlush = -1): Promise<Repaired> {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', content);
  file.dropFlush = (index) => index === dropFlush;
  const disk = await shelf.open('image', { forCheck: true });
  const lines: string[] = [];
  const result = await disk.instance.check?.(mode, (line) => void lines.push(line));
  assert.ok(result);
  file.mark('repaired');
  return { result, file, lines };
}

/** What a guest reads of each cluster; undefined where it cannot. */
async function guestSees(content: Buffer): Promise<Array<string | undefined>> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', content);
  const disk = await shelf.open('image', { readOnly: true });
  const seen: Array<string | undefined> = [];
  for (let at = 0; at < SIZE; at += CLUSTER)
    seen.push(
      await disk.read(at, CLUSTER).then(
        (bytes) => bytes.toString('hex'),
        () => undefined,
      ),
    );
  await disk.close();
  return seen;
}

interface State {
  seen: Array<string | undefined>;
  /** Clusters in use that count for less than their users. */
  tooLow: Set<string>;
  /** Entries that claim to be the only one where the refcount is another. */
  claims: Set<string>;
  problems: string[];
  isMarked: boolean;
}

async function stateOf(content: Buffer): Promise<State> {
  const { messages } = await checkQcow2(childOf(new RecordedDisk(content)));
  const matching = (pattern: RegExp): Set<string> =>
    new Set(messages.flatMap((line) => pattern.exec(line)?.[1] ?? []));
  return {
    seen: await guestSees(content),
    tooLow: matching(/^ERROR cluster (\d+)/),
    claims: matching(/entry=8([0-9a-f]{15}) refcount/),
    problems: messages,
    isMarked: content.readBigUInt64BE(FieldOffset.incompatible) !== 0n,
  };
}

/** Why a crash left the image worse than it was. */
function worse(before: State, after: State): string | undefined {
  const changed = before.seen.findIndex((bytes, i) => bytes !== undefined && bytes !== after.seen[i]);
  if (changed >= 0) return `guest cluster ${changed} is another`;
  for (const cluster of after.tooLow)
    if (!before.tooLow.has(cluster)) return `cluster ${cluster} counts too low`;
  for (const entry of after.claims) if (!before.claims.has(entry)) return `entry ${entry} claims too much`;
  const isGood = after.problems.length === 0;
  if (before.isMarked && !after.isMarked && !isGood) return `marked sound with ${after.problems.join('; ')}`;
  return undefined;
}

async function firstProblem(content: Buffer, dropFlush: number): Promise<string | undefined> {
  const before = await stateOf(content);
  const { file } = await repair(content, 'all', dropFlush);
  const done = await stateOf(file.contents());
  for (const state of crashStates(file, seededBelow(1))) {
    const after = await stateOf(state.content);
    const isDone = state.marks.length > 0;
    const problem = worse(before, after);
    if (problem !== undefined) return `${problem} (survived ${state.survived})`;
    if (isDone && after.problems.length > done.problems.length) return 'what was repaired is lost';
  }
  return undefined;
}

for (const [what, damage, flushesAtLeast] of DAMAGES) {
  test(`${what}: repaired, and no crash of the repair makes it worse`, async () => {
    const image = soundImage();
    damage(image);
    const before = await stateOf(image.bytes);
    assert.notDeepEqual([before.problems, before.isMarked], [[], false]);
    const { result, file, lines } = await repair(image.bytes, 'all');
    const after = await stateOf(file.contents());
    assert.deepEqual([result.corruptions, result.leaks, result.checkErrors], [expectedRest(what), 0, 0]);
    assert.deepEqual(after.problems, []);
    assert.equal(after.isMarked, false);
    assert.ok(result.corruptionsFixed + result.leaksFixed > 0, lines.join('; '));
    assert.equal(await firstProblem(image.bytes, -1), undefined);
    let needed = 0;
    for (let flush = 0; flush < file.flushes; flush++)
      if ((await firstProblem(image.bytes, flush)) !== undefined) needed++;
    assert.ok(needed >= flushesAtLeast, `${needed} of ${file.flushes} flushes are needed`);
  });
}

/** Data that lies behind the end of the file is an error until the file is longer: its cluster is kept for it. */
function expectedRest(what: string): number {
  return what.startsWith('a lost end') ? 1 : 0;
}

test('only leaks are repaired when only they are to be, and flags where nothing else is wrong', async () => {
  const image = soundImage();
  image.setRefcount(20 * CLUSTER, 1);
  image.setEntry(1, image.entry(0));
  const { result, file } = await repair(image.bytes, 'leaks');
  assert.deepEqual([result.leaksFixed, result.corruptionsFixed, result.corruptions], [1, 0, 1]);
  assert.equal((await checkQcow2(childOf(file))).corruptions, 1);
  const flagged = soundImage();
  flagged.setEntry(0, BigInt(flagged.data(0)));
  assert.equal((await repair(flagged.bytes, 'leaks')).result.corruptionsFixed, 1);
});

test('leaks alone are not repaired where refcounts must be counted anew: nothing changes', async () => {
  const image = soundImage();
  image.setRefcount(image.data(0), 0);
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', image.bytes);
  const disk = await shelf.open('image', { forCheck: true });
  const lines: string[] = [];
  const done = disk.instance.check?.('leaks', (line) => void lines.push(line));
  await assert.rejects(done ?? Promise.resolve(), { errno: 'EIO', message: 'Input/output error' });
  assert.equal(lines.at(-1), 'ERROR need to rebuild refcount structures');
  await disk.close();
  assert.ok(file.contents().equals(image.bytes));
});

test('a repair whose write fails leaves what it was, and can be made again', async () => {
  for (let failing = 0; ; failing++) {
    const image = soundImage();
    image.setEntry(1, image.entry(0));
    image.set(image.refcountTable, 0n);
    const before = await stateOf(image.bytes);
    const shelf = new DiskShelf([qcow2Driver]);
    const file = shelf.put('image', image.bytes);
    const disk = await shelf.open('image', { forCheck: true });
    let writes = 0;
    file.failure = (event) => (event === 'write' && writes++ === failing ? new Error('no') : undefined);
    const failed = await disk.instance
      .check?.('all', () => undefined)
      .then(
        () => false,
        () => true,
      );
    file.failure = () => undefined;
    assert.equal(worse(before, await stateOf(file.contents())), undefined);
    await disk.close();
    if (!failed) {
      assert.ok(failing >= 5, `${failing} writes`);
      return;
    }
    const { file: again } = await repair(file.contents(), 'all');
    const after = await stateOf(again.contents());
    assert.deepEqual(after.problems, []);
    assert.equal(worse(before, after), undefined);
  }
});

test('an image in use is checked as it is, not as its file was', async () => {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', soundImage().bytes);
  const disk = await shelf.open('image', { forCheck: true });
  await disk.backend.write(60 * CLUSTER, Buffer.alloc(20 * CLUSTER, 7));
  const result = await disk.instance.check?.('all', () => undefined);
  assert.deepEqual([result?.allocatedClusters, result?.leaksFixed, result?.corruptionsFixed], [25, 0, 0]);
  await disk.backend.write(100 * CLUSTER, Buffer.alloc(CLUSTER, 8));
  assert.deepEqual(await disk.read(79 * CLUSTER, CLUSTER), Buffer.alloc(CLUSTER, 7));
  await disk.close();
  assert.deepEqual((await checkQcow2(childOf(shelf.disk('image')))).messages, []);
});

test('a table that is data of a guest too is not repaired: the guest would see it', async () => {
  for (const table of ['L2', 'L1'] as const) {
    const made = new HandmadeQcow2({ sizeBytes: SIZE, clusterBytes: CLUSTER, clusters: 24 });
    made.data(0, 1);
    const other = made.data(129, 2);
    const l2 = made.l2(129);
    const image = new DamagedQcow2(made.bytes);
    // A flag is missing in what guest cluster 1 shows.
    if (table === 'L2') image.set(l2 + 8, BigInt(other));
    else image.set(image.l1 + 8, BigInt(l2));
    image.setEntry(1, ownEntry(table === 'L2' ? l2 : image.l1));
    const before = await guestSees(image.bytes);
    assert.ok(before[1] !== undefined);
    const { result, file, lines } = await repair(image.bytes, 'all');
    assert.deepEqual(await guestSees(file.contents()), before, table);
    assert.ok(result.corruptions > 0, lines.join('; '));
    assert.ok(result.corruptionsFixed > 0, lines.join('; '));
  }
});
