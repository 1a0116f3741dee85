import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, run, scratch, skipWithout } from './daemon.js';
import { GuestMachine, kernelFor } from './guest-machine.js';
import { assertUnbroken, ringOf } from './guest-ring.js';

test('a real machine keeps writing through a mirror with pivot and an active commit', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = scratch(t);
  const kernel = kernelFor(t, folder);
  if (!kernel) return;
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'a.qcow2', '64M');
  const daemon = await Daemon.livedisk(
    t,
    folder,
    ...['-blockdev', 'node-name=node-A,driver=qcow2,file.driver=file,file.filename=./a.qcow2'],
    ...['-device', 'virtio-blk,drive=node-A,id=virtio0,x-endpoint=unix:disk.sock'],
  );
  const guest = await GuestMachine.boot(kernel, { nbd: join(folder, 'disk.sock'), exportName: 'virtio0' });
  t.after(() => guest.kill());
  t.diagnostic(`guest runs under ${guest.accelerator}`);
  await guest.reached(20);

  await daemon.execute('drive-mirror', { device: 'node-A', 'job-id': 'm', target: 'e.qcow2', sync: 'full' });
  await daemon.event('BLOCK_JOB_READY', { device: 'm' });
  await guest.reached(guest.lastRecord + 20);
  await daemon.execute('block-job-complete', { device: 'm' });
  await daemon.event('BLOCK_JOB_COMPLETED', { device: 'm' });
  const atPivot = guest.lastRecord;
  await guest.reached(atPivot + 20);

  const block = (await daemon.execute('query-block')) as Array<{ inserted: { 'node-name': string } }>;
  const active = block[0]?.inserted['node-name'] ?? '';
  await daemon.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': active, 'snapshot-file': 'f.qcow2' },
    ...{ format: 'qcow2', 'snapshot-node-name': 'node-F' },
  });
  await guest.reached(guest.lastRecord + 20);
  await daemon.execute('block-commit', { device: 'node-F', 'job-id': 'c' });
  await daemon.event('BLOCK_JOB_READY', { device: 'c' });
  await guest.reached(guest.lastRecord + 20);
  await daemon.execute('block-job-complete', { device: 'c' });
  await daemon.event('BLOCK_JOB_COMPLETED', { device: 'c' });
  await guest.reached(guest.lastRecord + 20);

  assert.equal(guest.hadError, false, guest.console.slice(-500));
  await guest.kill();
  const synced = guest.lastRecord;
  assert.equal(await daemon.quit(), 0, daemon.output);
  for (const image of ['a.qcow2', 'e.qcow2', 'f.qcow2']) run(folder, 'qemu-img', 'check', image);
  assertUnbroken(ringOf(folder, 'e.qcow2'), synced, 'the disk in use');
  assertUnbroken(ringOf(folder, 'a.qcow2'), atPivot - 40, 'the source of the mirror');
  assert.ok(
    Math.max(...ringOf(folder, 'a.qcow2')) < synced - 40,
    'the old source was still written after the pivot',
  );
});
