import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { DISK_BYTES, MiB } from '../engine/engine-bed.js';
import { ForgetfulServer } from '../engine/forgetful-server.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';
import { CRAWLING } from './takeover-jobs-disk.js';
import { quit, update } from './takeover-sides.js';

/** An NBD server is lost with what it was not told to keep, before or after another process has taken over. */

const DATA = Buffer.alloc(DISK_BYTES, 0x33);

class Updated {
  readonly #context: TestContext;
  readonly folder: string;
  readonly server: ForgetfulServer;
  readonly daemon: Daemon;
  #serving;

  private constructor(context: TestContext, folder: string, server: ForgetfulServer, daemon: Daemon) {
    this.#context = context;
    this.folder = folder;
    this.server = server;
    this.daemon = daemon;
    this.#serving = daemon.process;
  }

  /** A node N, which the server has, and below an image O one that is all data, M, above S or N. */
  static async start(t: TestContext, { delay = 0, below = 'S' } = {}): Promise<Updated> {
    const folder = scratch(t);
    const server = await ForgetfulServer.start(t, folder, 'raw');
    writeFileSync(join(folder, 'S'), '');
    for (const name of ['M', 'O']) run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', name, '8M');
    run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'write -q -P 0x33 0 8M', 'M');
    const nbd = { driver: 'nbd', server: { type: 'unix', path: server.socket }, export: 'T' };
    const file = (filename: string): object => ({ driver: 'file', filename });
    const nodes = [
      { driver: 'raw', 'node-name': 'N', file: { ...nbd, 'reconnect-delay': delay } },
      { driver: 'raw', 'node-name': 'S', file: file('S') },
      { driver: 'qcow2', 'node-name': 'M', file: file('M'), backing: below },
      { driver: 'qcow2', 'node-name': 'O', file: file('O'), backing: 'M' },
    ];
    const daemon = await Daemon.start(
      t,
      folder,
      [
        ...[process.execPath, PROGRAM, 'run', '-monitor', 'none'],
        ...nodes.flatMap((node) => ['-blockdev', JSON.stringify(node)]),
        ...['-nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
        ...['-qmp', 'unix:qmp.sock,server=on,wait=off'],
      ],
      'qmp.sock',
      ['x-livedisk'],
    );
    return new Updated(t, folder, server, daemon);
  }

  /** A job j that has copied something, and rests. */
  async startJob(command: string, args: object): Promise<void> {
    const { daemon } = this;
    await daemon.execute(command, { ...args, 'job-id': 'j', speed: CRAWLING });
    for (;;) {
      const [job] = (await daemon.execute('query-block-jobs')) as Array<{ offset: number }>;
      if (job && job.offset > 0) break;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await daemon.execute('job-pause', { id: 'j' });
    await daemon.event('JOB_STATUS_CHANGE', { id: 'j', status: 'paused' });
  }

  async update(): Promise<void> {
    const { folder, daemon } = this;
    this.#serving = await update(this.#context, folder, { daemon, serving: this.#serving });
  }

  async finishJob(event: string): Promise<void> {
    const { daemon } = this;
    await daemon.execute('block-job-set-speed', { device: 'j', speed: 0 });
    await daemon.execute('job-resume', { id: 'j' });
    assert.equal((await daemon.event(event, { device: 'j' }))['error'], undefined);
  }

  quit(): Promise<void> {
    return quit(this.daemon, this.#serving);
  }
}

const JOBS = Object.entries({
  backup: {
    ...{ command: 'blockdev-backup', args: { device: 'O', target: 'N', sync: 'full' } },
    ...{ below: 'S', event: 'BLOCK_JOB_COMPLETED' },
  },
  mirror: {
    ...{ command: 'blockdev-mirror', args: { device: 'O', target: 'N', sync: 'full' } },
    ...{ below: 'S', event: 'BLOCK_JOB_READY' },
  },
  commit: {
    ...{ command: 'block-commit', args: { device: 'O', 'top-node': 'M', 'base-node': 'N' } },
    ...{ below: 'N', event: 'BLOCK_JOB_COMPLETED' },
  },
});

for (const [kind, { command, args, below, event }] of JOBS) {
  test(`a ${kind} that is taken over: what its target had is kept when the server is lost then`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const updated = await Updated.start(t, { below });
    await updated.startJob(command, args);
    await updated.update();
    updated.server.lose();
    await updated.finishJob(event);
    assert.ok(readFileSync(updated.server.path).equals(DATA));
    await updated.quit();
  });

  test(`a ${kind} that is taken over copies again what a server that came back may have lost`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const updated = await Updated.start(t, { below, delay: 60 });
    await updated.startJob(command, args);
    updated.server.lose();
    await updated.update();
    await updated.finishJob(event);
    assert.ok(readFileSync(updated.server.path).equals(DATA));
    await updated.quit();
  });
}

test('what a guest has written to a server is kept when it is lost after a takeover', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const updated = await Updated.start(t);
  const { daemon, folder, server } = updated;
  await daemon.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'N', writable: true });
  const guest = await SmallNbd.connect(join(folder, 'nbd.sock'), 'N');
  await guest.write(0, DATA.subarray(0, MiB));
  await updated.update();
  server.lose();
  // The first to find the connection broken.
  await guest.read(MiB, 512).catch(() => undefined);
  await guest.flush();
  guest.close();
  assert.ok(readFileSync(server.path).subarray(0, MiB).equals(DATA.subarray(0, MiB)));
  await updated.quit();
});
