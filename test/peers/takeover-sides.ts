import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import type { TestContext } from 'node:test';
import { Daemon, PROGRAM, run } from './daemon.js';

export const DISK_BYTES = 64 * 1024 * 1024;
export const QUERIES = [
  ...['query-named-block-nodes', 'query-block', 'query-block-exports', 'query-jobs', 'query-chardev'],
  'query-blockstats',
  ...['query-status', 'query-fdsets', 'query-iothreads', 'x-job-history'],
];

/** What processes that have taken over say on standard error. */
const said = new WeakMap<ChildProcess, string>();

/** A process that waits to take over, ready. */
export async function successor(
  context: TestContext,
  folder: string,
  ...args: string[]
): Promise<ChildProcess> {
  const child = spawn(process.execPath, [PROGRAM, 'run', '-takeover', 'next.sock', ...args], {
    ...{ cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] },
  });
  child.stderr.on('data', (text: Buffer) => {
    process.stderr.write(text);
    said.set(child, (said.get(child) ?? '') + String(text));
  });
  context.after(() => child.kill('SIGKILL'));
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  assert.match(String(line), /waits at next\.sock/);
  return child;
}

/** The process that was to come to it was killed: one to which nobody has come waits for ever. */
export async function endUnlessTold(next: ChildProcess, socket: string): Promise<void> {
  for (let looks = 0; looks < 500 && existsSync(socket); looks++)
    await new Promise((resolve) => setTimeout(resolve, 20));
  if (existsSync(socket)) next.kill('SIGKILL');
}

export async function startDaemon(t: TestContext, folder: string, ...more: string[]): Promise<Daemon> {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', String(DISK_BYTES));
  return Daemon.start(
    t,
    folder,
    [
      ...[process.execPath, PROGRAM, 'run', '-monitor', 'none'],
      ...['-blockdev', 'driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2'],
      ...['-object', 'throttle-group,id=limits,limits.iops-total=100000', '-pidfile', 'pid'],
      ...['-device', 'virtio-blk,drive=disk,id=v0,share-rw=on,x-endpoint=unix:disk.sock'],
      ...['-nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
      ...['-export', 'type=nbd,id=e,node-name=disk,name=disk,writable=on'],
      ...['-qmp', 'unix:qmp.sock,server=on,wait=off', ...more],
    ],
    'qmp.sock',
    ['x-livedisk'],
  );
}

/** `serving`: who has the place of the daemon by now. */
export async function quit(daemon: Daemon, serving: ChildProcess): Promise<void> {
  const ended = once(serving, 'exit');
  await daemon.execute('quit');
  await ended;
}

/** Without what goes on while nobody asks. */
export async function answers(daemon: Daemon): Promise<unknown[]> {
  const all: unknown[] = [];
  for (const query of QUERIES) all.push(await daemon.execute(query));
  const lasting = (key: string, value: unknown): unknown => (key === 'idle_time_ns' ? undefined : value);
  return JSON.parse(JSON.stringify(all, lasting)) as unknown[];
}

/** For whom time is no matter: so long an update may take on a busy machine. */
const PATIENCE_MS = 60_000;

/** Gives the place of `serving` to a new process, which is answered. */
export async function update(
  context: TestContext,
  folder: string,
  {
    daemon,
    serving,
    args = [],
    timeout = PATIENCE_MS,
  }: { daemon: Daemon; serving: ChildProcess; args?: readonly string[]; timeout?: number },
): Promise<ChildProcess> {
  const next = await successor(context, folder, ...args);
  const ended = once(serving, 'exit');
  await daemon.execute('x-takeover', { socket: 'next.sock', timeout });
  assert.deepEqual(await ended, [0, null]);
  assert.doesNotMatch(said.get(next) ?? '', /internal error/);
  return next;
}
