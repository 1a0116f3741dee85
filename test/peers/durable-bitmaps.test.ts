import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

const KiB = 1024;
const MiB = 1024 * KiB;
const MONITOR = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
const NODE = ['--blockdev', 'driver=qcow2,node-name=d,file.driver=file,file.filename=d.qcow2'];

interface Tracking {
  status: string;
  since: number;
  id: string;
  reason?: string;
  'kept-by-another': boolean;
}

/** Our daemon with the image, which is killed as a test wants. */
async function serve(t: TestContext, folder: string): Promise<Daemon> {
  const argv = [process.execPath, PROGRAM, 'storage-daemon', ...MONITOR, ...NODE];
  return Daemon.start(t, folder, argv, 'qmp.sock', ['x-livedisk']);
}

async function ensure(daemon: Daemon, more: object = {}, id?: string): Promise<Tracking> {
  const disks = [{ node: 'd', ...(id !== undefined && { id }) }];
  const answers = await daemon.execute('x-bitmap-ensure', { name: 'b', disks, ...more });
  const [answer] = answers as Tracking[];
  assert.ok(answer);
  return answer;
}

async function write(daemon: Daemon, folder: string, offset: number, pattern: number): Promise<void> {
  await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
  await daemon.execute('block-export-add', {
    id: 'e',
    type: 'nbd',
    'node-name': 'd',
    writable: true,
    name: 'e',
  });
  const command = `write -P ${pattern} ${offset} 64k`;
  run(
    folder,
    'qemu-io',
    '-f',
    'raw',
    '-c',
    command,
    '-c',
    'flush',
    `nbd+unix:///e?socket=${join(folder, 'nbd.sock')}`,
  );
  await daemon.execute('nbd-server-stop', {});
}

interface ImageInfo {
  'format-specific': { data: { bitmaps?: Array<{ name: string; flags: string[] }> } };
}

function flagsOf(folder: string): string[] | undefined {
  const info = JSON.parse(run(folder, 'qemu-img', 'info', '--output=json', 'd.qcow2')) as ImageInfo;
  return info['format-specific'].data.bitmaps?.find(({ name }) => name === 'b')?.flags;
}

/** What a bitmap that is stored says, as QEMU tells it. */
async function dirtyByQemu(folder: string): Promise<Stretch[]> {
  const socket = join(folder, 'q.sock');
  const server = spawn('qemu-nbd', ['-r', '-B', 'b', '-k', socket, '-x', 'q', '-f', 'qcow2', 'd.qcow2'], {
    ...{ cwd: folder, stdio: 'ignore' },
  });
  const ended = once(server, 'exit');
  for (const end = Date.now() + 20_000; !existsSync(socket) && Date.now() < end;) await delay(20);
  const image = `driver=nbd,export=q,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:b`;
  const map = run(folder, 'qemu-img', 'map', '--output=json', '--image-opts', image);
  await ended;
  const stretches = JSON.parse(map) as Array<Stretch & { data: boolean }>;
  return stretches.filter(({ data }) => !data);
}

interface Stretch {
  start: number;
  length: number;
}

function covers(stretches: readonly Stretch[], offset: number): boolean {
  return stretches.some(({ start, length }) => start <= offset && offset < start + length);
}

