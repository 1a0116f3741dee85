import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IntervalStatistics, type PassedInterval } from './interval-statistics.js';

test('latencies are told of half an interval at least, and of no more than the whole', () => {
  const interval = new IntervalStatistics(10, 0);
  interval.add('read', 2, 1000);
  interval.add('read', 4, 2000);
  assert.deepEqual(interval.look('read', 4000), {
    ...{ count: 2, sumMs: 6, leastMs: 2, mostMs: 4 },
    elapsedMs: 9000,
  });
  // The first window is over at 5 s: those before are in the second, which began 5 s before the start.
  interval.add('read', 1, 6000);
  const { count, leastMs, elapsedMs } = interval.look('read', 9000);
  assert.deepEqual({ count, leastMs, elapsedMs }, { count: 3, leastMs: 1, elapsedMs: 9000 });
  // At 10 s it is over too: the one that began at 5 s has the last of them alone.
  assert.equal(interval.look('read', 10_500).count, 1);
  assert.deepEqual(interval.look('write', 10_500), {
    ...{ count: 0, sumMs: 0, leastMs: 0, mostMs: 0 },
    elapsedMs: 5500,
  });
});

test('a long rest leaves nothing, and windows go on in their steps', () => {
  const interval = new IntervalStatistics(2, 0);
  interval.add('flush', 7, 10);
  const { count, elapsedMs } = interval.look('flush', 100_300);
  assert.equal(count, 0);
  assert.ok(elapsedMs >= 1000 && elapsedMs < 2000, `${elapsedMs}`);
  interval.add('flush', 3, 100_400);
  assert.equal(interval.look('flush', 100_500).mostMs, 3);
});

test('another process tells the same as this one, by its own clock', () => {
  const [one, other] = [new IntervalStatistics(10, 0), new IntervalStatistics(10, 77_000)];
  for (const [tookMs, nowMs] of [
    [2, 1000],
    [4, 7000],
  ] as const)
    one.add('read', tookMs, nowMs);
  other.goOnFrom(JSON.parse(JSON.stringify(one.passed(8000))) as PassedInterval, 78_000);
  for (const interval of [one, other]) interval.add('write', 1, interval === one ? 8100 : 78_100);
  for (const laterMs of [500, 3000, 9000])
    for (const operation of ['read', 'write', 'flush'] as const)
      assert.deepEqual(other.look(operation, 78_000 + laterMs), one.look(operation, 8000 + laterMs));
});
