import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EngineBed } from './engine-bed.js';

test("force-share of a format goes for its file, where others' locks are", async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const file = { driver: 'file', filename: bed.path('B.qcow2') };
  const second = { driver: 'qcow2', 'read-only': true, file };
  assert.match(await bed.refusal('blockdev-add', { ...second, 'node-name': 'x' }), /^Failed to get /);
  await bed.execute('blockdev-add', { ...second, 'force-share': true, 'node-name': 'y' });
  const own = { ...second, 'force-share': true, file: { ...file, 'force-share': false } };
  assert.match(await bed.refusal('blockdev-add', { ...own, 'node-name': 'z' }), /^Failed to get shared /);
  const writing = { driver: 'qcow2', file, 'force-share': true, 'node-name': 'w' };
  assert.equal(
    await bed.refusal('blockdev-add', writing),
    'force-share=on can only be used with read-only images',
  );
});
