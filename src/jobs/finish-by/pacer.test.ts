import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MiB } from '../../base/limits.js';
import type { HostClock } from '../../host/host.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { MOST_WAIT_MS, Pacer } from './pacer.js';

/** Of simulated time: reading its clock takes a microsecond. */
const READINGS_MS = 1;

async function inSimulation(body: (pacer: Pacer, clock: HostClock) => Promise<void>): Promise<void> {
  const simulation = createSimulatedHost({ seed: 1 });
  const { clock } = simulation.host;
  await simulation.run(async () => {
    // One that was idle for a while.
    await clock.sleep(1000);
    await body(new Pacer(clock), clock);
  });
}

/** How long each of several waits that come at once. */
function takeAll(pacer: Pacer, clock: HostClock, lengths: number[]): Array<Promise<number>> {
  const begunMs = clock.nowMs();
  return lengths.map(async (lengthBytes) => {
    await pacer.take(lengthBytes);
    return clock.nowMs() - begunMs;
  });
}

function assertAbout(actualMs: number | undefined, expectedMs: number): void {
  assert.ok(actualMs !== undefined && Math.abs(actualMs - expectedMs) < READINGS_MS, `${actualMs} ms`);
}

test('what comes at once passes in its order, at the rate', () =>
  inSimulation(async (pacer, clock) => {
    pacer.bytesPerSecond = MiB;
    const waits = await Promise.all(takeAll(pacer, clock, [256 * KiB, 256 * KiB, 256 * KiB]));
    // The first passes at once, and is 20 ms ahead.
    for (const [index, waitMs] of waits.entries()) assertAbout(waitMs, index === 0 ? 0 : index * 250 - 20);
  }));

test('nobody waits longer than a second, whatever passed before, and nothing beyond it is owed', () =>
  inSimulation(async (pacer, clock) => {
    pacer.bytesPerSecond = KiB;
    for (const waitMs of await Promise.all(takeAll(pacer, clock, Array<number>(8).fill(1024 * MiB))))
      assert.ok(waitMs < MOST_WAIT_MS + READINGS_MS, `${waitMs} ms`);
    await clock.sleep(MOST_WAIT_MS);
    assert.equal(pacer.delayMs(), 0);
  }));

test('who waits passes at once when nobody is to be held back any more', () =>
  inSimulation(async (pacer, clock) => {
    pacer.bytesPerSecond = MiB;
    const waiting = takeAll(pacer, clock, Array<number>(8).fill(MiB));
    await clock.sleep(100);
    pacer.bytesPerSecond = 0;
    const [first, ...others] = await Promise.all(waiting);
    assertAbout(first, 0);
    for (const waitMs of others) assertAbout(waitMs, 100);
  }));

test('who waits goes on at a rate that is new', () =>
  inSimulation(async (pacer, clock) => {
    pacer.bytesPerSecond = MiB;
    const waiting = takeAll(pacer, clock, [512 * KiB, 1]);
    await clock.sleep(80);
    pacer.bytesPerSecond = 4 * MiB;
    // Of 480 ms, 400 are left, at four times the rate.
    assertAbout((await Promise.all(waiting))[1], 180);
  }));
