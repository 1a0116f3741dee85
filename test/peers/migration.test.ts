import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { freePort } from '../kit/free-port.js';
import { BARE_MACHINE, Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** The document's "Live disk storage migration": source and destination may each be livedisk or a real QEMU. */
type Program = 'livedisk' | 'qemu';

function commandLine(program: Program): string[] {
  return program === 'livedisk'
    ? [process.execPath, PROGRAM, 'run']
    : ['qemu-system-x86_64', '-accel', 'tcg'];
}

function start(
  t: TestContext,
  cwd: string,
  program: Program,
  node: string,
  file: string,
  extra: string[],
): Promise<Daemon> {
  const socket = `${node}.sock`;
  const argv = [
    ...[...commandLine(program), ...BARE_MACHINE, '-S'],
    ...['-blockdev', `node-name=${node},driver=qcow2,file.driver=file,file.filename=${file}`],
    ...['-device', `virtio-blk,drive=${node},id=virtio0`, '-qmp', `unix:${socket},server=on,wait=off`],
  ];
  return Daemon.start(t, cwd, [...argv, ...extra], socket);
}

async function guestWrite(daemon: Daemon, command: string): Promise<void> {
  const line = `qemu-io -d virtio0/virtio-backend "${command}"`;
  const reply = await daemon.execute('human-monitor-command', { 'command-line': line });
  assert.equal(reply, '', String(reply));
}

async function migrate(t: TestContext, from: Program, to: Program): Promise<void> {
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'a.qcow2', '39M');
  run(folder, 'qemu-io', '-c', 'write -P 0x11 0 8M', 'a.qcow2');
  run(folder, 'cp', 'a.qcow2', 'base-copy.qcow2');
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', '-b', 'base-copy.qcow2', '-F', 'qcow2', 'target.qcow2');
  const source = await start(t, folder, from, 'node-A', 'a.qcow2', []);
  await source.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'node-A', 'snapshot-file': 'b.qcow2', format: 'qcow2', 'snapshot-node-name': 'node-B' },
  });
  await guestWrite(source, 'write -P 0x22 1M 2M');

  const target = await start(t, folder, to, 'node-TargetDisk', 'target.qcow2', ['-incoming', 'defer']);
  const port = await freePort();
  const inet = { type: 'inet', data: { host: '127.0.0.1', port: String(port) } };
  await target.execute('nbd-server-start', { addr: inet });
  await target.execute('nbd-server-add', { device: 'node-TargetDisk', writable: true });

  const url = `nbd:127.0.0.1:${port}:exportname=node-TargetDisk`;
  const mirror = {
    device: 'node-B',
    'job-id': 'job0',
    target: url,
    sync: 'top',
    mode: 'existing',
    format: 'raw',
  };
  await source.execute('drive-mirror', mirror);
  await source.event('BLOCK_JOB_READY', { device: 'job0' });
  await guestWrite(source, 'write -P 0x33 20M 1M');
  await source.execute('block-job-cancel', { device: 'job0' });
  const completed = await source.event('BLOCK_JOB_COMPLETED', { device: 'job0' });
  assert.equal(completed['error'], undefined);
  await target.execute('nbd-server-stop');
  assert.equal(await source.quit(), 0);
  assert.equal(await target.quit(), 0);
  assert.match(run(folder, 'qemu-img', 'compare', 'b.qcow2', 'target.qcow2'), /Images are identical/);
  run(folder, 'qemu-img', 'check', 'target.qcow2');
  run(folder, 'qemu-io', '-r', '-c', 'read -P 0x33 20M 1M', '-c', 'read -P 0x22 1M 2M', 'target.qcow2');
}

const PAIRS: Array<[Program, Program]> = [
  ['livedisk', 'livedisk'],
  ['livedisk', 'qemu'],
  ['qemu', 'livedisk'],
];
for (const [from, to] of PAIRS) {
  test(`live storage migration from ${from} to ${to}`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io', 'qemu-system-x86_64')) return;
    await migrate(t, from, to);
  });
}
