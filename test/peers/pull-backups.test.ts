import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { copyFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { promisify } from 'node:util';
import { createRealHost } from '../../src/host/real.js';
import { SeededRandom } from '../../src/host/simulated-random.js';
import { NbdClient } from '../../src/wire/nbd/client.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

const MiB = 1024 * 1024;
const DISK_BYTES = 32 * MiB;
const ROUNDS = Number(process.env['PULL_ROUNDS'] ?? 4);
const SEED = Number(process.env['PULL_SEED'] ?? 1);
/** Rounds after which the daemon ends and another one begins. */
const RESTART_EVERY = 3;
const WRITES = 40;
const PYTHON = '/usr/bin/python3';
const MONITOR = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
const DISK = ['--blockdev', 'qcow2,node-name=disk,file.driver=file,file.filename=disk.q'];
const EXPORTS = [
  ...['--nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
  ...['--export', 'nbd,id=guest,name=guest,node-name=disk,writable=on'],
];

type Json = { [key: string]: unknown };

/** A disk with a guest that writes to it, and a person who pulls backups of it as libvirt's clients do. */
class Backups {
  readonly folder: string;
  readonly #context: TestContext;
  readonly #random = new SeededRandom(SEED);
  /** What the guest's disk holds. */
  readonly model = Buffer.alloc(DISK_BYTES);
  /** Checkpoints: bitmaps that the image keeps, each of what was written since the one before. */
  readonly checkpoints: string[] = [];
  #daemon: Daemon | undefined;
  #guest: NbdClient | undefined;

  constructor(context: TestContext) {
    this.#context = context;
    this.folder = scratch(context);
    run(this.folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.q', String(DISK_BYTES));
  }

  async start(): Promise<void> {
    const words = [process.execPath, PROGRAM, 'storage-daemon', ...MONITOR, ...DISK, ...EXPORTS];
    this.#daemon = await Daemon.start(this.#context, this.folder, words);
    const address = { type: 'unix', path: join(this.folder, 'nbd.sock') } as const;
    this.#guest = await NbdClient.connect({ host: createRealHost(), address, exportName: 'guest' });
  }

  async end(): Promise<void> {
    await this.#guest?.close();
    assert.equal(await this.#daemon?.quit(), 0);
  }

  execute(command: string, args: Json = {}): Promise<unknown> {
    assert.ok(this.#daemon);
    return this.#daemon.execute(command, args);
  }

  async write(): Promise<void> {
    const random = this.#random;
    for (let i = 0; i < WRITES; i++) {
      const lengthBytes = 512 * (1 + random.below(256));
      const offset = 512 * random.below((DISK_BYTES - lengthBytes) / 512);
      const bytes = Buffer.alloc(lengthBytes, 1 + random.below(255));
      await this.#guest?.write(offset, bytes, 0);
      bytes.copy(this.model, offset);
    }
  }

  /** A backup of now: whole, or of what has changed since a checkpoint. Answers how much was brought. */
  async pull(file: string, since: string | undefined): Promise<{ moment: Buffer; pulledBytes: number }> {
    const checkpoint = `checkpoint${this.checkpoints.length}`;
    const scratchFile = { driver: 'file', filename: 'scratch.q' };
    run(this.folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'scratch.q', String(DISK_BYTES));
    await this.execute('blockdev-add', {
      ...{ driver: 'qcow2', 'node-name': 'scratch', file: scratchFile, backing: 'disk' },
    });
    const added = this.checkpoints.slice(since === undefined ? Infinity : this.checkpoints.indexOf(since));
    const actions: Array<{ type: string; data: Json }> = [
      { type: 'block-dirty-bitmap-add', data: { node: 'disk', name: checkpoint, persistent: true } },
      ...this.checkpoints.slice(-1).map((name) => ({
        ...{ type: 'block-dirty-bitmap-disable', data: { node: 'disk', name } },
      })),
      ...(since === undefined
        ? []
        : [
            { type: 'block-dirty-bitmap-add', data: { node: 'scratch', name: 'changed', disabled: true } },
            {
              type: 'block-dirty-bitmap-merge',
              data: {
                node: 'scratch',
                target: 'changed',
                bitmaps: added.map((name) => ({ node: 'disk', name })),
              },
            },
          ]),
      {
        type: 'blockdev-backup',
        data: { 'job-id': 'backup', device: 'disk', target: 'scratch', sync: 'none' },
      },
    ];
    await this.execute('transaction', { actions });
    const moment = Buffer.from(this.model);
    this.checkpoints.push(checkpoint);
    const bitmap = since === undefined ? {} : { bitmaps: ['changed'] };
    await this.execute('block-export-add', {
      ...{ type: 'nbd', id: 'backup', name: 'backup', 'node-name': 'scratch', ...bitmap },
    });
    // The guest goes on while its backup is pulled.
    const [pulled] = await Promise.all([this.#pullInto(file, since !== undefined), this.write()]);
    await this.execute('block-export-del', { id: 'backup' });
    await this.#daemon?.event('BLOCK_EXPORT_DELETED', { id: 'backup' });
    await this.execute('block-job-cancel', { device: 'backup' });
    await this.#daemon?.event('BLOCK_JOB_CANCELLED', { device: 'backup' });
    await this.execute('blockdev-del', { 'node-name': 'scratch' });
    return { moment, pulledBytes: pulled };
  }

  async #pullInto(file: string, isPartial: boolean): Promise<number> {
    const script = join(import.meta.dirname, 'pull-changed.py');
    const uri = `nbd+unix:///backup?socket=${join(this.folder, 'nbd.sock')}`;
    const words = [script, uri, file, ...(isPartial ? ['changed'] : [])];
    const { stdout } = await promisify(execFile)(PYTHON, words, { cwd: this.folder });
    return Number(stdout);
  }
}

test(`${ROUNDS} pulled backups in a row, full and of what has changed, with restarts: each is its moment`, async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  if (spawnSync(PYTHON, ['-c', 'import nbd']).status !== 0) return t.skip('not installed: python3-libnbd');
  const backups = new Backups(t);
  const at = (name: string): string => join(backups.folder, name);
  await backups.start();
  await backups.write();
  for (let round = 0; round < ROUNDS; round++) {
    if (round > 0 && round % RESTART_EVERY === 0) {
      await backups.end();
      await backups.start();
    }
    await backups.write();
    const last = backups.checkpoints.at(-1);
    // Now and then of what has changed since an older one.
    const since = round % 5 === 4 ? backups.checkpoints.at(-2) : last;
    const file = `backup${round}`;
    const from = since === undefined ? undefined : `backup${backups.checkpoints.indexOf(since)}`;
    if (from !== undefined) copyFileSync(at(from), at(file));
    const { moment, pulledBytes } = await backups.pull(file, since);
    assert.ok(readFileSync(at(file)).equals(moment), `round ${round} is not its moment`);
    if (since === undefined) assert.equal(pulledBytes, DISK_BYTES);
    else
      assert.ok(pulledBytes > 0 && pulledBytes < DISK_BYTES, `round ${round} brought ${pulledBytes} bytes`);
  }
  await backups.end();
  // The tools of QEMU see the same checkpoints, and the disk that the guest has written.
  const info = JSON.parse(run(backups.folder, 'qemu-img', 'info', '--output=json', 'disk.q')) as {
    'format-specific': { data: { bitmaps: Array<{ name: string; flags: string[] }> } };
  };
  const kept = info['format-specific'].data.bitmaps;
  assert.deepEqual(kept.map(({ name }) => name).sort(), [...backups.checkpoints].sort());
  assert.deepEqual(
    kept.filter(({ flags }) => flags.includes('auto')).map(({ name }) => name),
    backups.checkpoints.slice(-1),
  );
  run(backups.folder, 'qemu-img', 'check', '-q', 'disk.q');
  run(backups.folder, 'qemu-img', 'convert', '-O', 'raw', 'disk.q', 'now');
  assert.ok(readFileSync(at('now')).equals(backups.model));
  console.log(`${ROUNDS} pulled backups`);
});
