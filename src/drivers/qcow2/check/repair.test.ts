import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { DamagedQcow2, ownEntry } from '../../../../test/kit/damaged-qcow2.js';
import { HandmadeQcow2 } from '../../../../test/kit/handmade-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import {
  CLUSTER,
  DAMAGES,
  guestSees,
  setExtra,
  SIZE,
  soundImage,
  stateOf,
  withSnapshots,
  worse,
} from '../../../../test/kit/repaired-qcow2.js';
import { showSnapshot } from '../../../block/internal-snapshots.js';
import type { ImageCheck, RepairMode } from '../../../block/driver.js';
import { FieldOffset } from '../disk/header.js';
import { qcow2Driver } from '../driver.js';
import { checkQcow2 } from './check.js';

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

for (const [what, field] of [
  ['has no place', FieldOffset.refcountTableOffset],
  ['has no clusters', FieldOffset.refcountTableClusters],
] as const)
  test(`a refcount table that ${what} is made anew, whatever a crash of that leaves`, async () => {
    const sound = soundImage();
    const seen = await guestSees(sound.bytes);
    const image = soundImage();
    image.bytes.fill(0, field, field + (field === FieldOffset.refcountTableOffset ? 8 : 4));
    const found = await repair(image.bytes, 'none');
    assert.ok(found.result.corruptions > 0);
    const repaired = async (content: Buffer): Promise<RecordedDisk> => {
      const { result, file } = await repair(content, 'all');
      assert.deepEqual([result.corruptions, result.leaks], [0, 0]);
      const after = await stateOf(file.contents());
      assert.deepEqual([after.problems, after.isMarked], [[], false]);
      assert.deepEqual(await guestSees(file.contents()), seen);
      return file;
    };
    const file = await repaired(image.bytes);
    for (const state of crashStates(file, seededBelow(1))) await repaired(state.content);
  });

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

for (const [what, extra, words, left] of [
  ['incomplete', [0, 24], ['Repairing snapshot table entry 0 is incomplete'], 1],
  [
    'with too much extra data',
    [1025, 8],
    [
      'Discarding too much extra metadata in snapshot table entry 0 (1025 > 1024)',
      'Repairing snapshot table entry 1 is incomplete',
    ],
    undefined,
  ],
] as const)
  test(`a crash while snapshots that are ${what} are repaired loses none of them`, async () => {
    const damaged = setExtra(await withSnapshots(), ...extra);
    const { result, file, lines } = await repair(damaged, 'all');
    assert.deepEqual(lines.slice(0, words.length), words);
    assert.equal(result.corruptions, 0);
    const shown = async (content: Buffer): Promise<number[]> => {
      const values: number[] = [];
      for (const name of ['s1', 's2']) {
        const shelf = new DiskShelf([qcow2Driver]);
        shelf.put('image', content);
        const disk = await shelf.open('image', { readOnly: true });
        await showSnapshot(disk.node, { name });
        values.push((await disk.read(7 * CLUSTER, 1))[0] ?? 0);
        await disk.close();
      }
      return values;
    };
    for (const state of crashStates(file, seededBelow(5))) {
      const isOld =
        state.content.readBigUInt64BE(FieldOffset.snapshotsOffset) ===
        damaged.readBigUInt64BE(FieldOffset.snapshotsOffset);
      if (isOld && left === undefined) continue;
      assert.deepEqual(await shown(state.content), [1, 2], state.survived);
      if (!isOld)
        assert.equal(
          (await checkQcow2(childOf(new RecordedDisk(state.content)))).corruptions,
          0,
          state.survived,
        );
    }
    assert.deepEqual((await checkQcow2(childOf(new RecordedDisk(file.contents())))).messages, []);
  });

test('more snapshots than there may be are refused, and discarded by a repair', async () => {
  const damaged = setExtra(await withSnapshots(), 24, 24);
  damaged.writeUInt32BE(65538, FieldOffset.snapshotCount);
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', damaged);
  await assert.rejects(shelf.open('image', { readOnly: true }), /^BlockError: Snapshot table too large$/);
  await assert.rejects(checkQcow2(childOf(new RecordedDisk(damaged))), /^BlockError: File too large$/);
  const { file, lines } = await repair(damaged, 'all');
  assert.equal(lines[0], 'Discarding 2 overhanging snapshots');
  assert.equal(file.contents().readUInt32BE(FieldOffset.snapshotCount), 65536);
});
