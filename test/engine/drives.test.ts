import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { addDevice } from '../../src/monitor/devices.js';
import { addDrive } from '../../src/monitor/drives.js';
import { parseDrive } from '../../src/programs/arguments/drive-options.js';
import type { JsonObject } from '../../src/schema/types.js';
import { takesDirect } from '../kit/direct-io.js';
import { EngineBed } from './engine-bed.js';

const NO_WARNING = (text: string): never => assert.fail(text);

async function drive(bed: EngineBed, text: string): Promise<void> {
  await addDrive(bed.engine, parseDrive(`if=none,${text}`, NO_WARNING));
}

function device(bed: EngineBed, options: JsonObject): Promise<void> {
  return addDevice(bed.engine, options, { mode: 'keyval', hot: false });
}

async function human(bed: EngineBed, line: string): Promise<string> {
  const text = (await bed.execute('human-monitor-command', { 'command-line': line })) as string;
  return text.replaceAll('\r\n', '\n');
}

async function disks(bed: EngineBed): Promise<JsonObject[]> {
  return (await bed.execute('query-block')) as JsonObject[];
}

test('a drive is known by its id, with a medium or without one', async (t) => {
  const bed = new EngineBed(t);
  await drive(bed, 'id=d,format=null-co,node-name=n');
  await drive(bed, 'id=empty');
  const found = await disks(bed);
  assert.deepEqual(
    found.map((disk) => [disk['device'], 'inserted' in disk, disk['removable']]),
    [
      ['d', true, true],
      ['empty', false, true],
    ],
  );
  await assert.rejects(drive(bed, 'id=d,format=null-co'), { message: "Duplicate ID 'd' for drive" });
  await assert.rejects(drive(bed, 'id=n,format=null-co'), {
    message: "Device name 'n' conflicts with an existing node name",
  });
  await assert.rejects(bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'empty' }), {
    message: 'node-name=empty is conflicting with a device id',
  });
  await assert.rejects(bed.execute('block-stream', { device: 'empty' }), {
    message: "Device 'empty' has no medium",
  });
  // What failed has left nothing behind.
  assert.deepEqual([...bed.engine.graph.nodes.keys()], ['n']);
});

test('what looks for the format of a drive has its cache mode', async (t) => {
  const bed = new EngineBed(t);
  const filename = join(bed.folder, 'disk.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: 1_048_576 });
  if (!(await takesDirect(bed.engine.host, filename))) return t.skip('this file system has no O_DIRECT');
  const options = ['cache=none,aio=native', 'aio=native,cache.direct=on', 'aio=native,cache=directsync'];
  for (const [i, text] of options.entries()) {
    await drive(bed, `id=d${i},file=${filename},${text},read-only=on`);
    assert.equal(bed.engine.drives.get(`d${i}`)?.backend.node.driver.name, 'qcow2');
  }
  await assert.rejects(drive(bed, `id=e,file=${filename},aio=native`), /requires cache\.direct=on/);
});

test('a drive may detect zeroes to unmap where nothing is unmapped', async (t) => {
  const bed = new EngineBed(t);
  const image = (name: string): string => join(bed.folder, name);
  for (const name of ['a', 'b']) writeFileSync(image(name), Buffer.alloc(1_048_576, 1));
  await drive(bed, `id=a,format=raw,file=${image('a')},detect-zeroes=unmap`);
  await drive(bed, `id=b,format=raw,file=${image('b')},detect-zeroes=unmap,discard=unmap`);
  const modes = (await disks(bed)).map(({ inserted }) => (inserted as JsonObject)['detect_zeroes']);
  assert.deepEqual(modes, ['unmap', 'unmap']);
  for (const id of ['a', 'b']) await human(bed, `qemu-io ${id} "write -P 0 0 1M"`);
  assert.ok(statSync(image('a')).blocks * 512 >= 1_048_576);
  assert.ok(statSync(image('b')).blocks * 512 < 1_048_576);
  await assert.rejects(drive(bed, 'id=c,format=null-co,detect-zeroes=x'), {
    message: 'invalid parameter value: x',
  });
  await assert.rejects(drive(bed, 'id=c,detect-zeroes=on'), /'detect-zeroes' is not supported/);
});

test('a job without an id has that of its drive', async (t) => {
  const bed = new EngineBed(t);
  await drive(bed, 'id=d,format=null-co,size=1M');
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'target', size: 1048576 });
  await bed.execute('blockdev-mirror', { device: 'd', target: 'target', sync: 'full' });
  const jobs = (await bed.execute('query-block-jobs')) as JsonObject[];
  assert.deepEqual(
    jobs.map((job) => job['device']),
    ['d'],
  );
});

