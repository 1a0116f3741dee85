import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
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
  return (await start(t, socket, ...words)).path;
}

async function start(
  t: TestContext,
  path: string,
  ...words: string[]
): Promise<{ path: string; server: ChildProcess }> {
  const server = spawn('nbdkit', ['-f', '-U', path, ...words], { stdio: 'ignore' });
  t.after(() => server.kill('SIGKILL'));
  for (let tries = 0; tries < 4800 && server.exitCode === null; tries++) {
    try {
      (await connectUnix(path)).destroy();
      return { path, server };
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

const needsStats = has('--filter=nozero', '--filter=stats', 'data');

test(
  'a server that only discards is made zeroes by that, where it says that it did',
  { skip: needsStats ? false : 'nbdkit with data, nozero and stats is not installed' },
  async (t) => {
    const folder = scratch(t);
    const bed = new EngineBed(t, { kind: 'storage-daemon' });
    const statistics = join(folder, 'statistics');
    const content = 'data=@1073741824 ( 0x07 )*67108864';
    const words = [
      '--filter=stats',
      '--filter=nozero',
      'data',
      content,
      'size=1T',
      `statsfile=${statistics}`,
    ];
    const { path, server } = await start(t, join(folder, 'target'), ...words);
    const address = { type: 'unix', path };
    await bed.execute('blockdev-add', {
      ...{ driver: 'nbd', 'node-name': 'target', server: address, discard: 'unmap' },
    });
    await bed.execute('blockdev-add', {
      ...{ driver: 'null-co', 'node-name': 'source', size: 2 ** 40, 'read-zeroes': true },
    });
    await bed.execute('blockdev-backup', {
      ...{ 'job-id': 'backup', device: 'source', target: 'target', sync: 'full' },
    });
    const backup = await bed.event('BLOCK_JOB_COMPLETED', 'backup');
    assert.equal(backup['error'], undefined);
    await bed.execute('blockdev-del', { 'node-name': 'target' });
    const status = spawnSync('nbdinfo', ['--map', `nbd+unix:///?socket=${path}`], { encoding: 'utf8' });
    if (status.error === undefined) assert.match(status.stdout, /^ +0 +1099511627776 +3 /);
    server.kill('SIGTERM');
    await once(server, 'exit');
    const told = readFileSync(statistics, 'utf8');
    assert.match(told, /^trim: /m);
    assert.doesNotMatch(told, /^write: /m);
  },
);
