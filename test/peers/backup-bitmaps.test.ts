import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

const KiB = 1024;
const CLUSTER = 64 * KiB;
const DISK = 16 * CLUSTER;
const SYNC = ['full', 'top', 'none', 'incremental', 'bitmap'] as const;
const MODES = [undefined, 'on-success', 'never', 'always'] as const;
const BITMAPS = [undefined, 'bits', 'gone'] as const;

interface Outcome {
  /** What the command, or the job, failed with. */
  error?: string;
  /** Bytes, by the event that ends the job. */
  len?: unknown;
  offset?: unknown;
  /** Of the bitmap afterwards. */
  count?: unknown;
  recording?: unknown;
  busy?: unknown;
  /** Which values each cluster of the target holds. */
  target?: string[];
}

interface Case {
  backed: boolean;
  sync: (typeof SYNC)[number];
  mode: (typeof MODES)[number];
  bitmap: (typeof BITMAPS)[number];
}

/** A base, disks of which two and a half clusters are written, and a target that holds something else. */
function makeImages(cwd: string): void {
  run(cwd, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'base', String(DISK));
  run(cwd, 'qemu-io', '-c', `write -P 9 0 ${DISK}`, 'base');
  for (const backed of [true, false]) {
    const backing = backed ? ['-b', 'base', '-F', 'qcow2'] : [];
    run(cwd, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...backing, `source-${backed}`, String(DISK));
    run(cwd, 'qemu-io', '-c', 'write -P 1 0 128k', '-c', 'write -P 1 512k 32k', `source-${backed}`);
  }
  writeFileSync(join(cwd, 'target-old'), Buffer.alloc(DISK, 7));
}

/** A cluster and a sector are written after the bitmap was made. */
async function outcome(daemon: Daemon, cwd: string, { backed, sync, mode, bitmap }: Case): Promise<Outcome> {
  const image = (name: string): string => join(cwd, name);
  copyFileSync(image(`source-${backed}`), image('source'));
  copyFileSync(image('target-old'), image('target'));
  const file = (filename: string): object => ({ driver: 'file', filename });
  await daemon.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'S', file: file('source') });
  await daemon.execute('blockdev-add', { driver: 'raw', 'node-name': 'T', file: file('target') });
  await daemon.execute('block-dirty-bitmap-add', { node: 'S', name: 'bits' });
  const socket = { type: 'unix', data: { path: 'nbd.sock' } };
  await daemon.execute('nbd-server-start', { addr: socket });
  await daemon.execute('block-export-add', { id: 'e', type: 'nbd', 'node-name': 'S', writable: true });
  const uri = 'nbd+unix:///S?socket=nbd.sock';
  run(cwd, 'qemu-io', '-f', 'raw', '-c', 'write -P 2 64k 64k', '-c', 'write -P 2 768k 512', uri);
  const args = { device: 'S', target: 'T', 'job-id': 'j', sync };
  const { error } = await daemon.raw('blockdev-backup', {
    ...args,
    ...(mode !== undefined && { 'bitmap-mode': mode }),
    ...(bitmap !== undefined && { bitmap }),
  });
  const found = error ? { error: error.desc } : await ended(daemon, image('target'), sync);
  await daemon.execute('nbd-server-stop');
  for (const name of ['S', 'T']) await daemon.execute('blockdev-del', { 'node-name': name });
  return found;
}

async function ended(daemon: Daemon, target: string, sync: string): Promise<Outcome> {
  if (sync === 'none') await daemon.execute('block-job-cancel', { device: 'j' });
  const name = sync === 'none' ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED';
  const { len, offset } = await daemon.event(name, { device: 'j' });
  const nodes = (await daemon.execute('query-named-block-nodes', { flat: true })) as Array<{
    'node-name': string;
    'dirty-bitmaps'?: Array<{ count: number; recording: boolean; busy: boolean }>;
  }>;
  const [bits] = nodes.find((node) => node['node-name'] === 'S')?.['dirty-bitmaps'] ?? [];
  const { count, recording, busy } = bits ?? {};
  const bytes = readFileSync(target);
  const clusters = Array.from({ length: DISK / CLUSTER }, (_, i) =>
    [...new Set(bytes.subarray(i * CLUSTER, (i + 1) * CLUSTER))].join('+'),
  );
  return { len, offset, count, recording, busy, target: clusters };
}

test('backups with and without bitmaps end as in QEMU, whatever they copy', async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const monitor = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
  const [theirs, ours] = [scratch(t), scratch(t)];
  for (const folder of [theirs, ours]) makeImages(folder);
  const qemu = await Daemon.start(t, theirs, ['qemu-storage-daemon', ...monitor]);
  const livedisk = await Daemon.start(t, ours, [process.execPath, PROGRAM, 'storage-daemon', ...monitor]);
  for (const backed of [false, true])
    for (const sync of SYNC)
      for (const mode of MODES)
        for (const bitmap of BITMAPS) {
          const what: Case = { backed, sync, mode, bitmap };
          assert.deepEqual(
            await outcome(livedisk, ours, what),
            await outcome(qemu, theirs, what),
            JSON.stringify(what),
          );
        }
});