test('what is written to a drive with snapshot=on is nowhere to be seen', async (t) => {
  const bed = new EngineBed(t);
  const filename = join(bed.folder, 'disk.img');
  writeFileSync(filename, Buffer.alloc(65536));
  Object.assign(bed.engine, { temporaryFolder: bed.folder });
  await drive(bed, `id=d,file=${filename},format=raw,snapshot=on`);
  assert.deepEqual(readdirSync(bed.folder), ['disk.img']);
  await human(bed, 'qemu-io d "write -P 7 0 4k"');
  await human(bed, 'qemu-io d "read -P 7 0 4k"');
  assert.ok(!bed.printed.some((line) => line.includes('Pattern verification failed')));
  const bytes = readFileSync(filename);
  assert.ok(bytes.every((byte) => byte === 0));
});

test('what qemu-io of the human monitor does not know is told on standard error', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  assert.equal(await human(bed, 'qemu-io A "bogus"'), '');
  assert.ok(!bed.printed.some((line) => line.includes('bogus')));
  assert.deepEqual(bed.printedErrors, ['command "bogus" not found']);
});

test('a drive with copy-on-read=on copies what is read into its image', async (t) => {
  const bed = new EngineBed(t);
  for (const name of ['base', 'top']) {
    await bed.image(name);
    await bed.execute('blockdev-del', { 'node-name': name });
  }
  const backing = `backing.driver=qcow2,backing.file.filename=${bed.path('base.qcow2')}`;
  await drive(bed, `id=d,file=${bed.path('top.qcow2')},format=qcow2,node-name=n,${backing},copy-on-read=on`);
  assert.equal(await human(bed, 'qemu-io d "read 0 64k"'), '');
  const node = bed.engine.graph.node('n');
  const isAllocated = async (at: number): Promise<boolean> => (await node.io.status(at, 65536)).allocated;
  assert.deepEqual([await isAllocated(0), await isAllocated(65536)], [true, false]);
  const readOnly: string[] = [];
  parseDrive('id=e,file=x,readonly=on,copy-on-read=on', (text) => void readOnly.push(text));
  assert.deepEqual(readOnly, ['disabling copy-on-read on read-only drive']);
});

test('a device that is deleted is told of, and its drive goes with it', async (t) => {
  const bed = new EngineBed(t);
  await drive(bed, 'id=d,format=null-co');
  await device(bed, { driver: 'virtio-blk', drive: 'd', id: 'v' });
  await assert.rejects(device(bed, { driver: 'virtio-blk', drive: 'd' }), {
    message: "Drive 'd' is already in use by another device",
  });
  await bed.execute('device_del', { id: 'v' });
  await bed.event('DEVICE_DELETED', 'v');
  assert.deepEqual(
    bed.events.filter(({ event }) => event === 'DEVICE_DELETED').map(({ data }) => data),
    [{ path: '/machine/peripheral/v/virtio-backend' }, { device: 'v', path: '/machine/peripheral/v' }],
  );
  assert.deepEqual(await disks(bed), []);
  assert.equal(bed.engine.graph.nodes.size, 0);
});

