import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { decodeRecord, encodeRecord, RECORD_BYTES } from '../../src/programs/demo/records.js';
import { seededBelow } from '../kit/crash-states.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';

/**
 * The program is killed at random moments of a job with a journal, again and again, while a guest writes records; each
 * time the job goes on. What it ends with is right, by qemu-img: a backup is the disk of its start, byte for byte.
 */

const KILLS = Number(process.env['KILLS'] ?? 3);
const SEED = Number(process.env['KILL_SEED'] ?? Date.now() % 2 ** 31);
const MiB = 1024 * 1024;
const DISK_BYTES = 64 * MiB;
/** So that it is under way when it is killed. */
const SPEED = 16 * MiB;
const LONGEST_MS = 1200;
/** Records of one life of the program. */
const BLOCKS = 64;
const WRITES_A_FLUSH = 5;
/** Records lie behind each other from here on, in clusters of their own. */
const RECORDS_AT = 8 * MiB;
const STRIDE = 64 * 1024;

const MONITOR = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
const JOURNAL = 'journal';

interface Job {
  command: string;
  args: { [key: string]: unknown };
  /** The layer that the disk does without afterwards. */
  gone?: string;
}

const JOBS: { readonly [name: string]: Job } = {
  stream: { command: 'block-stream', args: { device: 'top', 'base-node': 'base' }, gone: 'middle' },
  commit: {
    command: 'block-commit',
    args: { device: 'top', 'top-node': 'middle', 'base-node': 'base' },
    gone: 'middle',
  },
  backup: { command: 'blockdev-backup', args: { device: 'top', target: 'target', sync: 'full' } },
};

/** What one life of the program was asked to write: each block once. */
class Life {
  readonly #first: number;
  readonly #isFlushed: boolean[] = [];
  #begun = 0;

  constructor(life: number) {
    this.#first = life * BLOCKS;
  }

  offsetOf(i: number): number {
    return RECORDS_AT + (this.#first + i) * STRIDE;
  }

  async write(folder: string): Promise<void> {
    const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'guest').catch(() => undefined);
    if (!client) return;
    const block = Buffer.alloc(RECORD_BYTES);
    try {
      for (; this.#begun < BLOCKS;) {
        const i = this.#begun++;
        encodeRecord(block, 1 + i, this.#first + i);
        await client.write(this.offsetOf(i), Buffer.from(block));
        if (this.#begun % WRITES_A_FLUSH !== 0) continue;
        await client.flush();
        for (let done = 0; done < this.#begun; done++) this.#isFlushed[done] = true;
      }
      client.close();
    } catch {
      client.close();
    }
  }

  /** `before`: what the disk held at first. */
  check(path: string, before: Buffer, what: string): void {
    const file = openSync(path, 'r');
    const block = Buffer.alloc(RECORD_BYTES);
    try {
      for (let i = 0; i < BLOCKS; i++) {
        const at = this.offsetOf(i);
        readSync(file, block, 0, RECORD_BYTES, at);
        if (block.equals(before.subarray(at, at + RECORD_BYTES))) {
          assert.ok(this.#isFlushed[i] !== true, `${what}: record ${i} of ${this.#first} is lost`);
          continue;
        }
        assert.equal(decodeRecord(block, this.#first + i), 1 + i, `${what}: record ${i} of ${this.#first}`);
      }
    } finally {
      closeSync(file);
    }
  }
}

function makeImages(folder: string): Buffer {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'base', String(DISK_BYTES));
  run(folder, 'qemu-io', '-c', `write -P 0x11 0 ${DISK_BYTES}`, 'base');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'middle');
  run(folder, 'qemu-io', '-c', 'write -P 0x22 1M 40M', 'middle');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'middle', '-F', 'qcow2', 'top');
  run(folder, 'qemu-io', '-c', 'write -P 0x33 30M 6M', 'top');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'target', String(DISK_BYTES));
  return contentOf(folder, 'top');
}

function contentOf(folder: string, image: string): Buffer {
  run(folder, 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, 'content');
  return readFileSync(join(folder, 'content'));
}

async function start(t: TestContext, folder: string): Promise<Daemon> {
  const argv = [process.execPath, PROGRAM, 'storage-daemon', ...MONITOR];
  const daemon = await Daemon.start(t, folder, argv, 'qmp.sock', ['x-livedisk']);
  for (const [name, backing] of [
    ['base', null],
    ['middle', 'base'],
    ['top', 'middle'],
    ['target', null],
  ] as const)
    await daemon.execute('blockdev-add', {
      ...{ driver: 'qcow2', 'node-name': name, backing },
      file: { driver: 'file', filename: name },
    });
  // The job's filter comes between it and the disk; guests begin when the job has gone on.
  await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
  await daemon.execute('nbd-server-add', { device: 'top', name: 'guest', writable: true });
  return daemon;
}

for (const [name, { command, args, gone }] of Object.entries(JOBS))
  test(`a ${name} with a journal, killed ${KILLS} times, goes on each time and ends right`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const below = seededBelow(SEED);
    const folder = scratch(t);
    const before = makeImages(folder);
    const lives: Life[] = [];
    const what = `${name} (KILL_SEED=${SEED})`;
    for (let kill = 0; kill <= KILLS; kill++) {
      const daemon = await start(t, folder);
      if (kill === 0)
        await daemon.execute(command, { ...args, 'job-id': 'j', speed: SPEED, 'x-persist': JOURNAL });
      else {
        const resumed = await daemon.raw('x-job-resume', { journal: JOURNAL });
        assert.equal(resumed.error, undefined, `${what}: ${resumed.error?.desc}`);
      }
      const life = new Life(kill);
      lives.push(life);
      const writing = life.write(folder);
      if (kill < KILLS) {
        await new Promise((resolve) => setTimeout(resolve, below(LONGEST_MS / KILLS)));
        await daemon.kill();
        await writing;
        continue;
      }
      await writing;
      await daemon.raw('block-job-set-speed', { device: 'j', speed: 0 });
      await daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
      await daemon.execute('quit');
      await daemon.kill();
    }
    for (const image of ['base', 'top', 'target']) {
      const { status, stdout, stderr } = spawnSync('qemu-img', ['check', image], {
        cwd: folder,
        encoding: 'utf8',
      });
      // Status 3: leaked clusters and nothing worse.
      assert.ok(status === 0 || status === 3, `${what}: ${image}: ${stdout}${stderr}`);
    }
    if (name === 'backup') {
      const at = contentOf(folder, 'target').compare(before);
      assert.equal(at, 0, `${what}: the copy is not the disk of its start`);
    }
    if (gone !== undefined)
      assert.doesNotMatch(
        run(folder, 'qemu-img', 'info', '--backing-chain', 'top'),
        new RegExp(`image: ${gone}`),
      );
    contentOf(folder, 'top');
    for (const life of lives) life.check(join(folder, 'content'), before, what);
    console.log(`${KILLS} kills of a persisted ${name}`);
  });
