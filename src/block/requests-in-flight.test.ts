import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AssertionFailure } from '../base/assert.js';
import { allDrivers } from '../drivers/index.js';
import { createSimulatedHost } from '../host/simulated.js';
import { TestBed, type TestDisk } from '../../test/kit/test-disk.js';
import { createImage } from './create.js';
import type { NodeOptions } from './driver.js';
import { IoRequest, RequestPool } from './request.js';

const SIZE = 256 * 1024;

/** What a pool must never do: every second request that it hands out is one that is still in flight. */
class HastyPool extends RequestPool {
  #last: IoRequest | undefined;

  override take(): IoRequest {
    const again = this.#last;
    this.#last = again ? undefined : super.take();
    return again ?? this.#last ?? new IoRequest();
  }
}

async function requestsAtOnce(disk: TestDisk): Promise<unknown[]> {
  const asked = Array.from({ length: 8 }, (_, n) =>
    n % 3 === 0
      ? disk.backend.read(n * 8192, Buffer.alloc(700))
      : disk.backend.write(n * 8192 + 100, Buffer.alloc(900 * n, n)),
  );
  const settled = await Promise.allSettled(asked);
  return settled.map((result) => (result.status === 'rejected' ? (result.reason as unknown) : undefined));
}

const FILE: NodeOptions = { driver: 'file', filename: '/tmp/image' };
const STACKS: Readonly<Record<string, NodeOptions>> = {
  file: FILE,
  raw: { driver: 'raw', file: FILE },
  qcow2: { driver: 'qcow2', file: FILE },
  'blkdebug, which aligns': { driver: 'blkdebug', align: 4096, image: { driver: 'raw', file: FILE } },
  'qcow2 over blkdebug': { driver: 'qcow2', file: { driver: 'blkdebug', image: FILE } },
};

for (const [name, options] of Object.entries(STACKS)) {
  const run = async (pool: RequestPool, seed: number): Promise<unknown[]> => {
    const simulation = createSimulatedHost({ seed, refuseProbability: 1 });
    return simulation.run(async () => {
      const bed = new TestBed(simulation.host, allDrivers, '/tmp');
      const format = name.startsWith('qcow2') ? 'qcow2' : 'raw';
      await createImage(bed.opener, '/tmp/image', format, { sizeBytes: SIZE });
      const disk = await bed.open(options);
      Object.assign(disk.backend, { requests: pool });
      const errors = await requestsAtOnce(disk);
      Object.assign(disk.backend, { requests: new RequestPool() });
      await disk.close();
      return errors;
    });
  };

  test(`${name}: a request that is used anew while it is in flight is found by a station`, async () => {
    for (let seed = 0; seed < 5; seed++) {
      const sound = await run(new RequestPool(), seed);
      assert.deepEqual(sound, Array(8).fill(undefined));
      const errors = await run(new HastyPool(), seed);
      assert.ok(errors.some((error) => error instanceof AssertionFailure && /in flight/.test(error.message)));
    }
  });
}

test('in the simulation, a request that somebody touches after its answer is found, and copies are poisoned', () => {
  const pool = new RequestPool(createSimulatedHost({ seed: 3 }).host.requestWatch);
  const untouched = (): void => {
    for (let n = 0; n < 200; n++) pool.give(pool.take().ask('read', 0, 512));
  };
  untouched();
  const late = Array.from({ length: 8 }, () => pool.take().ask('write', 0, 4));
  for (const request of late) {
    request.setBuffer(Buffer.from('data'));
    request.isStable = false;
    assert.equal(request.stabilise(), undefined);
  }
  const copies = late.map((request) => request.gather(0, 4));
  for (const request of late) pool.give(request);
  for (const copy of copies) assert.notDeepEqual(copy, Buffer.from('data'));
  for (const request of late) request.setBuffer(Buffer.alloc(512));
  assert.throws(untouched, /used after its answer/);
});
