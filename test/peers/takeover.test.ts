import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';
import { answers, DISK_BYTES, endUnlessTold, quit, startDaemon, successor } from './takeover-sides.js';
import { KnowingWriter } from './takeover-writer.js';

/** More of them are a proof: `npm run proof takeover`. */
const UPDATES = Number(process.env['UPDATES'] ?? 4);
const KILLS = Number(process.env['TAKEOVER_KILLS'] ?? 6);
async function bitmapsOf(daemon: Daemon): Promise<unknown> {
  const [node] = (await daemon.execute('query-named-block-nodes')) as Array<{ 'dirty-bitmaps'?: unknown }>;
  return node?.['dirty-bitmaps'];
}

function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? 0;
}

test('after an update every query answers the same, and bitmaps that are in memory only have their bits', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  const guest = await SmallNbd.connect(join(folder, 'disk.sock'), 'v0');
  const bitmap = { node: 'disk', granularity: 65536 };
  await daemon.execute('block-dirty-bitmap-add', { ...bitmap, name: 'transient' });
  await client.write(3 * 65536, Buffer.alloc(4096, 1));
  await daemon.execute('block-dirty-bitmap-add', { ...bitmap, name: 'off', disabled: true });
  await guest.write(9 * 65536, Buffer.alloc(65536, 2));
  const before = await answers(daemon);
  await successor(t, folder, '-pidfile', 'pid');
  const ended = once(daemon.process, 'exit');
  const plan = (await daemon.execute('x-takeover', { 'dry-run': true })) as { [list: string]: string[] };
  const report = (await daemon.execute('x-takeover', { socket: 'next.sock' })) as { pause: number };
  assert.deepEqual({ ...report, pause: undefined }, { ...plan, pause: undefined });
  assert.deepEqual(plan['refuses'], []);
  assert.deepEqual(await ended, [0, null]);
  assert.deepEqual(await answers(daemon), before);
  // Both clients go on, with what they wrote, and new ones come.
  assert.deepEqual(await client.read(9 * 65536, 65536), Buffer.alloc(65536, 2));
  await guest.write(20 * 65536, Buffer.alloc(4096, 3));
  const late = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  assert.deepEqual(await late.read(20 * 65536, 4096), Buffer.alloc(4096, 3));
  await daemon.execute('block-dirty-bitmap-add', { ...bitmap, name: 'kept', persistent: true });
  await late.write(30 * 65536, Buffer.alloc(3 * 65536, 4));
  const bitmaps = await bitmapsOf(daemon);
  const last = await successor(t, folder);
  await daemon.execute('x-takeover', { socket: 'next.sock' });
  assert.deepEqual(await bitmapsOf(daemon), bitmaps);
  await late.write(40 * 65536, Buffer.alloc(65536, 5));
  await quit(daemon, last);
  run(folder, 'qemu-img', 'check', '-q', 'disk.qcow2');
});

test(`${UPDATES} updates under a guest that writes: it waits, and sees no error`, async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const writer = new KnowingWriter(await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk'));
  const [pauses, waits]: [number[], number[]] = [[], []];
  let serving = daemon.process;
  writer.start();
  for (let update = 0; update < UPDATES; update++) {
    const next = await successor(t, folder, '-pidfile', 'pid');
    writer.takeWorst();
    const ended = once(serving, 'exit');
    const { pause } = (await daemon.execute('x-takeover', { socket: 'next.sock' })) as { pause: number };
    assert.deepEqual(await ended, [0, null]);
    await daemon.execute('query-status');
    pauses.push(pause);
    waits.push(writer.takeWorst());
    serving = next;
  }
  await writer.stop();
  const fresh = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  await writer.checkAll(fresh);
  fresh.close();
  await quit(daemon, serving);
  run(folder, 'qemu-img', 'check', '-q', 'disk.qcow2');
  const figures = [pauses, waits].map((all) =>
    [0.5, 0.99, 1].map((share) => percentile(all, share).toFixed(0)),
  );
  t.diagnostic(`${UPDATES} updates, ${writer.requests} writes; median, 99th percentile, most, in ms:`);
  t.diagnostic(
    `nobody served ${figures[0]?.join(', ')}; longest request meanwhile ${figures[1]?.join(', ')}`,
  );
});

interface Round {
  readonly daemon: Daemon;
  readonly writer: KnowingWriter;
  readonly folder: string;
}

/** Who serves goes on with the guest, which has seen no error and finds all that it wrote. */
async function assertServed({ daemon, writer, folder }: Round, serving: ChildProcess): Promise<void> {
  await daemon.execute('query-status');
  await writer.stop();
  const fresh = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  await writer.checkAll(fresh);
  fresh.close();
  await quit(daemon, serving);
}

