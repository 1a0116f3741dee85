import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, PROGRAM, scratch, skipWithout } from './daemon.js';

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
