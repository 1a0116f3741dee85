import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EngineBed, MiB } from './engine-bed.js';

test('how the file of an image in use is used is told while a guest writes', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const before = await bed.execute('x-query-file-use', { node: 'virtio0' });
  await bed.guest('write -P 1 2M 1M');
  await bed.guest('flush');
  const after = (await bed.execute('x-query-file-use', { node: 'virtio0' })) as unknown as Record<
    string,
    number
  >;
  const { 'cluster-size': cluster = 0, 'data-clusters': clusters = 0, used = 0, length = 0 } = after;
  assert.ok(cluster > 0 && used <= length);
  assert.equal(clusters * cluster - Number((before as never)['data-clusters']) * cluster, MiB);
  assert.deepEqual(Object.keys(after).length, 9);
  assert.match(await bed.refusal('x-query-file-use', { node: 'none' }), /none/);
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'null' });
  assert.match(await bed.refusal('x-query-file-use', { node: 'null' }), /'null' is null-co/);
});
