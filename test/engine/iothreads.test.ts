import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { EngineBed, MiB } from './engine-bed.js';

const REFUSED = 'Cannot change iothread of active block backend';

/** Nodes A and B that are only read, and SCSI controllers c0 and c1 of two threads, c2 of none. */
async function bedWithControllers(context: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(context);
  for (const node of ['A', 'B'])
    await bed.engine.addNode({ driver: 'null-co', 'node-name': node, size: MiB, 'read-only': true });
  for (const i of [0, 1]) {
    await bed.execute('object-add', { 'qom-type': 'iothread', id: `t${i}` });
    await bed.execute('device_add', { driver: 'virtio-scsi', id: `c${i}`, iothread: `t${i}` });
  }
  await bed.execute('device_add', { driver: 'virtio-scsi', id: 'c2' });
  return bed;
}

function disk(controller: string, drive: string, id: string): { [key: string]: string } {
  return { driver: 'scsi-hd', bus: `${controller}.0`, drive, id };
}

async function unplug(bed: EngineBed, id: string): Promise<void> {
  await bed.execute('device_del', { id });
  while (bed.engine.devices.has(id)) await bed.engine.host.clock.macrotask();
}

test('a node is of one thread: that of the devices that use it', async (t) => {
  const bed = await bedWithControllers(t);
  await bed.execute('device_add', disk('c0', 'A', 'first'));
  await bed.execute('device_add', disk('c0', 'A', 'second'));
  assert.equal(await bed.refusal('device_add', disk('c1', 'A', 'third')), REFUSED);
  assert.equal(await bed.refusal('device_add', disk('c2', 'A', 'third')), REFUSED);
  const virtio = { driver: 'virtio-blk', drive: 'A', id: 'third' };
  assert.equal(await bed.refusal('device_add', { ...virtio, iothread: 't1' }), REFUSED);
  await bed.execute('device_add', { ...virtio, iothread: 't0' });
  for (const id of ['first', 'second', 'third']) await unplug(bed, id);
  await bed.execute('device_add', disk('c1', 'A', 'third'));
});

test('nodes that are linked are of one thread, and an export goes along', async (t) => {
  const bed = await bedWithControllers(t);
  const filter = { driver: 'throttle', 'throttle-group': 'g', 'read-only': true };
  await bed.execute('object-add', { 'qom-type': 'throttle-group', id: 'g' });
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd.sock') } } });
  await bed.execute('nbd-server-add', { device: 'A' });
  await bed.execute('device_add', disk('c0', 'A', 'first'));
  await bed.execute('device_add', disk('c1', 'B', 'second'));
  await bed.engine.addNode({ ...filter, 'node-name': 'F', file: 'A' });
  assert.equal(await bed.refusal('device_add', disk('c1', 'F', 'third')), REFUSED);
  const moved = { options: [{ ...filter, 'node-name': 'F', file: 'B' }] };
  // Moved to the other, it is that one's.
  await bed.execute('blockdev-reopen', moved);
  await bed.execute('device_add', disk('c1', 'F', 'third'));
  const back = { options: [{ ...filter, 'node-name': 'F', file: 'A' }] };
  assert.equal(await bed.refusal('blockdev-reopen', back), REFUSED);
});
