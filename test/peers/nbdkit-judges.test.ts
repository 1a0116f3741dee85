import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { EngineBed } from '../engine/engine-bed.js';
import { connectUnix, scratch } from './daemon.js';

/**
 * nbdkit's sparse-random is a disk of any size, with little data, drawn from a seed; with its filter checkwrite what is
 * written must be what it holds, zeroes too, or the write fails. So as a job's source and target it judges each byte.
 */

const has = (...args: string[]): boolean => spawnSync('nbdkit', [...args, '--version']).status === 0;
const skip =
  has('sparse-random') && has('--filter=checkwrite', 'sparse-random')
    ? false
    : 'nbdkit with sparse-random and checkwrite is not installed';

/** NBDKIT_SIZE: of the disk. nbdkit thinks about each 4 KiB of it before it serves. */
const DISK = [`size=${process.env['NBDKIT_SIZE'] ?? '256G'}`, 'percent=0.0001', 'runlength=65536'];
const CHECKED = ['--filter=checkwrite', 'sparse-random'];

async function serve(t: TestContext, socket: string, ...words: string[]): Promise<string> {
  const server = spawn('nbdkit', ['-f', '-U', socket, ...words], { stdio: 'ignore' });
  t.after(() => server.kill('SIGKILL'));
  for (let tries = 0; tries < 4800 && server.exitCode === null; tries++) {
    try {
      (await connectUnix(socket)).destroy();
      return socket;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 25));
    }
  }
  throw new Error('nbdkit does not listen');
}

async function bedOf(t: TestContext, seed: string): Promise<EngineBed> {
  const folder = scratch(t);
  const bed = new EngineBed(t, { kind: 'storage-daemon' });
  const servers = [
    ['source', ['sparse-random', ...DISK, 'seed=7']],
    ['target', [...CHECKED, ...DISK, seed]],
  ] as const;
  const listening = servers.map(([name, words]) => serve(t, join(folder, name), ...words));
  for (const [i, path] of (await Promise.all(listening)).entries()) {
    const name = servers[i]?.[0] ?? '';
    await bed.execute('blockdev-add', {
      ...{ driver: 'nbd', 'node-name': name },
      server: { type: 'unix', path },
    });
  }
  return bed;
}

test('a backup and a mirror of a large disk write what is there', { skip }, async (t) => {
  const bed = await bedOf(t, 'seed=7');
  await bed.execute('blockdev-backup', {
    ...{ 'job-id': 'backup', device: 'source', target: 'target', sync: 'full' },
  });
  const backup = await bed.event('BLOCK_JOB_COMPLETED', 'backup');
  assert.equal(backup['error'], undefined);
  assert.equal(backup['offset'], backup['len']);
  await bed.execute('blockdev-mirror', {
    ...{ 'job-id': 'mirror', device: 'source', target: 'target', sync: 'full' },
  });
  await bed.event('BLOCK_JOB_READY', 'mirror');
  await bed.execute('block-job-cancel', { device: 'mirror' });
  const mirror = await bed.event('BLOCK_JOB_COMPLETED', 'mirror');
  assert.equal(mirror['error'], undefined);
});

test('the judge finds a disk that differs', { skip }, async (t) => {
  const bed = await bedOf(t, 'seed=8');
  await bed.execute('blockdev-backup', {
    ...{ 'job-id': 'backup', device: 'source', target: 'target', sync: 'full' },
  });
  const { error } = await bed.event('BLOCK_JOB_COMPLETED', 'backup');
  assert.match(error as string, /Input\/output error/);
});