test(
  `${KILLS} updates of which one side is killed: the other one serves, or nobody does`,
  { timeout: KILLS * 60_000 },
  async (t) => {
    if (skipWithout(t, 'qemu-img')) return;
    const count = { old: 0, new: 0, none: 0 };
    for (let round = 0; round < KILLS; round++) {
      const folder = scratch(t);
      const daemon = await startDaemon(t, folder);
      const old = daemon.process;
      const next = await successor(t, folder);
      const writer = new KnowingWriter(await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk'));
      writer.start();
      const asked = daemon.raw('x-takeover', { socket: 'next.sock' });
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 600));
      const [victim, other] = round % 2 === 0 ? [next, old] : [old, next];
      const isGone = victim.exitCode === null ? once(victim, 'exit') : undefined;
      victim.kill('SIGKILL');
      if (victim === old) void endUnlessTold(other, join(folder, 'next.sock'));
      // The other one answers, or ends: it had given its place, or had not got all of it.
      const isServed = await Promise.race([
        // One that was killed when it had answered serves no more.
        asked.then(({ error }) => (error ? error.class !== 'Closed' : victim === old)),
        once(other, 'exit').then(() => false),
      ]);
      count[isServed ? (other === old ? 'old' : 'new') : 'none']++;
      if (isServed) await assertServed({ daemon, writer, folder }, other);
      else if (other.exitCode === null) await once(other, 'exit');
      await isGone;
      // Of one that was killed clusters may be left that nobody uses.
      const { status } = spawnSync('qemu-img', ['check', '-q', 'disk.qcow2'], { cwd: folder });
      assert.ok(status === 0 || (!isServed && status === 3), `qemu-img check: ${status}`);
    }
    t.diagnostic(`the old one served ${count.old} times, the new one ${count.new}, nobody ${count.none}`);
  },
);

test('what cannot be passed on is named, and nothing changes', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  await successor(t, folder);
  const file = { driver: 'file', filename: 'copy.qcow2' };
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'copy.qcow2', String(DISK_BYTES));
  await daemon.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'copy', file });
  const job = { 'job-id': 'j', device: 'disk', target: 'copy', sync: 'none' };
  await daemon.execute('blockdev-backup', job);
  const overlay = { 'snapshot-file': 'over.qcow2', 'snapshot-node-name': 'over', format: 'qcow2' };
  await daemon.execute('blockdev-snapshot-sync', { 'node-name': 'disk', ...overlay });
  const refused = daemon.execute('x-takeover', { socket: 'next.sock' });
  await assert.rejects(refused, /job 'j' of type backup has a layer between/);
  const { refuses } = (await daemon.execute('x-takeover', { 'dry-run': true })) as { refuses: string[] };
  assert.deepEqual(refuses, ["job 'j' of type backup has a layer between its filter and its disk"]);
  await daemon.execute('block-job-cancel', { device: 'j', force: true });
  await daemon.event('BLOCK_JOB_CANCELLED');
  const ended = once(daemon.process, 'exit');
  await daemon.execute('x-takeover', { socket: 'next.sock' });
  await ended;
  await daemon.execute('quit');
});

test('a job with a journal goes on in the new process, with what had been copied', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  for (let at = 0; at < 32; at++) await client.write(at * 1048576, Buffer.alloc(1048576, at + 1));
  const file = { driver: 'file', filename: 'copy.qcow2' };
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'copy.qcow2', String(DISK_BYTES));
  await daemon.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'copy', file });
  const job = { 'job-id': 'j', device: 'disk', target: 'copy', sync: 'full', speed: 4 * 1048576 };
  await daemon.execute('blockdev-mirror', { ...job, 'x-persist': join(folder, 'journal') });
  const next = await successor(t, folder);
  await daemon.execute('x-takeover', { socket: 'next.sock' });
  await client.write(5 * 1048576, Buffer.alloc(1048576, 200));
  const [told] = (await daemon.execute('query-block-jobs')) as Array<{ device: string; speed: number }>;
  assert.deepEqual([told?.device, told?.speed], ['j', job.speed]);
  await daemon.execute('block-job-set-speed', { device: 'j', speed: 0 });
  await daemon.event('BLOCK_JOB_READY', { device: 'j' });
  await client.write(6 * 1048576, Buffer.alloc(1048576, 201));
  await daemon.execute('block-job-complete', { device: 'j' });
  await daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
  await client.write(40 * 1048576, Buffer.alloc(1048576, 202));
  for (const [at, byte] of [
    [0, 1],
    [5, 200],
    [6, 201],
    [31, 32],
    [40, 202],
  ] as const)
    assert.deepEqual(await client.read(at * 1048576, 1048576), Buffer.alloc(1048576, byte));
  await quit(daemon, next);
  run(folder, 'qemu-img', 'check', '-q', 'copy.qcow2');
});

