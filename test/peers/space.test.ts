import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';

const MiB = 1024 * 1024;
const PIECE_BYTES = 64 * 1024;
const DISK_BYTES = 512 * MiB;

/** A small file system at `folder`/full, or undefined where it cannot be made. */
type FileSystem = (folder: string) => boolean;

function succeeds(cwd: string, ...argv: string[]): boolean {
  return spawnSync(argv[0] ?? '', argv.slice(1), { cwd, stdio: 'ignore' }).status === 0;
}

function loop(sizeBytes: number, ...mkfs: string[]): FileSystem {
  return (folder) =>
    succeeds(folder, 'truncate', '-s', String(sizeBytes), 'device') &&
    succeeds(folder, ...mkfs, 'device') &&
    succeeds(folder, 'mount', '-o', 'loop', 'device', 'full');
}

const FILE_SYSTEMS: Readonly<Record<string, FileSystem>> = {
  tmpfs: (folder) => succeeds(folder, 'mount', '-t', 'tmpfs', '-o', 'size=8M', 'none', 'full'),
  ext4: loop(16 * MiB, 'mkfs.ext4', '-q'),
  'ext4 without fallocate': loop(16 * MiB, 'mkfs.ext4', '-q', '-O', '^extent,^64bit,^metadata_csum'),
};

/** A folder in which `full` is the file system; the test is skipped, visibly, where that cannot be had. */
function mounted(context: TestContext, name: string, fileSystem: FileSystem): string | undefined {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-full-'));
  mkdirSync(join(folder, 'full'));
  context.after(() => {
    succeeds(folder, 'umount', '-l', 'full');
    rmSync(folder, { recursive: true, force: true });
  });
  if (fileSystem(folder)) return folder;
  context.skip(`cannot make and mount ${name} here`);
  return undefined;
}

function start(context: TestContext, folder: string, image: string, ...before: string[]): Promise<Daemon> {
  const options = [
    ...['--blockdev', `driver=qcow2,node-name=disk,file.driver=file,file.filename=${image}`],
    ...['--nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
    ...['--export', 'type=nbd,id=e,node-name=disk,writable=on'],
    ...['-qmp', 'unix:qmp.sock,server=on,wait=off'],
  ];
  return Daemon.start(context, folder, [...before, process.execPath, PROGRAM, 'run', ...options]);
}

/** What was written, by offset. */
type Written = Map<number, number>;

function piece(value: number): Buffer {
  return Buffer.alloc(PIECE_BYTES, value);
}

/** Writes far and wide, so that tables are needed, until there is no space. */
async function fill(client: SmallNbd, written: Written): Promise<void> {
  for (let turn = 0; ; turn++) {
    const at = ((turn * 37) % (DISK_BYTES / PIECE_BYTES)) * PIECE_BYTES;
    const value = 1 + (turn % 200);
    try {
      await client.write(at, piece(value));
    } catch (error) {
      // EFBIG and EDQUOT are ENOSPC on the wire.
      assert.equal(String(error), 'Error: NBD error 28', `write ${turn}`);
      return;
    }
    written.set(at, value);
  }
}

/** qemu-img finds the image sound, and all that was written in it. */
function judge(folder: string, image: string, written: Written): void {
  run(folder, 'qemu-img', 'check', '-q', image);
  run(folder, 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, 'content.raw');
  const file = openSync(join(folder, 'content.raw'), 'r');
  const bytes = Buffer.alloc(PIECE_BYTES);
  for (const [at, value] of written) {
    readSync(file, bytes, 0, PIECE_BYTES, at);
    assert.ok(bytes.equals(piece(value)), `the write at ${at} is missing`);
  }
  closeSync(file);
  rmSync(join(folder, 'content.raw'));
}

for (const [name, fileSystem] of Object.entries(FILE_SYSTEMS)) {
  for (const clusterBytes of [512, 65536]) {
    test(`${name} fills up, ${clusterBytes}-byte clusters: writes fail, flushes never, all is there after quit`, async (t) => {
      if (skipWithout(t, 'qemu-img')) return;
      const folder = mounted(t, name, fileSystem);
      if (folder === undefined) return;
      const size = `cluster_size=${clusterBytes}`;
      run(
        folder,
        'qemu-img',
        'create',
        '-q',
        '-f',
        'qcow2',
        '-o',
        size,
        'full/disk.qcow2',
        String(DISK_BYTES),
      );
      const daemon = await start(t, folder, 'full/disk.qcow2');
      const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
      const written: Written = new Map();
      await fill(client, written);
      assert.ok(written.size > 20);
      await client.flush();
      for (const at of written.keys()) {
        await client.write(at, piece(7));
        written.set(at, 7);
      }
      await client.flush();
      client.close();
      assert.equal(await daemon.quit(), 0, daemon.output);
      assert.equal(statSync(join(folder, 'full/disk.qcow2')).size % clusterBytes, 0);
      judge(folder, 'full/disk.qcow2', written);
    });
  }
}

test('a file that may not grow further (RLIMIT_FSIZE): writes fail, flushes never, all is there after quit', async (t) => {
  if (skipWithout(t, 'qemu-img', 'prlimit')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', String(DISK_BYTES));
  const daemon = await start(t, folder, 'disk.qcow2', 'prlimit', `--fsize=${5 * MiB + 1000}`);
  const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  const written: Written = new Map();
  await fill(client, written);
  assert.ok(written.size > 20);
  await client.flush();
  client.close();
  assert.equal(await daemon.quit(), 0, daemon.output);
  judge(folder, 'disk.qcow2', written);
});

/** A subvolume with a quota on a file system that never overwrites. */
const btrfs: FileSystem = (folder) =>
  loop(128 * MiB, 'mkfs.btrfs', '-q')(folder) &&
  succeeds(folder, 'btrfs', 'quota', 'enable', 'full') &&
  succeeds(folder, 'btrfs', 'subvolume', 'create', 'full/sub') &&
  succeeds(folder, 'btrfs', 'qgroup', 'limit', '12M', 'full/sub');

test('btrfs with a quota: whoever is told that there is no space, what was answered is there once there is', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = mounted(t, 'btrfs', btrfs);
  if (folder === undefined) return;
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'full/sub/disk.qcow2', String(DISK_BYTES));
  const daemon = await start(t, folder, 'full/sub/disk.qcow2');
  const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  const written: Written = new Map();
  await fill(client, written);
  assert.ok(written.size > 20);
  // It copies what is overwritten, so a flush may be what finds out.
  for (let turn = 0; turn < 3; turn++) await client.flush().catch(() => undefined);
  run(folder, 'btrfs', 'qgroup', 'limit', 'none', 'full/sub');
  await client.flush();
  client.close();
  assert.equal(await daemon.quit(), 0, daemon.output);
  judge(folder, 'full/sub/disk.qcow2', written);
});

