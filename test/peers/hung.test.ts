import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Daemon, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';

const MiB = 1024 * 1024;
const DISK_BYTES = 64 * MiB;
/** What must end soon ends within this, on a busy machine too; what waits for a peer that hangs would take a minute. */
const SOON_MS = 30_000;

interface Peer {
  /** Options of a node of the peer's, for blockdev-add. */
  options: { readonly [key: string]: unknown };
  /** It answers nothing from now on, and closes nothing. */
  hang(): void;
  goOn(): void;
}

async function untilThere(what: string, isThere: () => boolean): Promise<void> {
  for (const end = Date.now() + SOON_MS; !isThere();) {
    if (Date.now() > end) throw new Error(`${what} does not come up`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function start(context: TestContext, cwd: string, ...argv: string[]): ChildProcess {
  const child = spawn(argv[0] ?? '', argv.slice(1), { cwd, stdio: 'ignore' });
  context.after(() => child.kill('SIGKILL'));
  return child;
}

async function nbdServer(context: TestContext, folder: string): Promise<Peer> {
  const server = start(context, folder, 'nbdkit', '-f', '-U', 'peer.sock', 'memory', String(DISK_BYTES));
  await untilThere('nbdkit', () => existsSync(join(folder, 'peer.sock')));
  return {
    options: { driver: 'nbd', server: { type: 'unix', path: join(folder, 'peer.sock') } },
    hang: () => void server.kill('SIGSTOP'),
    goOn: () => void server.kill('SIGCONT'),
  };
}

/** A file of a file system whose program answers the kernel no more: calls do not return. */
async function heldFile(context: TestContext, folder: string): Promise<Peer | undefined> {
  await nbdServer(context, folder);
  // Outside of the folder: nobody may look into it once it hangs.
  const mount = mkdtempSync(join(tmpdir(), 'livedisk-held-'));
  const fuse = spawn('nbdfuse', [mount, '--unix', join(folder, 'peer.sock')], { stdio: 'ignore' });
  context.after(() => {
    fuse.kill('SIGKILL');
    spawnSync('umount', ['-l', mount], { stdio: 'ignore', timeout: SOON_MS });
    rmdirSync(mount);
  });
  const filename = join(mount, 'nbd');
  await untilThere('nbdfuse', () => fuse.exitCode !== null || existsSync(filename));
  if (fuse.exitCode !== null) {
    context.skip('nbdfuse cannot mount here');
    return undefined;
  }
  return {
    options: { driver: 'file', filename },
    hang: () => void fuse.kill('SIGSTOP'),
    goOn: () => void fuse.kill('SIGCONT'),
  };
}

const PEERS = {
  'an NBD server that is stopped': { make: nbdServer, programs: ['qemu-img', 'nbdkit'] },
  'a file whose calls the kernel holds': { make: heldFile, programs: ['qemu-img', 'nbdkit', 'nbdfuse'] },
};

async function withGuest(
  context: TestContext,
  folder: string,
): Promise<{ daemon: Daemon; guest: SmallNbd; answers: (offset: number) => Promise<void> }> {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', String(DISK_BYTES));
  run(folder, 'qemu-io', '-f', 'qcow2', '-c', 'write -P 1 0 32M', 'disk.qcow2');
  const daemon = await Daemon.livedisk(
    context,
    folder,
    ...['-blockdev', 'driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2'],
    ...['--nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
    ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
  );
  const guest = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  const answers = async (offset: number): Promise<void> => {
    const late = new Promise<never>((_, reject) => {
      setTimeout(() => reject(new Error(`the guest's write at ${offset} waits`)), SOON_MS).unref();
    });
    await Promise.race([guest.write(offset, Buffer.alloc(4096, 9)), late]);
  };
  return { daemon, guest, answers };
}

for (const [name, { make, programs }] of Object.entries(PEERS)) {
  for (const command of ['blockdev-mirror', 'blockdev-backup']) {
    test(`${command} to ${name}: guests go on, a forced cancel, the target's removal and quit end soon`, async (t) => {
      if (skipWithout(t, ...programs)) return;
      const folder = scratch(t);
      const peer = await make(t, folder);
      if (!peer) return;
      const { daemon, guest, answers } = await withGuest(t, folder);
      await daemon.execute('blockdev-add', { 'node-name': 'target', ...peer.options });
      const speed = 4 * MiB;
      await daemon.execute(command, {
        'job-id': 'job',
        device: 'disk',
        target: 'target',
        sync: 'full',
        speed,
      });
      await untilCopied(daemon, 2 * MiB);
      peer.hang();
      await untilStuck(daemon);
      await answers(0);
      await daemon.execute('block-job-cancel', { device: 'job', force: true });
      await daemon.event('BLOCK_JOB_CANCELLED', { device: 'job' }, SOON_MS);
      await answers(40 * MiB);
      await daemon.execute('blockdev-snapshot-sync', {
        'node-name': 'disk',
        'snapshot-file': 'overlay.qcow2',
        'snapshot-node-name': 'overlay',
      });
      await answers(0);
      await soon('blockdev-del', daemon.execute('blockdev-del', { 'node-name': 'target' }));
      guest.close();
      const ended = daemon.quit();
      await untilThere('the end', () => isExiting(daemon));
      peer.goOn();
      assert.equal(await soon('the exit', ended), 0, daemon.output);
      run(folder, 'qemu-img', 'check', '-q', 'overlay.qcow2');
    });
  }
}

test("a guest's disk whose calls the kernel holds: the end says what it waits for, a second signal ends it", async (t) => {
  if (skipWithout(t, 'qemu-img', 'nbdkit', 'nbdfuse')) return;
  const folder = scratch(t);
  const peer = await heldFile(t, folder);
  if (!peer) return;
  const daemon = await Daemon.livedisk(
    t,
    folder,
    ...['-blockdev', JSON.stringify({ 'node-name': 'disk', ...peer.options })],
    ...['--nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
    ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
  );
  const guest = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  await guest.write(0, Buffer.alloc(4096, 1));
  peer.hang();
  guest.write(4096, Buffer.alloc(4096, 2)).catch(() => undefined);
  const ended = new Promise((resolve) => daemon.process.once('exit', resolve));
  // Let the write get to the kernel.
  await daemon.execute('query-status');
  daemon.process.kill('SIGTERM');
  await untilThere('what it waits for', () => daemon.output.includes('waiting for'));
  assert.match(
    daemon.output,
    /^livedisk: waiting for .*disk.*; another signal ends the program without that$/m,
  );
  assert.equal(daemon.process.exitCode, null);
  daemon.process.kill('SIGTERM');
  await untilThere('the end', () => isExiting(daemon));
  peer.goOn();
  assert.equal(await soon('the exit', ended), 1);
  guest.close();
});

/**
 * The program has ended; its process may be there still, while the kernel closes what it had open and asks the one who
 * answers no more. Then it has no memory, and so no arguments.
 */
function isExiting({ process: { pid, exitCode } }: Daemon): boolean {
  return exitCode !== null || readFileSync(`/proc/${pid}/cmdline`, 'utf8') === '';
}

async function soon<T>(what: string, promise: Promise<T>): Promise<T> {
  const late = new Promise<never>((_, reject) => {
    setTimeout(() => reject(new Error(`${what} takes too long`)), SOON_MS).unref();
  });
  return Promise.race([promise, late]);
}

async function copiedBytes(daemon: Daemon): Promise<number> {
  const jobs = (await daemon.execute('query-block-jobs')) as Array<{ offset: number }>;
  return jobs[0]?.offset ?? 0;
}

async function untilCopied(daemon: Daemon, bytes: number): Promise<void> {
  for (const end = Date.now() + SOON_MS; (await copiedBytes(daemon)) < bytes;) {
    if (Date.now() > end) throw new Error('the job copies nothing');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The job copies no more: it has a request in flight to the peer. */
async function untilStuck(daemon: Daemon): Promise<void> {
  for (let before = -1; ;) {
    const now = await copiedBytes(daemon);
    if (now === before) return;
    before = now;
    await new Promise((resolve) => setTimeout(resolve, 700));
  }
}
