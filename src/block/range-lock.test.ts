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

test('no exclusive lock ever overlaps another holder, and all are granted in the end', async () => {
  const request = fc.record({
    start: fc.nat(30),
    length: fc.integer({ min: 1, max: 12 }),
    exclusive: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(request, { maxLength: 25 }),
      fc.infiniteStream(fc.nat(5)),
      async (requests, pauses) => {
        const lock = new RangeLock();
        const held = new Set<(typeof requests)[number]>();
        const run = async (entry: (typeof requests)[number]): Promise<void> => {
          const { start, length, exclusive } = entry;
          const release = await (exclusive
            ? lock.lockExclusive(start, length)
            : lock.lockShared(start, length));
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
