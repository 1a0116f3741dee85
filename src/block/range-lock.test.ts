import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { RangeLock, type Release } from './range-lock.js';

test('shared locks overlap; an exclusive one waits for them and holds later ones back', async () => {
  const lock = new RangeLock();
  const first = lock.lockShared(0, 10);
  const second = lock.lockShared(5, 10);
  assert.equal(typeof first, 'function');
  assert.equal(typeof second, 'function');
  const exclusive = lock.lockExclusive(8, 4);
  assert.ok(exclusive instanceof Promise);
  assert.equal(lock.conflictsShared(9, 1), true);
  assert.equal(lock.conflictsShared(20, 1), false);
  const late = lock.lockShared(9, 1);
  assert.ok(late instanceof Promise, 'a later shared lock queues behind the exclusive one');
  (first as Release)();
  (second as Release)();
  const release = await exclusive;
  release();
  (await late)();
  assert.equal(lock.isIdle, true);
});

test('who goes ahead waits for those who hold the range, and passes those who wait, a bounded number of times', async () => {
  const lock = new RangeLock();
  const held = lock.lockExclusive(0, 10) as Release;
  const [waiting, behind] = [lock.lockExclusive(0, 20), lock.lockExclusive(0, 20)];
  assert.ok(waiting instanceof Promise && behind instanceof Promise);
  assert.ok(lock.lockExclusive(10, 20) instanceof Promise, 'others queue');
  const first = lock.lockAhead(10, 20);
  assert.equal(typeof first, 'function', 'nobody holds that');
  assert.ok(lock.lockAhead(5, 10) instanceof Promise, 'somebody holds that');
  held();
  let isGranted = false;
  void waiting.then(() => (isGranted = true));
  await new Promise(setImmediate);
  assert.equal(isGranted, false, 'one that has passed it holds a part of its range');
  (first as Release)();
  (await waiting)();
  (await behind)();
});

test('nobody waits for ever behind those who go ahead', () => {
  const lock = new RangeLock();
  void lock.lockExclusive(0, 10);
  const waiting = lock.lockExclusive(0, 20);
  assert.ok(waiting instanceof Promise);
  let passes = 0;
  for (; passes < 1000; passes++) {
    const ahead = lock.lockAhead(10, 10);
    if (ahead instanceof Promise) break;
    ahead();
  }
  assert.ok(passes > 0 && passes < 100, String(passes));
});

test('who holds a range until it is wanted is told once, also where somebody waits already', async () => {
  const lock = new RangeLock();
  let told = 0;
  const release = await lock.lockUntilWanted(0, 10, () => told++);
  const beside = await lock.lockExclusive(10, 10);
  const shared = await lock.lockShared(0, 10);
  assert.equal(told, 0);
  const waiting = [lock.lockExclusive(5, 1), lock.lockExclusive(6, 1)];
  assert.equal(told, 1);
  const late = lock.lockUntilWanted(0, 10, () => told++);
  const behind = lock.lockExclusive(9, 1);
  assert.equal(told, 1);
  for (const end of [release, beside, shared]) end();
  for (const each of waiting) (await each)();
  (await late)();
  assert.equal(told, 2);
  (await behind)();
  assert.equal(lock.isIdle, true);
});

test('no exclusive lock ever overlaps another holder, and all are granted in the end', async () => {
  const request = fc.record({
    start: fc.nat(30),
    length: fc.integer({ min: 1, max: 12 }),
    exclusive: fc.boolean(),
    goesAhead: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(request, { maxLength: 25 }),
      fc.infiniteStream(fc.nat(5)),
      async (requests, pauses) => {
        const lock = new RangeLock();
        const held = new Set<(typeof requests)[number]>();
        const run = async (entry: (typeof requests)[number]): Promise<void> => {
          const { start, length, exclusive, goesAhead } = entry;
          const lockAlone = goesAhead ? lock.lockAhead.bind(lock) : lock.lockExclusive.bind(lock);
          const release = await (exclusive ? lockAlone(start, length) : lock.lockShared(start, length));
          for (const other of held) {
            const overlaps = other.start < start + length && other.start + other.length > start;
            assert.ok(!overlaps || (!exclusive && !other.exclusive));
          }
          held.add(entry);
          const turns = Number(pauses.next().value);
          for (let i = 0; i < turns; i++) await Promise.resolve();
          held.delete(entry);
          release();
        };
        await Promise.all(requests.map(run));
        assert.equal(lock.isIdle, true);
        assert.equal(lock.isFree, true);
      },
    ),
  );
});
