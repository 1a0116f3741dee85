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
  assert.ok(cache.heldBytes <= cache.limitBytes);
});

/** Loads tables one after the other; answers in how many different buffers they were. */
async function buffersOf(cache: TableCache, indexes: readonly number[]): Promise<Set<Buffer>> {
  const buffers = new Set<Buffer>();
  for (const index of indexes) {
    const fresh = new CachedTable(index, cache.buffer().fill(index), index * TABLE, false);
    await cache.load(index, () => Promise.resolve(fresh));
    const table = cache.peek(index);
    assert.ok(table && table.bytes.equals(Buffer.alloc(TABLE, index)));
    buffers.add(table.bytes);
  }
  return buffers;
}

test('tables that come take the buffers of those that left', async () => {
  const cache = new TableCache(TABLE, 4 * TABLE);
  const buffers = await buffersOf(
    cache,
    Array.from({ length: 100 }, (_, index) => index),
  );
  assert.ok(buffers.size <= 5, `${buffers.size} buffers`);
});

test('a buffer is not used again while its table is pinned, dirty, being written back or not looked at yet', async () => {
  const cache = new TableCache(TABLE, 2 * TABLE);
  const kept = [1, 2, 3, 4].map((index) => {
    const table = new CachedTable(index, cache.buffer().fill(index), index * TABLE, false);
    cache.put(table);
    if (index === 1) table.pins++;
    if (index === 2) table.change(0, 8);
    if (index === 3) {
      table.change(0, TABLE);
      table.takeDirty();
    }
    if (index === 4) table.isAwaited = true;
    return table;
  });
  await buffersOf(cache, [10, 11, 12, 13, 14]);
  for (const table of kept) assert.ok(table.bytes.equals(Buffer.alloc(TABLE, table.index)));
});

test('a table that is changed while it is written back: the write-back has it as it was', () => {
  const large = 64 * 1024;
  const cache = new TableCache(large, 2 * large);
  for (const changed of [8, large]) {
    const table = new CachedTable(changed, cache.buffer().fill(1), 0, false);
    cache.put(table);
    table.change(0, changed);
    const piece = table.takeDirty();
    table.change(0, 1).fill(2, 0, 1);
    assert.equal(table.bytes[0], 2);
    assert.ok(piece.bytes.every((byte) => byte === 1));
    assert.ok(table.isDirty);
    // Its buffer goes to no other table before the write-back has ended.
    cache.buffer().fill(3);
    assert.ok(piece.bytes.every((byte) => byte === 1));
    cache.release(table);
    assert.equal(table.bytes[0], 2);
    assert.equal(table.writeBacks, 0);
  }
});

test('whoever still looks at a table that left memory finds nothing, rather than another one', async () => {
  const cache = new TableCache(TABLE, 2 * TABLE);
  const table = new CachedTable(0, cache.buffer().fill(0), 0, false);
  cache.put(table);
  await buffersOf(cache, [1, 2, 3]);
  assert.equal(table.bytes.length, 0);
});

test('to find a table that may leave, or whether a write-back is due, the cache does not look at all of them', () => {
  const room = 1024;
  const cache = new TableCache(TABLE, room * TABLE);
  let looks = 0;
  class Watched extends CachedTable {
    override get isDirty(): boolean {
      looks++;
      return super.isDirty;
    }
  }
  const rounds = 8 * room;
  for (let index = 0; index < rounds; index++) {
    const table = new Watched(index, cache.buffer(), index * TABLE, false);
    cache.put(table);
    if (index % 16 === 0) table.change(0, 8);
    if (index % 512 === 511) for (const dirty of cache.dirty()) cache.release((dirty.takeDirty(), dirty));
    assert.equal(cache.needsWriteBack, false);
  }
  assert.ok(cache.heldBytes <= cache.limitBytes);
  assert.ok(looks < 12 * rounds, `${looks} looks for ${rounds} tables`);
});

test('tables that were looked at stay, and those that were not leave', () => {
  const cache = new TableCache(TABLE, 8 * TABLE);
  const add = (index: number): void =>
    cache.put(new CachedTable(index, Buffer.alloc(TABLE), index * TABLE, false));
  for (let index = 0; index < 8; index++) add(index);
  add(8);
  for (let index = 9; index < 200; index++) {
    assert.ok(cache.peek(8), `before ${index}`);
    add(index);
  }
});

test('what is dirty is known, also of tables that another one replaced', () => {
  const cache = new TableCache(TABLE, 8 * TABLE);
  const first = new CachedTable(1, Buffer.alloc(TABLE), 0, true);
  cache.put(first);
  assert.deepEqual([...cache.dirty()], [first]);
  const second = new CachedTable(1, Buffer.alloc(TABLE), TABLE, false);
  cache.put(second);
  assert.equal(cache.isDirty, false);
  first.markDirty(0, 8);
  assert.equal(cache.isDirty, false);
  second.change(0, 8);
  assert.deepEqual([...cache.dirty()], [second]);
  second.takeDirty();
  assert.equal(cache.isDirty, false);
  second.isNew = true;
  assert.deepEqual([...cache.dirty()], [second]);
});
