import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { GuestDevice } from '../../attach/device.js';
import { deviceModel } from '../../attach/device-models.js';
import type { Plugged } from '../../attach/machine.js';
import { FrontEnds } from './front-ends.js';

for (const [isShared, name] of [
  [true, 'virtio-blk-pci'],
  [false, 'nvme'],
] as const)
  test(`what QMP asks for of a disk has its types over ${isShared ? 'vhost-user' : 'NBD'}, too`, (t) => {
    const frontEnds = new FrontEnds(isShared);
    t.after(() => frontEnds.removeSockets());
    const model = deviceModel(name);
    const disk = {
      endpoint: frontEnds.endpointFor(model),
      backend: { isWritable: true, root: {}, name: '' },
      errorPolicies: {},
    } as unknown as GuestDevice;
    const plugged = {
      model,
      id: 'd',
      path: '/d',
      given: { addr: '6', multifunction: 'on' },
    } as unknown as Plugged;
    const given = { driver: name, id: 'd', bus: 'b', drive: 'A', addr: 6, multifunction: true };
    const { device } = frontEnds.of(plugged, disk, { isPlaced: true, given });
    const { driver, id, addr, multifunction, ...rest } = device;
    assert.deepEqual([id, addr, multifunction], ['d', 6, true]);
    if (!isShared) return assert.deepEqual([driver, rest], ['nvme', { drive: 'livedisk-0' }]);
    assert.equal(driver, 'vhost-user-blk-pci');
    assert.deepEqual(rest, { 'num-queues': 1, chardev: 'livedisk.0' });
  });
