import assert from 'node:assert/strict';
import test from 'node:test';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

async function serving(bed: EngineBed): Promise<string> {
  const path = bed.path('nbd.sock');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  return path;
}

test('nbd-server-remove takes the id of an export, whatever name it is served under', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await serving(bed);
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'A', name: 'disk' });
  assert.equal(await bed.refusal('nbd-server-remove', { name: 'disk' }), "Export 'disk' is not found");
  await bed.execute('nbd-server-remove', { name: 'e' });
  assert.deepEqual(await bed.execute('query-block-exports'), []);
});

test('an exported disk keeps the size that its clients were told', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await serving(bed);
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'A' });
  assert.equal(
    await bed.refusal('block_resize', { 'node-name': 'A', size: 2 * DISK_BYTES }),
    "Permission conflict on node 'A': permissions 'resize' are both required by an unnamed block device " +
      "(uses node 'A' as 'root' child) and unshared by an unnamed block device (uses node 'A' as 'root' child).",
  );
  await bed.execute('block-export-del', { id: 'e' });
  await bed.execute('block_resize', { 'node-name': 'A', size: 2 * DISK_BYTES });
});
