import assert from 'node:assert/strict';
import test, { type TestContext } from 'node:test';
import { parseEndpoint } from '../../src/attach/endpoint.js';
import type { JsonObject } from '../../src/schema/types.js';
import { encodeVringState } from '../../src/wire/vhost-user/codec.js';
import { Feature, Request } from '../../src/wire/vhost-user/constants.js';
import { VhostFrontEnd } from '../kit/vhost-front-end.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

const OK = 0;
const IO_ERROR = 1;
/** Offsets in struct virtio_blk_config (virtio 1.2, 5.2.4). */
const Offset = { capacity: 0, blockSize: 20, physicalExponent: 24, minIo: 26, optimalIo: 28, writeback: 32 };

/** A machine with disk A as a device whose endpoint is vhost-user, and its guest. */
async function bedWith(
  t: TestContext,
  properties: JsonObject = {},
  options: JsonObject = {},
): Promise<{ bed: EngineBed; guest: VhostFrontEnd }> {
  const bed = new EngineBed(t);
  await bed.image('A', options);
  const path = bed.path('disk.vhost');
  await bed.execute('device_add', {
    ...{ driver: 'virtio-blk-pci', id: 'virtio0', drive: 'A', 'x-endpoint': `vhost-user:${path}` },
    ...properties,
  });
  const guest = await VhostFrontEnd.start({ host: bed.engine.host, path });
  t.after(() => guest.close());
  return { bed, guest };
}

async function config(guest: VhostFrontEnd): Promise<Buffer> {
  const payload = Buffer.alloc(12 + 60);
  payload.writeUInt32LE(60, 4);
  return (await guest.ask(Request.getConfig, payload)).subarray(12);
}

test('a guest over vhost-user is told what its device is', async (t) => {
  const { guest } = await bedWith(t, {
    ...{ serial: 'disk-7', logical_block_size: 4096, physical_block_size: 16384, 'write-cache': 'off' },
    ...{ min_io_size: 8192, opt_io_size: 65536, discard: false, 'config-wce': false },
  });
  const told = await config(guest);
  assert.equal(told.readBigUInt64LE(Offset.capacity), BigInt(DISK_BYTES / 512));
  assert.equal(told.readUInt32LE(Offset.blockSize), 4096);
  assert.equal(told[Offset.physicalExponent], 2);
  assert.equal(told.readUInt16LE(Offset.minIo), 2);
  assert.equal(told.readUInt32LE(Offset.optimalIo), 16);
  assert.equal(told[Offset.writeback], 0);
  const features = await guest.askNumber(Request.getFeatures);
  assert.equal(features & (Feature.discard | Feature.configWce | Feature.flush | Feature.readOnly), 0n);
  assert.notEqual(features & Feature.writeZeroes, 0n);
  const id = guest.allocate(20);
  assert.equal(await guest.request(8, 0, { into: [id] }), OK);
  assert.equal(guest.bytes(id).toString('latin1').replace(/\0+$/, ''), 'disk-7');
});

test('what its guest does over vhost-user is the I/O of the device, until that is deleted', async (t) => {
  const { bed, guest } = await bedWith(t);
  assert.equal(await guest.write(0, Buffer.alloc(65536, 0x11)), OK);
  await bed.guest('read -P 0x11 0 64k');
  await bed.execute('block_resize', { 'node-name': 'A', size: 2 * DISK_BYTES });
  assert.equal((await config(guest)).readBigUInt64LE(0), BigInt((2 * DISK_BYTES) / 512));

  await bed.execute('stop');
  const written = guest.write(8, Buffer.alloc(4096, 0x22));
  await bed.guest('read -P 0x11 0 64k');
  await bed.execute('cont');
  assert.equal(await written, OK);
  await bed.guest('read -P 0x22 4k 4k');

  const mirror = { 'job-id': 'm', sync: 'full', target: bed.path('B.qcow2'), 'node-name': 'B' };
  await bed.execute('drive-mirror', { device: 'A', ...mirror });
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('block-job-complete', { device: 'm' });
  await bed.event('BLOCK_JOB_COMPLETED', 'm');
  assert.equal(await guest.write(16, Buffer.alloc(4096, 0x33)), OK);
  await bed.guest('read -P 0x33 8k 4k');

  await bed.execute('device_del', { id: 'virtio0' });
  await guest.closed();
  const deleted = await bed.event('DEVICE_DELETED', 'virtio0');
  assert.equal(deleted['path'], '/machine/peripheral/virtio0');
});

