import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { decodeRecord, encodeRecord, RECORD_BYTES } from '../../src/programs/demo/records.js';
import { seededBelow } from '../kit/crash-states.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';

/**
 * The program is killed at a random moment of a job, while a guest writes records and flushes now and then. What was
 * flushed is there afterwards, in the image that is the guest's by then, and nothing is corrupt.
 */

const KILLS = Number(process.env['KILLS'] ?? 2);
const SEED = Number(process.env['KILL_SEED'] ?? Date.now() % 2 ** 31);
const MiB = 1024 * 1024;
const DISK_BYTES = 32 * MiB;
/** Records lie in the first half, the second holds a pattern. */
const BLOCKS = 512;
const PATTERN_AT = 16 * MiB;
const WRITES_A_FLUSH = 10;
/** Of a job and its end, most of the time. */
const LONGEST_MS = 400;

const MONITOR = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];

interface Job {
  command: string;
  args: { [key: string]: unknown };
  /** Where the guest's disk is once the job is complete. */
  heir?: string;
}

const JOBS: { readonly [name: string]: Job } = {
  stream: { command: 'block-stream', args: { device: 'top' } },
  commit: { command: 'block-commit', args: { device: 'top', 'base-node': 'base' }, heir: 'base' },
  mirror: {
    command: 'blockdev-mirror',
    args: { device: 'top', target: 'target', sync: 'full' },
    heir: 'target',
  },
  'mirror that writes to both': {
    command: 'blockdev-mirror',
    args: { device: 'top', target: 'target', sync: 'full', 'copy-mode': 'write-blocking' },
    heir: 'target',
  },
  backup: { command: 'blockdev-backup', args: { device: 'top', target: 'target', sync: 'full' } },
};

/** Scattered: neighbouring blocks are in different clusters. */
const offsetOf = (index: number): number => ((index * 37) % (PATTERN_AT / RECORD_BYTES)) * RECORD_BYTES;

/** By block: the records that it may hold, the first of them flushed. */
class Records {
  readonly #allowed: number[][] = Array.from({ length: BLOCKS }, () => [0]);
  #last = 0;

  begin(index: number, block: Buffer): void {
    this.#allowed[index]?.push(++this.#last);
    encodeRecord(block, this.#last, index);
  }

  flushed(): void {
    for (const [index, numbers] of this.#allowed.entries()) this.#allowed[index] = numbers.slice(-1);
  }

  /** What is wrong with an image's content; undefined: nothing. */
  problemOf(path: string): string | undefined {
    const file = openSync(path, 'r');
    const block = Buffer.alloc(RECORD_BYTES);
    try {
      for (const [index, allowed] of this.#allowed.entries()) {
        readSync(file, block, 0, RECORD_BYTES, offsetOf(index));
        const number = decodeRecord(block, index);
        if (!allowed.includes(number)) return `block ${index} holds record ${number}, not ${allowed.join()}`;
      }
      for (let at = PATTERN_AT; at < DISK_BYTES; at += RECORD_BYTES) {
        readSync(file, block, 0, RECORD_BYTES, at);
        if (!block.every((byte) => byte === 0x5a)) return `the pattern at ${at} has changed`;
      }
      return undefined;
    } finally {
      closeSync(file);
    }
  }
}

function makeImages(folder: string): void {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'base', String(DISK_BYTES));
  run(folder, 'qemu-io', '-c', `write -P 0x5a ${PATTERN_AT} ${DISK_BYTES - PATTERN_AT}`, 'base');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top');
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'target', String(DISK_BYTES));
}

async function start(t: TestContext, folder: string): Promise<Daemon> {
  const daemon = await Daemon.start(t, folder, [process.execPath, PROGRAM, 'storage-daemon', ...MONITOR]);
  for (const [name, backing] of [
    ['base', null],
    ['top', 'base'],
    ['target', null],
  ] as const)
    await daemon.execute('blockdev-add', {
      ...{ driver: 'qcow2', 'node-name': name, backing },
      file: { driver: 'file', filename: name },
    });
  await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
  await daemon.execute('nbd-server-add', { device: 'top', name: 'guest', writable: true });
  return daemon;
}

/** The guest writes until the program is gone. */
async function write(folder: string, records: Records, below: (n: number) => number): Promise<void> {
  const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'guest').catch(() => undefined);
  // It was killed at once.
  if (!client) return;
  const block = Buffer.alloc(RECORD_BYTES);
  try {
    for (let count = 1; ; count++) {
      const index = below(BLOCKS);
      records.begin(index, block);
      await client.write(offsetOf(index), Buffer.from(block));
      if (count % WRITES_A_FLUSH !== 0) continue;
      await client.flush();
      records.flushed();
    }
  } catch {
    client.close();
  }
}

/** Runs the job and completes it, as far as it comes. */
async function work(daemon: Daemon, { command, args, heir }: Job): Promise<void> {
  await daemon.raw(command, { ...args, 'job-id': 'j' });
  if (heir === undefined) return;
  await daemon.event('BLOCK_JOB_READY', { device: 'j' });
  await daemon.raw('block-job-complete', { device: 'j' });
}

function assertSound(folder: string, image: string, what: string): void {
  // Status 3: leaked clusters and nothing worse.
  const { status, stdout, stderr } = spawnSync('qemu-img', ['check', image], {
    ...{ cwd: folder, encoding: 'utf8' },
  });
  assert.ok(status === 0 || status === 3, `${what}: ${image}: ${stdout}${stderr}`);
}

for (const [name, job] of Object.entries(JOBS))
  test(`kill -9 during a ${name}, ${KILLS} times: nothing that was flushed is lost`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const below = seededBelow(SEED);
    const folder = scratch(t);
    for (let kill = 0; kill < KILLS; kill++) {
      makeImages(folder);
      const daemon = await start(t, folder);
      const records = new Records();
      const delayMs = below(LONGEST_MS);
      const what = `${name}, killed ${delayMs} ms after its start (KILL_SEED=${SEED})`;
      const guest = write(folder, records, below);
      const worker = work(daemon, job).catch(() => undefined);
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      await daemon.kill();
      await Promise.race([worker, guest]);
      await guest;
      const isComplete = daemon.events.some(({ event }) => event === 'BLOCK_JOB_COMPLETED');
      // Whoever manages disks knows by the event; without it the job may have ended or not.
      const heirs = job.heir === undefined ? ['top'] : isComplete ? [job.heir] : ['top', job.heir];
      for (const image of ['base', 'top', 'target']) assertSound(folder, image, what);
      const problems = heirs.map((image) => {
        run(folder, 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, 'content');
        return records.problemOf(join(folder, 'content'));
      });
      assert.ok(problems.includes(undefined), `${what}: ${problems.join('; ')}`);
    }
    console.log(`${KILLS} kills of each job`);
  });
