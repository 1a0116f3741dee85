import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, PROGRAM, scratch, skipWithout } from './daemon.js';
import { fakeSuccessor } from './fake-successor.js';
import { startDaemon } from './takeover-sides.js';

/** A program that is livedisk, of which the first process that it is to start has no program, and the second one too long an environment. */
const UNSTARTABLE = `const { execPath } = process;
const hindrances = [
  () => (process.execPath = '/nowhere/node'),
  () => (process.env.LONG = 'x'.repeat(4 << 20)),
  () => undefined,
];
process.on('SIGUSR2', () => {
  process.execPath = execPath;
  delete process.env.LONG;
  hindrances.shift()?.();
});
require(${JSON.stringify(PROGRAM)});`;

async function untilSaid(daemon: Daemon, what: RegExp): Promise<void> {
  for (let looks = 0; looks < 500 && !what.test(daemon.output); looks++)
    await new Promise((resolve) => setTimeout(resolve, 20));
  assert.match(daemon.output, what);
}

test(
  'a process that SIGUSR2 cannot start is told of, and the next signal counts',
  { timeout: 120_000 },
  async (t) => {
    if (skipWithout(t)) return;
    const folder = scratch(t);
    const program = join(folder, 'unstartable.cjs');
    writeFileSync(program, UNSTARTABLE);
    const words = [process.execPath, program, 'run', '-monitor', 'none', '-blockdev', 'null-co,node-name=n'];
    const qmp = ['-qmp', 'unix:qmp.sock,server=on,wait=off'];
    const daemon = await Daemon.start(t, folder, [...words, ...qmp]);
    daemon.process.kill('SIGUSR2');
    await untilSaid(daemon, /the new process could not be started: No such file or directory/);
    daemon.process.kill('SIGUSR2');
    await untilSaid(daemon, /the new process could not be started: Argument list too long/);
    const ended = once(daemon.process, 'exit');
    daemon.process.kill('SIGUSR2');
    assert.deepEqual(await ended, [0, null], daemon.output);
    await daemon.execute('quit');
  },
);

test('a process that is told to end before it has given its place ends, and the new one serves nothing', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const next = await fakeSuccessor(t, folder, 'slow');
  const [ended, nextEnded] = [once(daemon.process, 'exit'), once(next.process, 'exit')];
  const taking = daemon.raw('x-takeover', { socket: 'next.sock' });
  await next.untilSaid('asked for ready');
  daemon.process.kill('SIGTERM');
  assert.match((await taking).error?.desc ?? '', /No takeover: this process is ending/);
  assert.deepEqual(await ended, [0, null]);
  assert.deepEqual(await nextEnded, [null, 'SIGKILL']);
  assert.doesNotMatch(next.output(), /owned/);
  assert.ok(!existsSync(join(folder, 'qmp.sock')) && !existsSync(join(folder, 'pid')));
});

test('the end of a process that is giving its place is told to who has it by then', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const next = await fakeSuccessor(t, folder, 'slow');
  const [ended, nextEnded] = [once(daemon.process, 'exit'), once(next.process, 'exit')];
  void daemon.raw('x-takeover', { socket: 'next.sock' });
  await next.untilSaid('asked for owned');
  daemon.process.kill('SIGTERM');
  assert.deepEqual(await ended, [0, null]);
  assert.deepEqual(await nextEnded, [0, null]);
  assert.match(next.output(), /told to end/);
  // It is the new one's.
  assert.ok(existsSync(join(folder, 'qmp.sock')));
});