test('the jobs of a drive go with its device: the one that is ready ends well, all are over before it is told', async (t) => {
  for (const [command, speed, last] of [
    ['drive-mirror', 0, 'BLOCK_JOB_COMPLETED'],
    ['drive-backup', 1, 'BLOCK_JOB_CANCELLED'],
  ] as const) {
    const bed = new EngineBed(t);
    await bed.image('A');
    await bed.engine.close();
    const fresh = new EngineBed(t);
    await drive(fresh, `id=d,file=${bed.path('A.qcow2')},format=qcow2`);
    await device(fresh, { driver: 'virtio-blk', drive: 'd', id: 'v' });
    await human(fresh, 'qemu-io d "write -P 7 0 4M"');
    const job = { device: 'd', target: fresh.path('copy'), format: 'raw', sync: 'full', speed };
    await fresh.execute(command, job);
    if (speed === 0) await fresh.event('BLOCK_JOB_READY', 'd');
    await fresh.execute('device_del', { id: 'v' });
    await fresh.event('DEVICE_DELETED', 'v');
    const names = fresh.events.map(({ event }) => event).filter((name) => name !== 'JOB_STATUS_CHANGE');
    assert.deepEqual(names.slice(-3), [last, 'DEVICE_DELETED', 'DEVICE_DELETED'], command);
    assert.deepEqual(await fresh.execute('query-jobs'), []);
    assert.equal(fresh.engine.graph.nodes.size, 0, command);
    if (speed === 0)
      assert.ok(
        readFileSync(fresh.path('copy'))
          .subarray(0, 1048576)
          .every((byte) => byte === 7),
      );
  }
});

test('a controller takes the disks on it along', async (t) => {
  const bed = new EngineBed(t);
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n' });
  await assert.rejects(device(bed, { driver: 'scsi-hd', drive: 'n' }), {
    message: "No 'SCSI' bus found for device 'scsi-hd'",
  });
  await device(bed, { driver: 'virtio-scsi-pci', id: 's' });
  await device(bed, { driver: 'scsi-hd', drive: 'n', id: 'hd', bus: 's.0' });
  await bed.execute('device_del', { id: 's' });
  await bed.event('DEVICE_DELETED', 's');
  assert.deepEqual(await disks(bed), []);
  // The user's node stays.
  await bed.execute('blockdev-del', { 'node-name': 'n' });
});

test('a device that only reads takes a node that may only be read, a hard disk on IDE does not', async (t) => {
  const bed = new EngineBed(t);
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', 'read-only': true });
  await assert.rejects(device(bed, { driver: 'ide-hd', drive: 'n' }), { message: 'Block node is read-only' });
  await device(bed, { driver: 'virtio-blk', drive: 'n' });
  assert.equal((await disks(bed))[0]?.['qdev'], '/machine/peripheral-anon/device[0]/virtio-backend');
});

test('a tray moves, and a medium goes in when it is open', async (t) => {
  const bed = new EngineBed(t);
  await device(bed, { driver: 'virtio-scsi-pci' });
  await device(bed, { driver: 'scsi-cd', id: 'cd' });
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n' });
  const insert = { id: 'cd', 'node-name': 'n' };
  await assert.rejects(bed.execute('blockdev-insert-medium', insert), {
    message: 'Tray of the device is not open',
  });
  await bed.execute('blockdev-open-tray', { id: 'cd' });
  await bed.execute('blockdev-insert-medium', insert);
  await bed.execute('blockdev-close-tray', { id: 'cd' });
  assert.deepEqual(
    bed.events.filter(({ event }) => event === 'DEVICE_TRAY_MOVED').map(({ data }) => data['tray-open']),
    [true, false],
  );
  assert.match(await human(bed, 'info block'), /^n: null-co:\/\/ \(null-co\)\n {4}Attached to: {6}cd\n/);
  await bed.execute('eject', { id: 'cd' });
  assert.match(await human(bed, 'info block'), /^cd: \[not inserted\]\n[^]*tray open\n/);
});

test('a medium that a job works on stays, and one that cannot be opened leaves the old one', async (t) => {
  const bed = new EngineBed(t);
  await drive(bed, 'id=d,format=null-co');
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 't' });
  await bed.execute('blockdev-mirror', { device: 'd', target: 't', sync: 'full', 'job-id': 'j' });
  await assert.rejects(bed.execute('eject', { device: 'd' }), { kind: 'busy' });
  const filename = join(bed.folder, 'nope');
  await assert.rejects(bed.execute('blockdev-change-medium', { device: 'd', filename }), {
    kind: 'not-found',
  });
  assert.ok('inserted' in ((await disks(bed))[0] ?? {}));
  assert.ok(!existsSync(filename));
});
