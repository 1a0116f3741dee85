import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../src/base/async.js';
import type { Host, SocketAddress } from '../../src/host/host.js';
import { computeConformance } from './compute-conformance.js';
import { fileConformance } from './file-conformance.js';
import { socketConformance } from './socket-conformance.js';

export interface HostUnderTest {
  host: Host;
  /** An existing folder for the test's files. */
  folder: string;
  /** Where a socket may listen, besides unix sockets in the folder. */
  addresses: SocketAddress[];
  /** Where threads are not real, makes those end that are to run a function. */
  failCompute: (name: string) => void;
  /** Runs a test's body; the simulation lets its time pass meanwhile. */
  run(body: () => Promise<void>): Promise<void>;
}

/** Part of a test's context. */
export interface Cleanup {
  after(callback: () => void | Promise<void>): void;
}

export type Check = (title: string, body: (under: HostUnderTest) => Promise<void>) => void;

/** What every host must do. `create` is called once for each test and sees to the cleaning up. */
export function hostConformance(name: string, create: (context: Cleanup) => Promise<HostUnderTest>): void {
  const check: Check = (title, body) => {
    test(`${name}: ${title}`, async (context) => {
      const under = await create(context);
      await under.run(() => body(under));
    });
  };
  fileConformance(check);
  socketConformance(check);
  clockConformance(check);
  computeConformance(check);
}

function clockConformance(check: Check): void {
  check('timers come in order and can be taken back', async ({ host: { clock } }) => {
    const order: string[] = [];
    const deferredRan = deferred();
    const lateRan = deferred();
    // Before there are timers: a process that stands still for a while finds them due first.
    clock.defer(() => {
      order.push('deferred');
      deferredRan.resolve();
    });
    order.push('now');
    await deferredRan.promise;
    const startMs = clock.nowMs();
    clock.setTimer(60, () => {
      order.push('late');
      lateRan.resolve();
    });
    clock.setTimer(20, () => order.push('early'));
    const cancelled = clock.setTimer(30, () => order.push('cancelled'));
    cancelled.cancel();
    await clock.macrotask();
    await lateRan.promise;
    assert.deepEqual(order, ['now', 'deferred', 'early', 'late']);
    assert.ok(clock.nowMs() - startMs >= 58);
    const { seconds, microseconds } = clock.wallClock();
    assert.ok(seconds > 1_700_000_000 && microseconds >= 0 && microseconds < 1_000_000);
  });

  check('random numbers stay below their bound and differ', async ({ host: { random } }) => {
    const drawn = new Set(Array.from({ length: 500 }, () => random.below(10)));
    assert.deepEqual(
      [...drawn].sort((a, b) => a - b),
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    );
    assert.notDeepEqual(random.bytes(16), random.bytes(16));
  });
}
