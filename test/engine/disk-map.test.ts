import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

interface DiskMap {
  size: number;
  layers: string[];
  extents: Array<{ start: number; length: number; layer?: number; zero: boolean }>;
  next?: number;
}

test('which layer each part of a disk comes from is told, some stretches at a time', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.guest('write -z 3M 1M');
  const read = async (args: JsonObject = {}): Promise<DiskMap> =>
    (await bed.execute('x-query-map', { node: 'virtio0', ...args })) as unknown as DiskMap;
  const extents = [
    { start: 0, length: MiB, layer: 2, zero: false },
    { start: MiB, length: MiB, layer: 1, zero: false },
    { start: 2 * MiB, length: MiB, layer: 0, zero: false },
    { start: 3 * MiB, length: MiB, layer: 0, zero: true },
    { start: 4 * MiB, length: 4 * MiB, zero: true },
  ];
  const layers = ['C', 'B', 'A'];
  assert.deepEqual(await read(), { size: DISK_BYTES, layers, extents });
  assert.deepEqual(await read({ most: 2 }), {
    ...{ size: DISK_BYTES, layers, extents: extents.slice(0, 2), next: 2 * MiB },
  });
  assert.deepEqual((await read({ start: 2 * MiB })).extents, extents.slice(2));
  assert.deepEqual(await read({ start: DISK_BYTES }), { size: DISK_BYTES, layers, extents: [] });
  const below = await read({ node: 'B' });
  assert.deepEqual([below.layers, below.extents.length], [['B', 'A'], 4]);
  assert.match(await bed.refusal('x-query-map', { node: 'C', start: DISK_BYTES + 1 }), /beyond the end/);
  assert.match(await bed.refusal('x-query-map', { node: 'none' }), /none/);
});