test(
  'SIGUSR2 starts the program anew in the place of the one that serves',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithout(t, 'qemu-img')) return;
    const folder = scratch(t);
    const daemon = await startDaemon(t, folder);
    const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
    await client.write(0, Buffer.alloc(4096, 1));
    const ended = once(daemon.process, 'exit');
    daemon.process.kill('SIGUSR2');
    assert.deepEqual(await ended, [0, null]);
    assert.deepEqual(await client.read(0, 4096), Buffer.alloc(4096, 1));
    await daemon.execute('query-status');
    // It says so in its file when nobody else does.
    const pidOf = (): number => Number(readFileSync(join(folder, 'pid'), 'utf8'));
    for (let looks = 0; looks < 500 && [0, daemon.process.pid].includes(pidOf()); looks++)
      await new Promise((resolve) => setTimeout(resolve, 20));
    assert.notEqual(pidOf(), daemon.process.pid);
    await daemon.execute('quit');
  },
);

/** A program that is livedisk; told to take over, it first leaves a socket on which nobody listens, for a while. */
const HESITANT = `const { spawnSync } = require('node:child_process');
const { renameSync, rmSync } = require('node:fs');
const words = process.argv.slice(2);
const path = words[words.indexOf('-takeover') + 1];
if (words.includes('-takeover')) {
  const dies = 'require("node:net").createServer().listen(process.argv[1], () => process.kill(process.pid, "SIGKILL"))';
  spawnSync(process.execPath, ['-e', dies, path + '.dead']);
  renameSync(path + '.dead', path);
  spawnSync('sleep', ['0.3']);
  rmSync(path);
}
require(${JSON.stringify(PROGRAM)});`;

test('SIGUSR2 waits until the new process listens', { timeout: 120_000 }, async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const program = join(folder, 'hesitant.cjs');
  writeFileSync(program, HESITANT);
  const words = [process.execPath, program, 'run', '-monitor', 'none', '-blockdev', 'null-co,node-name=n'];
  const qmp = ['-qmp', 'unix:qmp.sock,server=on,wait=off'];
  const daemon = await Daemon.start(t, folder, [...words, ...qmp]);
  const ended = once(daemon.process, 'exit');
  daemon.process.kill('SIGUSR2');
  assert.deepEqual(await ended, [0, null], daemon.output);
  await daemon.execute('quit');
});

test(
  'a process that SIGUSR2 has started ends when the one that serves is killed',
  { timeout: 300_000 },
  async (t) => {
    if (skipWithout(t, 'qemu-img')) return;
    const folder = scratch(t);
    const daemon = await startDaemon(t, folder);
    const { pid = 0 } = daemon.process;
    const children = (): string[] =>
      readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean);
    daemon.process.kill('SIGUSR2');
    while (children().length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    const [next = ''] = children();
    const ended = once(daemon.process, 'exit');
    daemon.process.kill('SIGKILL');
    await ended;
    const isThere = (): boolean => existsSync(`/proc/${next}`);
    for (let looks = 0; looks < 1500 && isThere(); looks++)
      await new Promise((resolve) => setTimeout(resolve, 20));
    if (isThere()) process.kill(Number(next));
    assert.ok(!isThere(), 'it waits for nobody');
    run(folder, 'qemu-img', 'check', '-q', 'disk.qcow2');
  },
);

test('a new process that may not have enough files says so, and the old one serves on', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const clients: SmallNbd[] = [];
  for (let i = 0; i < 80; i++) clients.push(await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk'));
  const words = [process.execPath, PROGRAM, 'run', '-takeover', 'next.sock'];
  const next = spawn('sh', ['-c', 'ulimit -n 60; exec "$@"', 'sh', ...words], { cwd: folder });
  const ended = once(next, 'exit');
  await once(next.stdout, 'data');
  const taking = daemon.execute('x-takeover', { socket: 'next.sock' });
  await assert.rejects(taking, /descriptors that were passed .* \(ulimit -n\)/);
  await ended;
  for (const client of clients) {
    await client.write(0, Buffer.alloc(512, 1));
    client.close();
  }
  await daemon.execute('quit');
});

test('a state that is kept goes on to be kept, by whoever serves, and nobody else has its folder', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const state = ['--state', join(folder, 'state')];
  const daemon = await startDaemon(t, folder, ...state);
  await successor(t, folder);
  const without = daemon.execute('x-takeover', { socket: 'next.sock' });
  await assert.rejects(without, /start this process with --state of that folder/);
  const next = await successor(t, folder, ...state);
  await daemon.execute('x-takeover', { socket: 'next.sock' });
  await daemon.execute('blockdev-add', { driver: 'null-co', 'node-name': 'later' });
  const second = spawnSync(process.execPath, [PROGRAM, 'run', ...state], { cwd: folder, encoding: 'utf8' });
  assert.match(second.stderr, /Another daemon keeps its state in/);
  next.kill('SIGKILL');
  await once(next, 'exit');
  const again = await Daemon.start(t, folder, [process.execPath, PROGRAM, 'run', ...state]);
  const nodes = (await again.execute('query-named-block-nodes')) as Array<{ 'node-name': string }>;
  assert.ok(nodes.some(({ 'node-name': name }) => name === 'later'));
  await again.execute('quit');
});
