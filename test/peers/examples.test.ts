import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';
import { BARE_MACHINE, Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** The programs of examples/, each run as its first lines say. */

const EXAMPLES = resolve(import.meta.dirname, '../../examples');

function example(cwd: string, name: string, ...args: string[]): { status: number | null; output: string } {
  const words = [join(EXAMPLES, name), ...args];
  const { status, stdout, stderr } = spawnSync(process.execPath, words, {
    cwd,
    encoding: 'utf8',
    timeout: 120_000,
    // Nested virtualisation may be there and not work.
    env: { ...process.env, BOOT_TEST_KVM: 'off' },
  });
  return { status, output: stdout + stderr };
}

function diskOf(name: string): string[] {
  return [
    ...['-blockdev', `node-name=disk,driver=qcow2,file.driver=file,file.filename=${name}`],
    ...['-device', 'virtio-blk,drive=disk,id=virtio0'],
  ];
}

async function write(daemon: Daemon, command: string): Promise<void> {
  const line = `qemu-io -d virtio0/virtio-backend "${command}"`;
  await daemon.execute('human-monitor-command', { 'command-line': line });
}

test('incremental-backup.mjs: a full copy, and then what was written since, also over a restart', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '16M');
  let daemon = await Daemon.livedisk(t, folder, ...BARE_MACHINE, ...diskOf('disk.qcow2'));
  const backUp = (): string => {
    const { status, output } = example(folder, 'incremental-backup.mjs', 'qmp.sock', 'disk', 'backups');
    assert.equal(status, 0, output);
    return output;
  };
  await write(daemon, 'write -P 1 0 4M');
  assert.equal(backUp(), `backup-0.qcow2: ${16 * 1024 * 1024} bytes copied\n`);
  await write(daemon, 'write -P 2 1M 64k');
  assert.equal(backUp(), 'backup-1.qcow2: 65536 bytes copied\n');
  await daemon.quit();
  daemon = await Daemon.livedisk(t, folder, ...BARE_MACHINE, ...diskOf('disk.qcow2'));
  await write(daemon, 'write -P 3 8M 64k');
  assert.equal(backUp(), 'backup-2.qcow2: 65536 bytes copied\n');
  await daemon.quit();
  assert.deepEqual(readdirSync(join(folder, 'backups')).sort(), [
    'backup-0.qcow2',
    'backup-1.qcow2',
    'backup-2.qcow2',
  ]);
  run(folder, 'qemu-img', 'compare', 'disk.qcow2', 'backups/backup-2.qcow2');
  run(folder, 'qemu-io', '-r', '-c', 'read -P 2 1M 64k', '-c', 'read -P 0 8M 64k', 'backups/backup-1.qcow2');
  run(folder, 'qemu-io', '-r', '-c', 'read -P 1 0 4M', 'backups/backup-0.qcow2');
});

test('move-machine.mjs: the machine and its disk are there, and it says for how long the guest rested', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  for (const name of ['here', 'there'])
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, '16M');
  const here = await Daemon.livedisk(t, folder, ...BARE_MACHINE, ...diskOf('here.qcow2'));
  await write(here, 'write -P 1 0 4M');
  const there = await Daemon.start(
    t,
    folder,
    [
      ...[
        process.execPath,
        PROGRAM,
        'run',
        ...BARE_MACHINE,
        ...diskOf('there.qcow2'),
        '-incoming',
        'unix:move',
      ],
      ...['-nbd-server', 'addr.type=unix,addr.path=nbd'],
      ...['-export', 'type=nbd,id=e,node-name=disk,name=virtio0,writable=on'],
      ...['-qmp', 'unix:there.qmp,server=on,wait=off'],
    ],
    'there.qmp',
  );
  const dry = example(folder, 'move-machine.mjs', 'qmp.sock', 'unix:move', './nbd', '--dry-run');
  assert.equal(dry.status, 0, dry.output);
  assert.match(
    dry.output,
    /^virtio0 goes to export virtio0: 4194304 of 16777216 bytes hold data\nthe guest will/,
  );
  const done = example(folder, 'move-machine.mjs', 'qmp.sock', 'unix:move', './nbd');
  assert.equal(done.status, 0, done.output);
  assert.match(done.output, /\ncompleted\nthe guest rested for \d+ ms\n$/);
  const status = (await there.execute('query-status')) as { status: string };
  assert.equal(status.status, 'running');
  await here.quit();
  await there.quit();
  run(folder, 'qemu-img', 'compare', 'here.qcow2', 'there.qcow2');
});

/** Code for a disk's first sector that writes a text to the first serial line and rests. */
function bootSector(text: string): Buffer {
  const sector = Buffer.alloc(512);
  const code = [
    ...[0x31, 0xc0, 0x8e, 0xd8], // xor ax, ax; mov ds, ax
    ...[0xbe, 0x15, 0x7c], // mov si, text
    ...[0xac, 0x84, 0xc0, 0x74, 0x06], // lodsb; test al, al; jz rest
    ...[0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5], // mov dx, 0x3f8; out dx, al; jmp lodsb
    ...[0xf4, 0xeb, 0xfd], // rest: hlt; jmp rest
  ];
  sector.set([...code, ...Buffer.from(`${text}\0`, 'latin1')]);
  sector.set([0x55, 0xaa], 510);
  return sector;
}

test('boot-test.mjs: a disk that boots says so; one that does not, does not', (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = scratch(t);
  writeFileSync(
    join(folder, 'disk.raw'),
    Buffer.concat([bootSector('hello from the disk\r\n'), Buffer.alloc(1024 * 1024)]),
  );
  run(folder, 'qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', 'disk.raw', 'disk.qcow2');
  const good = example(folder, 'boot-test.mjs', 'disk.qcow2', 'hello from the disk', '90');
  assert.match(good.output, /^booted in \d+ ms: \d+ reads, 0 writes\n$/);
  assert.equal(good.status, 0);
  const bad = example(folder, 'boot-test.mjs', 'disk.qcow2', 'something else', '3');
  assert.match(bad.output, /^did not boot/);
  assert.equal(bad.status, 1);
});
