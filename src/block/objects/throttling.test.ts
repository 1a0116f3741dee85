import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSimulatedHost } from '../../host/simulated.js';
import type { HostClock } from '../../host/host.js';
import { NO_LIMITS } from './throttle-limits.js';
import { type ThrottleMember, Throttling } from './throttling.js';

/** Runs `body` in simulated time; the answer is what it answers. */
function simulated<T>(body: (clock: HostClock) => Promise<T>): Promise<T> {
  const simulation = createSimulatedHost({ seed: 1 });
  return simulation.run(() => body(simulation.host.clock));
}

/** When each of `count` requests made at once begins, in milliseconds. */
async function beginnings(
  clock: HostClock,
  member: ThrottleMember,
  count: number,
  lengthBytes: number,
): Promise<number[]> {
  const start = clock.nowMs();
  return Promise.all(
    Array.from({ length: count }, async () => {
      await member.enter('write', lengthBytes);
      return Math.round(clock.nowMs() - start);
    }),
  );
}

test('requests begin at the rate that is set, after a tenth of a second’s worth', () =>
  simulated(async (clock) => {
    const throttling = new Throttling(clock);
    throttling.limits = { ...NO_LIMITS, 'iops-total': 10 };
    const times = await beginnings(clock, throttling.join(), 6, 512);
    // The bucket holds one request; the second is let in when it is just full.
    assert.deepEqual(times, [0, 0, 100, 200, 300, 400]);
  }));

test('bytes count, and in units of iops-size a large request counts as several', () =>
  simulated(async (clock) => {
    const bytes = new Throttling(clock);
    bytes.limits = { ...NO_LIMITS, 'bps-write': 1000 };
    assert.deepEqual(await beginnings(clock, bytes.join(), 3, 1000), [0, 900, 1900]);
    const operations = new Throttling(clock);
    operations.limits = { ...NO_LIMITS, 'iops-total': 10, 'iops-size': 512 };
    assert.deepEqual(await beginnings(clock, operations.join(), 3, 5120), [0, 900, 1900]);
  }));

test('a burst comes at its own rate for as long as it may', () =>
  simulated(async (clock) => {
    const throttling = new Throttling(clock);
    const burst = { 'iops-total-max': 100, 'iops-total-max-length': 2 };
    throttling.limits = { ...NO_LIMITS, 'iops-total': 10, ...burst };
    const times = await beginnings(clock, throttling.join(), 300, 512);
    const within = (from: number, to: number): number => times.filter((t) => t >= from && t < to).length;
    assert.equal(within(0, 1000), 110);
    assert.equal(within(1000, 2000), 100);
    assert.equal(within(3000, 4000), 10);
  }));

test('members share what there is in turns, however many requests each has', () =>
  simulated(async (clock) => {
    const throttling = new Throttling(clock);
    throttling.limits = { ...NO_LIMITS, 'iops-total': 10 };
    const order: string[] = [];
    const send = (name: string, member: ThrottleMember, count: number): Array<Promise<void>> =>
      Array.from({ length: count }, async () => {
        await member.enter('write', 512);
        order.push(name);
      });
    const [a, b] = [throttling.join(), throttling.join()];
    await Promise.all([...send('a', a, 8), ...send('b', b, 3)]);
    assert.equal(order.slice(2).join(''), 'ababab' + 'aaa');
  }));

test('reads and writes wait in lines of their own', () =>
  simulated(async (clock) => {
    const throttling = new Throttling(clock);
    throttling.limits = { ...NO_LIMITS, 'iops-write': 1 };
    const member = throttling.join();
    await beginnings(clock, member, 1, 512);
    const [late] = await Promise.all([beginnings(clock, member, 3, 512), member.enter('read', 512)]);
    assert.ok((late[2] ?? 0) > 1000);
    assert.equal(member.enter('read', 512), undefined);
  }));

test('a member that is released waits for nothing, and is counted', () =>
  simulated(async (clock) => {
    const throttling = new Throttling(clock);
    throttling.limits = { ...NO_LIMITS, 'iops-total': 1 };
    const [a, b] = [throttling.join(), throttling.join()];
    const times = beginnings(clock, a, 5, 512);
    a.release();
    assert.deepEqual(await times, [0, 0, 0, 0, 0]);
    assert.equal(a.enter('write', 512), undefined);
    a.resume();
    // Six were let through, so somebody else waits for five.
    assert.deepEqual(await beginnings(clock, b, 1, 512), [5900]);
  }));

test('new limits hold for what waits', () =>
  simulated(async (clock) => {
    const throttling = new Throttling(clock);
    throttling.limits = { ...NO_LIMITS, 'iops-total': 1 };
    const times = beginnings(clock, throttling.join(), 10, 512);
    throttling.limits = NO_LIMITS;
    assert.deepEqual(await times, Array<number>(10).fill(0));
  }));
