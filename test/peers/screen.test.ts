import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import type { View } from '../../src/view/model.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

const CONTROL = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];

interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

function livedisk(cwd: string, ...args: string[]): Ended {
  return spawnSync(process.execPath, [PROGRAM, ...args], { cwd, encoding: 'utf8' });
}

/** A chain a <-- b, and words that make it a node `b`. */
function chain(folder: string): string {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '64M');
  run(folder, 'qemu-io', '-c', 'write -P 1 0 8M', 'a.qcow2');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'a.qcow2', '-F', 'qcow2', 'b.qcow2');
  run(folder, 'qemu-io', '-c', 'write -P 2 8M 4M', 'b.qcow2');
  return 'driver=qcow2,node-name=b,file.driver=file,file.filename=b.qcow2';
}

test('show and top speak to a real storage daemon, and say when somebody else has it', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io', 'qemu-storage-daemon')) return;
  const folder = scratch(t);
  const argv = ['qemu-storage-daemon', '--blockdev', chain(folder), ...CONTROL];
  const daemon = await Daemon.start(t, folder, argv);
  const busy = livedisk(folder, 'show', 'qmp.sock');
  assert.deepEqual([busy.status, busy.stdout], [1, '']);
  assert.match(busy.stderr, /qmp\.sock is in use: no QMP greeting within 2 s/);
  await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
  await daemon.execute('block-export-add', { type: 'nbd', id: 'e0', 'node-name': 'b' });
  await daemon.hangUp();
  const shown = await answered(() => livedisk(folder, 'show', 'qmp.sock'));
  assert.match(shown.stdout, /^QEMU \d/);
  assert.match(shown.stdout, /^ {4}\[a\.qcow2\] +<-- \[b\] <== export e0$/m);
  const top = await answered(() => livedisk(folder, 'top', '--once', 'qmp.sock'));
  assert.match(top.stdout, /^export e0 \[b\] +not counted$/m);
  assert.match(top.stdout, /^no jobs$/m);
});

test('requests of an export are counted by livedisk, for who asks, and not by QEMU', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io', 'qemu-storage-daemon')) return;
  const SERVERS = [['qemu-storage-daemon'], [process.execPath, PROGRAM, 'storage-daemon']];
  for (const server of SERVERS) {
    const folder = scratch(t);
    const argv = [...server, '--blockdev', chain(folder), ...CONTROL];
    const isOurs = server.length > 1;
    const daemon = await Daemon.start(t, folder, argv, 'qmp.sock', isOurs ? ['x-livedisk'] : []);
    await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd' } } });
    await daemon.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'b', writable: true });
    const requests = ['-c', 'write 0 1M', '-c', 'write 1M 1M', '-c', 'read 0 512k', '-c', 'flush'];
    run(folder, 'qemu-io', '-f', 'raw', ...requests, `nbd+unix:///b?socket=${join(folder, 'nbd')}`);
    const told = await daemon.raw('x-query-export-stats');
    await daemon.hangUp();
    const top = await answered(() => livedisk(folder, 'top', '--once', 'qmp.sock'));
    if (!isOurs) {
      assert.match(top.stdout, /^export e \[b\] +not counted$/m);
      continue;
    }
    const [{ stats = {} } = {}] = told.return as Array<{ stats?: Record<string, number> }>;
    assert.deepEqual([stats['wr_bytes'], stats['rd_bytes']], [2 * 1024 * 1024, 512 * 1024]);
    assert.doesNotMatch(top.stdout, /not counted/);
  }
});

/** The daemon takes its time to see that the last client has gone. */
async function answered(ask: () => Ended): Promise<Ended> {
  for (let tries = 0; ; tries++) {
    const ended = ask();
    if (ended.status === 0) return ended;
    assert.ok(tries < 10, ended.stderr);
  }
}

test('show draws a running QEMU machine as data, and its images as they are mapped by qemu-img', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io', 'qemu-system-x86_64')) return;
  const folder = scratch(t);
  const bare = ['-nodefaults', '-display', 'none', '-S', '-accel', 'tcg'];
  const disk = ['-blockdev', chain(folder), '-device', 'virtio-blk-pci,drive=b,id=virtio0'];
  const qmp = ['-qmp', 'unix:qmp.sock,server=on,wait=off', '-qmp', 'unix:second.sock,server=on,wait=off'];
  await Daemon.start(t, folder, ['qemu-system-x86_64', ...bare, ...disk, ...qmp]);
  const { stdout, stderr } = livedisk(folder, 'show', '--json', 'second.sock');
  const view = JSON.parse(stdout === '' ? `{"error":${JSON.stringify(stderr)}}` : stdout) as View;
  assert.deepEqual(
    view.users.map(({ kind, label, imageId }) => `${kind} ${label} ${imageId}`),
    ['device virtio0 b'],
  );
  const map = JSON.parse(run(folder, 'qemu-img', 'map', '-U', '--output=json', 'b.qcow2')) as Array<{
    depth: number;
    length: number;
    data: boolean;
  }>;
  const bytes = (depth: number): number =>
    map.filter((entry) => entry.data && entry.depth === depth).reduce((sum, { length }) => sum + length, 0);
  const drawn = livedisk(folder, 'show', '--map', join(folder, 'b.qcow2')).stdout;
  for (const [depth, label] of ['b.qcow2', 'a.qcow2'].entries())
    assert.ok(drawn.includes(`${label}: ${(bytes(depth) / 1024 / 1024).toFixed(1)} MiB`), drawn);
});

test('a storage daemon with a stream that is over and not dismissed is not asked what would crash it', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io', 'qemu-storage-daemon')) return;
  const folder = scratch(t);
  const argv = ['qemu-storage-daemon', '--blockdev', chain(folder), ...CONTROL];
  const daemon = await Daemon.start(t, folder, argv);
  await daemon.execute('block-stream', { 'job-id': 'j', device: 'b', 'auto-dismiss': false });
  await daemon.event('JOB_STATUS_CHANGE', { status: 'concluded' });
  await daemon.hangUp();
  let shown = livedisk(folder, 'show', 'qmp.sock');
  while (shown.stderr.includes('is in use')) shown = livedisk(folder, 'show', 'qmp.sock');
  assert.equal(shown.status, 1);
  assert.match(shown.stderr, /a stream job has ended and is not dismissed\n.*job-dismiss/);
  // It is there, and can be seen once the job is gone.
  const dismissed = await answered(() => livedisk(folder, 'shell', 'qmp.sock', 'job-dismiss', 'id=j'));
  assert.equal(dismissed.status, 0, dismissed.stderr);
  assert.match((await answered(() => livedisk(folder, 'show', 'qmp.sock'))).stdout, /\[b\]/);
});
