import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Daemon, run, scratch, skipWithout } from './daemon.js';
import { GuestMachine, kernelFor } from './guest-machine.js';
import { assertUnbroken, ringOf } from './guest-ring.js';

const MiB = 1024 * 1024;

const serving = (t: TestContext, folder: string, image: string): Promise<Daemon> =>
  Daemon.livedisk(
    t,
    folder,
    ...['-blockdev', `node-name=A,driver=qcow2,file.driver=file,file.filename=./${image}`],
    ...['-export', 'vhost-user-blk,id=e,node-name=A,writable=on,addr.type=unix,addr.path=./disk.vhost'],
  );

for (const form of ['split', 'packed'] as const)
  test(`a machine writes into an export of its memory through ${form} rings, through jobs, a resize and the end of the program`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
    const folder = scratch(t);
    const kernel = kernelFor(t, folder);
    if (!kernel) return;
    run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'a.qcow2', '64M');
    const first = await serving(t, folder, 'a.qcow2');
    const guest = await GuestMachine.boot(kernel, {
      vhostUser: join(folder, 'disk.vhost'),
      isPacked: form === 'packed',
    });
    t.after(() => guest.kill());
    t.diagnostic(`guest runs under ${guest.accelerator}`);
    await guest.reached(20);

    await first.execute('block_resize', { 'node-name': 'A', size: 96 * MiB });
    await guest.sawSize(96 * MiB);

    const target = { 'job-id': 'm', target: 'e.qcow2', 'node-name': 'E' };
    await first.execute('drive-mirror', { device: 'A', sync: 'full', ...target });
    await first.event('BLOCK_JOB_READY', { device: 'm' });
    await guest.reached(guest.lastRecord + 20);
    await first.execute('block-job-complete', { device: 'm' });
    await first.event('BLOCK_JOB_COMPLETED', { device: 'm' });
    await guest.reached(guest.lastRecord + 20);

    await first.execute('blockdev-snapshot-sync', {
      ...{ 'node-name': 'E', 'snapshot-file': 'f.qcow2' },
      ...{ format: 'qcow2', 'snapshot-node-name': 'F' },
    });
    await guest.reached(guest.lastRecord + 20);

    // What was under way is done by who comes next.
    await first.kill();
    const second = await serving(t, folder, 'f.qcow2');
    await guest.reached(guest.lastRecord + 40);

    assert.equal(guest.hadError, false, guest.console.slice(-500));
    await guest.kill();
    const synced = guest.lastRecord;
    assert.equal(await second.quit(), 0, second.output);
    for (const image of ['e.qcow2', 'f.qcow2']) run(folder, 'qemu-img', 'check', image);
    assertUnbroken(ringOf(folder, 'f.qcow2'), synced, 'the disk in use');
  });

test('a machine sees a device over vhost-user as it was asked for, and waits while it is stopped', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = scratch(t);
  const kernel = kernelFor(t, folder);
  if (!kernel) return;
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'a.qcow2', '64M');
  const shape =
    'serial=disk-7,logical_block_size=4096,physical_block_size=8192,write-cache=off,config-wce=off';
  const daemon = await Daemon.livedisk(
    t,
    folder,
    ...['-blockdev', 'node-name=A,driver=qcow2,file.driver=file,file.filename=./a.qcow2'],
    ...['-device', `virtio-blk-pci,drive=A,id=d,x-endpoint=vhost-user:./disk.vhost,${shape}`],
  );
  const guest = await GuestMachine.boot(kernel, { vhostUser: join(folder, 'disk.vhost') });
  t.after(() => guest.kill());
  assert.equal(guest.disk, 'disk-7:4096:8192:write through:0');
  await guest.reached(20);
  await daemon.execute('block_resize', { 'node-name': 'A', size: 96 * MiB });
  await guest.sawSize(96 * MiB);
  await daemon.execute('stop');
  await daemon.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'A', 'snapshot-file': 'b.qcow2', 'snapshot-node-name': 'B' },
  });
  await daemon.execute('cont');
  await guest.reached(guest.lastRecord + 20);
  assert.equal(guest.hadError, false, guest.console.slice(-500));
  await guest.kill();
  const synced = guest.lastRecord;
  assert.equal(await daemon.quit(), 0, daemon.output);
  assertUnbroken(ringOf(folder, 'b.qcow2'), synced, 'the disk in use');
});
