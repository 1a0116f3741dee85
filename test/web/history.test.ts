import assert from 'node:assert/strict';
import { test } from 'node:test';
import { History } from '../../src/web/page/history.js';

test('where nobody looked for a while, no line is drawn', () => {
  const history = new History();
  for (const seconds of [1, 2, 3, 60, 61])
    history.add({
      name: 'disk',
      timeMs: seconds * 1000,
      disks: { v: { readOperations: seconds, writeOperations: 0, readBytes: 0, writeBytes: 0 } as never },
    });
  assert.deepEqual(history.data(['reads']), [
    [1, 2, 3, 4, 60, 61],
    [1, 2, 3, null, 60, 61],
  ]);
});

test('what is told again after a reconnect is one moment', () => {
  const history = new History();
  for (const timeMs of [1000, 2000, 2000]) history.add({ name: 'disk', timeMs, disks: {} });
  assert.deepEqual(history.data([])[0], [1, 2]);
});

test('a clock that is set back begins anew', () => {
  const history = new History();
  for (const seconds of [5000, 5001, 100, 101])
    history.add({ name: 'disk', timeMs: seconds * 1000, disks: {} });
  assert.deepEqual(history.data([])[0], [100, 101]);
});
