import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test, type TestContext } from 'node:test';
import { BARE_MACHINE, Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** `livedisk move` in that folder: its output, and its status when it ends; Ctrl-C once it prints. */
function move(folder: string, ...args: string[]): Promise<{ status: number | null; output: string }> {
  const child = spawn(process.execPath, [PROGRAM, 'move', ...args], {
    cwd: folder,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => (output += chunk.toString()));
  return new Promise((resolve) => child.once('close', (status) => resolve({ status, output })));
}

function machine(t: TestContext, folder: string, name: string, ...words: string[]): Promise<Daemon> {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, '16M');
  const qmp = ['-qmp', `unix:${name}.qmp,server=on,wait=off`];
  return Daemon.start(
    t,
    folder,
    [process.execPath, PROGRAM, 'run', ...BARE_MACHINE, ...qmp, ...words],
    `${name}.qmp`,
  );
}

function end(t: TestContext, folder: string, name: string, ...more: string[]): Promise<Daemon> {
  const disk = `node-name=disk,driver=qcow2,file.driver=file,file.filename=${name}.qcow2`;
  const words = ['-blockdev', disk, '-device', 'virtio-blk,drive=disk,id=virtio0'];
  return machine(t, folder, name, ...words, ...more);
}

test('a machine is moved by a command line, after a look at what that would be', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const source = await end(t, folder, 'source');
  const destination = await end(t, folder, 'destination', '-incoming', 'unix:move');
  const write = 'qemu-io -d virtio0/virtio-backend "write -P 5 0 3M"';
  await source.execute('human-monitor-command', { 'command-line': write });
  const words = ['--storage', 'unix:nbd', './source.qmp', 'unix:move'];

  const early = await move(folder, ...words);
  assert.equal(early.status, 1, early.output);
  await destination.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd' } } });
  const disk = { type: 'nbd', id: 'e', 'node-name': 'disk', name: 'virtio0', writable: true };
  await destination.execute('block-export-add', disk);

  const plan = await move(folder, '--dry-run', ...words);
  assert.equal(plan.status, 0, plan.output);
  assert.match(
    plan.output,
    /^virtio0 \(disk\) to export virtio0: 3(\.0+)? MiB of 16(\.0+)? MiB\na round trip takes .* at least\n$/,
  );
  const status = (await source.execute('query-status')) as { status: string };
  assert.equal(status.status, 'running');

  const moved = await move(folder, ...words);
  assert.deepEqual(
    [moved.status, /^moved; the guest rested for \d+ ms\n$/.test(moved.output)],
    [0, true],
    moved.output,
  );
  const again = await move(folder, ...words);
  assert.equal(again.status, 1, again.output);
  assert.equal(await source.quit(), 0);
  assert.equal(await destination.quit(), 0);
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'read -P 5 0 3M', 'destination.qcow2');
});

test("a drive's disk goes to the export of its name, which a command line makes", async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const drive = (name: string): string => `if=virtio,file=${name}.qcow2,node-name=disk`;
  const source = await machine(t, folder, 'source', '-drive', drive('source'));
  const destination = await machine(
    t,
    folder,
    'destination',
    ...['-export', 'nbd,id=e,node-name=disk,name=virtio0,writable=on', '-drive', drive('destination')],
    ...['-nbd-server', 'addr.type=unix,addr.path=nbd', '-incoming', 'unix:move'],
  );
  await source.execute('human-monitor-command', { 'command-line': 'qemu-io virtio0 "write -P 5 0 3M"' });
  const moved = await move(folder, '--storage', 'unix:nbd', './source.qmp', 'unix:move');
  assert.equal(moved.status, 0, moved.output);
  for (const daemon of [source, destination]) assert.equal(await daemon.quit(), 0);
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'read -P 5 0 3M', 'destination.qcow2');
});

test('a move that is interrupted leaves the machine here', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const source = await end(t, folder, 'source');
  const destination = await end(t, folder, 'destination', '-incoming', 'unix:move');
  await source.execute('human-monitor-command', {
    'command-line': 'qemu-io -d virtio0/virtio-backend "write -P 5 0 12M"',
  });
  await destination.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd' } } });
  const disk = { type: 'nbd', id: 'e', 'node-name': 'disk', name: 'virtio0', writable: true };
  await destination.execute('block-export-add', disk);
  const words = ['--storage', 'unix:nbd', '--speed', '65536', './source.qmp', 'unix:move'];
  const child = spawn(process.execPath, [PROGRAM, 'move', ...words], { cwd: folder });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  // Its copy runs, so it listens for Ctrl-C.
  await source.event('JOB_STATUS_CHANGE', { status: 'running' });
  child.kill('SIGINT');
  assert.equal(await ended, 1, output);
  assert.match(output, /^given up; the machine is here\n$/);
  assert.equal(((await source.execute('query-status')) as { status: string }).status, 'running');
  assert.equal(await source.quit(), 0);
});
