import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { EngineBed } from './engine-bed.js';

const NAMES = { read: 'rd', write: 'wr', flush: 'flush' } as const;

async function histograms(bed: EngineBed): Promise<{ [operation: string]: unknown }> {
  const [disk] = (await bed.execute('query-blockstats')) as JsonObject[];
  const stats = disk?.['stats'] as JsonObject;
  return Object.fromEntries(
    Object.entries(NAMES).map(([name, prefix]) => [name, stats[`${prefix}_latency_histogram`]]),
  );
}

test("a disk's requests are counted by how long they take, where that was asked for", async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const set = (boundaries: JsonObject): Promise<unknown> =>
    bed.execute('block-latency-histogram-set', { id: 'virtio0', ...boundaries });
  assert.deepEqual(await histograms(bed), { read: undefined, write: undefined, flush: undefined });
  // A nanosecond, and the longest time there is: all are between them.
  await set({ boundaries: [1, 2n ** 63n], 'boundaries-read': [] });
  for (const command of ['write 0 4k', 'write -z 4k 4k', 'read 0 4k', 'read 1M 512', 'flush'])
    await bed.guest(command);
  const { read, write, flush } = await histograms(bed);
  assert.deepEqual(read, { boundaries: [], bins: [2] });
  assert.deepEqual(write, { boundaries: [1, 2n ** 63n], bins: [0, 2, 0] });
  assert.ok(flush !== undefined);
  for (const [boundaries, operation] of [
    [{ boundaries: [5, 5] }, 'read'],
    [{ 'boundaries-write': [0] }, 'write'],
    [{ 'boundaries-flush': [7, 6] }, 'flush'],
  ] as Array<[JsonObject, string]>) {
    const refusal = await bed.refusal('block-latency-histogram-set', {
      id: 'virtio0',
      ...boundaries,
    });
    assert.equal(refusal, `Device 'virtio0' set ${operation} boundaries fail`);
  }
  await set({});
  assert.deepEqual(await histograms(bed), { read: undefined, write: undefined, flush: undefined });
});