for (const [isRunning, wantsInflight] of [
  [true, false],
  [true, true],
  [false, true],
] as const)
  test(`a write that fails, and whose guest ${isRunning ? 'ran' : 'did not run'}, waits for cont, its queue ${wantsInflight ? 'does not' : 'too'}`, async (t) => {
    const bed = new EngineBed(t, { startStopped: !isRunning });
    const { runState } = bed.engine;
    runState.servesStopped = true;
    await bed.engine.addNode({
      driver: 'blkdebug',
      'node-name': 'A',
      image: { driver: 'null-co', size: DISK_BYTES },
      'inject-error': [{ event: 'none', iotype: 'write', errno: 28, once: true }],
    });
    const path = bed.path('disk.vhost');
    const endpoint = { type: 'unix', path, protocol: 'vhost-user' } as const;
    await bed.engine.addDevice('A', { id: 'virtio0', writeErrors: 'stop', endpoint });
    const guest = await VhostFrontEnd.start({ host: bed.engine.host, path, wantsInflight });
    t.after(() => guest.close());
    const begun = guest.begin(1, 0, { out: [guest.allocate(512)] });
    await bed.event('BLOCK_IO_ERROR', '');
    assert.equal(runState.status, isRunning ? 'io-error' : 'prelaunch');
    let isStopped = false;
    const stopped = guest.ask(Request.getVringBase, encodeVringState(0, 0)).then(() => (isStopped = true));
    if (wantsInflight) await stopped;
    else await bed.engine.host.clock.sleep(50);
    assert.deepEqual([isStopped, guest.bytes(begun.status)[0]], [wantsInflight, 0xff]);
    await bed.execute('cont');
    await stopped;
    if (wantsInflight) guest.startQueue(0, guest.queue(0).driver, 1);
    assert.equal((await guest.end(begun)).status, OK);
  });

test('a device of a node that may only be read says so over vhost-user', async (t) => {
  const { guest } = await bedWith(t, {}, { 'read-only': true });
  assert.notEqual((await guest.askNumber(Request.getFeatures)) & Feature.readOnly, 0n);
  assert.equal(await guest.write(0, Buffer.alloc(512)), IO_ERROR);
});

test('where an endpoint cannot be, it is refused by name', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  const scsi = { driver: 'nvme', drive: 'A', serial: 's', 'x-endpoint': 'vhost-user:/nowhere/x' };
  const why = await bed.refusal('device_add', scsi);
  assert.equal(why, 'x-endpoint: vhost-user is for virtio-blk, not for nvme');
  assert.match(await bed.refusal('device_add', { ...scsi, 'x-endpoint': 'nonsense' }), /^x-endpoint is /);
  assert.throws(() => parseEndpoint('tcp:host:99999'), /^BlockError: x-endpoint is /);
});

test('forms of an endpoint', () => {
  assert.deepEqual(parseEndpoint('unix:/a:b'), { type: 'unix', path: '/a:b' });
  assert.deepEqual(parseEndpoint('nbd:unix:/a'), { type: 'unix', path: '/a' });
  assert.deepEqual(parseEndpoint('nbd:tcp::10809'), { type: 'inet', host: 'localhost', port: 10809 });
  assert.deepEqual(parseEndpoint('tcp:there:1'), { type: 'inet', host: 'there', port: 1 });
  const vhost = { protocol: 'vhost-user', type: 'unix', path: './a' };
  assert.deepEqual(parseEndpoint('vhost-user:./a'), vhost);
  assert.deepEqual(parseEndpoint('vhost-user:unix:./a'), vhost);
});
