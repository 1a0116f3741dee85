import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { test } from 'node:test';
import type { BlockError } from '../base/error.js';
import type { HostPipe } from './host.js';
import { createRealHost } from './real.js';

async function writeOn(pipe: HostPipe): Promise<never> {
  for (;;) await pipe.write(Buffer.alloc(4096));
}

test('who writes to a command that does not read is told so, whether or not it has ended by then', async () => {
  const { pipes } = createRealHost();
  assert.ok(pipes);
  const message = 'Unable to write to command: Broken pipe';
  const pipe = pipes.run(['/bin/true'], 'to');
  await assert.rejects(writeOn(pipe), { message, errno: 'EPIPE' });
  await assert.rejects(writeOn(pipe), { message, errno: 'EPIPE' });
});

/** Runs `body` while this process can open nothing more. */
async function withoutDescriptors(body: () => Promise<void>): Promise<void> {
  const limit = (count: string): string => `prlimit --pid ${process.pid} --nofile=${count}:`;
  const old = `old=$(prlimit --pid ${process.pid} --nofile --noheadings --output=SOFT)`;
  // Whoever has no descriptors cannot start what gives them back.
  const helper = spawn('sh', ['-c', `${old}; ${limit('3')}; sleep 1; ${limit('$old')}`], { stdio: 'ignore' });
  const ended = once(helper, 'exit');
  const isOpenable = (): boolean => {
    try {
      closeSync(openSync('/dev/null', 'r'));
      return true;
    } catch {
      return false;
    }
  };
  while (isOpenable()) await new Promise((resolve) => setTimeout(resolve, 5));
  try {
    await body();
  } finally {
    await ended;
  }
}

test('a command for which there are no descriptors is an error of whoever starts it', async (t) => {
  if (spawnSync('prlimit', ['--version']).error) return t.skip('not installed: prlimit');
  const { pipes } = createRealHost();
  assert.ok(pipes);
  const told: BlockError[] = [];
  await withoutDescriptors(async () => {
    assert.throws(() => pipes.run(['/bin/true'], 'to'), { message: "Failed to start '/bin/true'" });
    const handler = { onData: () => undefined, onErrorText: () => undefined };
    const program = pipes.talk(['/bin/cat'], { ...handler, onEnd: (error) => void told.push(error) });
    program.write(Buffer.from('x'));
    await new Promise((resolve) => setTimeout(resolve, 20));
    program.destroy();
  });
  assert.deepEqual(
    told.map(({ message }) => message),
    ["Failed to start '/bin/cat': Too many open files"],
  );
});
