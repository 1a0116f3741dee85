import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

test('what a commit writes makes a file grow ahead, as what a guest writes does', async (t) => {
  const bed = new EngineBed(t);
  const filename = bed.path('A.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
  const file = {
    driver: 'preallocate',
    'prealloc-size': 16 * MiB,
    file: { driver: 'file', 'node-name': 'file', filename },
  };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
  await bed.device('A');
  await bed.guest('write 0 1M');
  await bed.snapshot('A', 'B');
  const { size } = statSync(filename);
  assert.ok(size < 4 * MiB);
  // What was cut while the file was being opened read-only is not there for its node either.
  assert.equal(bed.engine.graph.node('file').lengthBytes, size);
  await bed.guest('write 1M 1M');
  await bed.execute('block-commit', { 'job-id': 'j', device: 'B' });
  await bed.event('BLOCK_JOB_READY', 'j');
  assert.ok(statSync(filename).size > 16 * MiB);
});