test('killed in use: QEMU reads and checks the image, and the bitmap knows what was written', async (t) => {
  if (skipWithout(t, 'qemu-img') || skipWithout(t, 'qemu-nbd')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'd.qcow2', '256M');
  let daemon = await serve(t, folder);
  const made = await ensure(daemon);
  assert.deepEqual([made.status, made.reason], ['lost', 'never-there']);
  const { reason: _reason, ...rest } = made;
  assert.deepEqual(await ensure(daemon), { ...rest, status: 'usable' });
  await write(daemon, folder, 5 * MiB, 1);
  await daemon.kill();
  assert.deepEqual(flagsOf(folder), ['in-use', 'auto']);
  run(folder, 'qemu-img', 'check', 'd.qcow2');
  run(folder, 'qemu-io', '-r', '-f', 'qcow2', '-c', 'read -P 1 5M 64k', 'd.qcow2');
  daemon = await serve(t, folder);
  assert.deepEqual((await ensure(daemon)).status, 'usable');
  assert.equal((await ensure(daemon, { strict: true }, made.id)).since, made.since);
  await write(daemon, folder, 100 * MiB, 2);
  await daemon.quit();
  assert.deepEqual(flagsOf(folder), ['auto']);
  run(folder, 'qemu-img', 'check', 'd.qcow2');
  const dirty = await dirtyByQemu(folder);
  assert.ok(covers(dirty, 5 * MiB) && covers(dirty, 100 * MiB), JSON.stringify(dirty));
});

test('written by QEMU while it was in use: lost, and a new one is made', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'd.qcow2', '256M');
  let daemon = await serve(t, folder);
  const { id } = await ensure(daemon);
  await write(daemon, folder, 5 * MiB, 1);
  await daemon.kill();
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 3 70M 64k', 'd.qcow2');
  daemon = await serve(t, folder);
  const lost = await ensure(daemon, {}, id);
  assert.deepEqual([lost.status, lost.reason], ['lost', 'written-by-another']);
  assert.notEqual(lost.id, id);
  assert.equal((await ensure(daemon, {}, lost.id)).status, 'usable');
  await daemon.kill();
  run(folder, 'qemu-img', 'bitmap', '--remove', 'd.qcow2', 'b');
  run(folder, 'qemu-img', 'check', 'd.qcow2');
  daemon = await serve(t, folder);
  const replaced = await ensure(daemon, {}, lost.id);
  assert.deepEqual([replaced.status, replaced.reason], ['lost', 'replaced']);
  await daemon.quit();
  run(folder, 'qemu-img', 'check', 'd.qcow2');
});

test('kept by QEMU while it was not in use: usable, unless that is not to count', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io', 'qemu-nbd')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-f', 'qcow2', 'd.qcow2', '256M');
  let daemon = await serve(t, folder);
  const made = await ensure(daemon);
  await write(daemon, folder, 5 * MiB, 1);
  await daemon.quit();
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 3 70M 64k', 'd.qcow2');
  assert.ok(covers(await dirtyByQemu(folder), 70 * MiB));
  daemon = await serve(t, folder);
  const kept = await ensure(daemon, {}, made.id);
  assert.deepEqual([kept.status, kept.since, kept['kept-by-another']], ['usable', made.since, true]);
  await write(daemon, folder, 90 * MiB, 1);
  await daemon.kill();
  run(folder, 'qemu-img', 'check', 'd.qcow2');
  daemon = await serve(t, folder);
  assert.equal((await ensure(daemon, {}, made.id)).status, 'usable');
  const strict = await ensure(daemon, { strict: true }, made.id);
  assert.deepEqual([strict.status, strict.reason], ['lost', 'written-by-another']);
  await daemon.quit();
  run(folder, 'qemu-img', 'check', 'd.qcow2');
  assert.deepEqual(flagsOf(folder), ['auto']);
});

test('clients that have not asked for it neither see nor use it', async (t) => {
  if (skipWithout(t)) return;
  const folder = scratch(t);
  const argv = [process.execPath, PROGRAM, 'storage-daemon', ...MONITOR];
  const daemon = await Daemon.start(t, folder, argv);
  const { error } = await daemon.raw('x-bitmap-ensure', { name: 'b', disks: [] });
  assert.equal(error?.class, 'CommandNotFound');
  const add = await daemon.raw('block-dirty-bitmap-add', { node: 'd', name: 'b', 'x-durable': true });
  assert.match(add.error?.desc ?? '', /Parameter 'x-durable' is unexpected/);
});
