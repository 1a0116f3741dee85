import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CachedTable, TableCache } from './cached-table.js';

const TABLE = 512;
const read = (index: number) => () =>
  Promise.resolve(new CachedTable(index, Buffer.alloc(TABLE), index * TABLE, false));

test('more tables at a time than there is room for: each stays until it was looked at, and no longer', async () => {
  const cache = new TableCache(TABLE, 2 * TABLE);
  const indexes = Array.from({ length: 10 }, (_, index) => index);
  await Promise.all(indexes.map((index) => cache.load(index, read(index))));
  for (const index of indexes) assert.equal(cache.peek(index)?.index, index);
  await cache.load(10, read(10));
  assert.ok(cache.bytes <= cache.limitBytes);
});