test('an NBD server runs out of space at the flush: it fails until there is space, and nothing is forgotten', async (t) => {
  if (skipWithout(t, 'qemu-img', 'nbdkit')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '64M');
  run(folder, 'truncate', '-s', '32M', 'disk.qcow2');
  const server = ['nbdkit', '-f', '-U', 'server.sock', '--filter=error', 'file', 'disk.qcow2'];
  // While the trigger is there, writes fail as on a full disk: those of the write-back too.
  const command = `exec ${server.join(' ')} error-pwrite=ENOSPC error-pwrite-rate=100% error-pwrite-file=full`;
  const shell = await Daemon.start(t, folder, [
    'sh',
    '-c',
    `${command} & until [ -S server.sock ]; do sleep 0.02; done; exec ${process.execPath} ${PROGRAM} run ` +
      '--blockdev driver=qcow2,node-name=disk,file.driver=nbd,file.server.type=unix,file.server.path=server.sock ' +
      '--nbd-server addr.type=unix,addr.path=nbd.sock --export type=nbd,id=e,node-name=disk,writable=on ' +
      '-qmp unix:qmp.sock,server=on,wait=off',
  ]);
  const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  const written: Written = new Map();
  for (let turn = 0; turn < 40; turn++) {
    await client.write(turn * MiB, piece(turn + 1));
    written.set(turn * MiB, turn + 1);
  }
  writeFileSync(join(folder, 'full'), '');
  for (let turn = 0; turn < 3; turn++) await assert.rejects(client.flush(), /NBD error 28/);
  assert.deepEqual(await client.read(MiB, PIECE_BYTES), piece(2));
  rmSync(join(folder, 'full'));
  await client.flush();
  client.close();
  assert.equal(await shell.quit(), 0, shell.output);
  assert.ok(readFileSync(join(folder, 'disk.qcow2')).length === 32 * MiB);
  judge(folder, 'disk.qcow2', written);
});
