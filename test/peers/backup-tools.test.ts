import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, run, scratch, skipWithout } from './daemon.js';

const MiB = 2 ** 20;
const DISK_BYTES = 16 * MiB;

/**
 * virtnbdbackup as Debian packages it: what reads, at $VIRTNBDBACKUP (the folder of `libvirtnbdbackup`), without libvirt.
 */
const reader = process.env['VIRTNBDBACKUP'];

/** Asks for the extents of an export in a context, and puts those that count into a file. */
const READ = `
import sys
sys.path.insert(0, sys.argv[1])
from libvirtnbdbackup import nbdcli
from libvirtnbdbackup.extenthandler import ExtentHandler
export, context, socket, target = sys.argv[2:]
client = nbdcli.client(nbdcli.Unix(export, context, socket)).connect()
count = 0
with open(target, 'r+b') as file:
    for extent in ExtentHandler(client, client.cType).queryBlockStatus():
        for at in range(extent.offset, extent.offset + extent.length, client.maxRequestSize) if extent.data else ():
            length = min(client.maxRequestSize, extent.offset + extent.length - at)
            file.seek(at)
            file.write(client.nbd.pread(length, at))
            count += length
client.disconnect()
print(count)
`;

test(
  'virtnbdbackup reads full and incremental backups that it pulls',
  { skip: reader === undefined && 'VIRTNBDBACKUP names no folder of virtnbdbackup', timeout: 120_000 },
  async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const folder = scratch(t);
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', String(DISK_BYTES));
    const drive = 'driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2';
    const daemon = await Daemon.livedisk(
      t,
      folder,
      '-blockdev',
      drive,
      '-device',
      'virtio-blk,drive=disk,id=v',
    );
    const write = (command: string): Promise<unknown> =>
      daemon.execute('human-monitor-command', { 'command-line': `qemu-io -d v "${command}"` });
    await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd' } } });
    writeFileSync(join(folder, 'copy.raw'), Buffer.alloc(DISK_BYTES));
    /** As libvirt begins and ends one: a checkpoint, a moment that is kept beside, and its export. */
    const pull = async (round: number, since?: string): Promise<number> => {
      run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `scratch${round}`, String(DISK_BYTES));
      const file = { driver: 'file', filename: `scratch${round}` };
      await daemon.execute('blockdev-add', {
        driver: 'qcow2',
        'node-name': 'scratch',
        file,
        backing: 'disk',
      });
      const job = { 'job-id': 'pull', device: 'disk', target: 'scratch', sync: 'none' };
      const checkpoint = { node: 'disk', name: `checkpoint${round}`, persistent: true };
      const actions = [
        { type: 'blockdev-backup', data: job },
        { type: 'block-dirty-bitmap-add', data: checkpoint },
        ...(since === undefined
          ? []
          : [{ type: 'block-dirty-bitmap-disable', data: { node: 'disk', name: since } }]),
      ];
      await daemon.execute('transaction', { actions });
      await write(`write -P ${100 + round} 2M 3M`);
      const bitmaps = since === undefined ? [] : [{ node: 'disk', name: since }];
      const exported = { type: 'nbd', id: 'e', 'node-name': 'scratch', name: 'vda', bitmaps };
      await daemon.execute('block-export-add', exported);
      const context = since === undefined ? '' : `qemu:dirty-bitmap:${since}`;
      const counted = run(
        folder,
        '/usr/bin/python3',
        '-c',
        READ,
        reader ?? '',
        'vda',
        context,
        'nbd',
        'copy.raw',
      );
      await daemon.execute('block-export-del', { id: 'e' });
      await daemon.event('BLOCK_EXPORT_DELETED');
      await daemon.execute('block-job-cancel', { device: 'pull' });
      await daemon.event('BLOCK_JOB_CANCELLED');
      await daemon.execute('blockdev-del', { 'node-name': 'scratch' });
      return Number(counted);
    };
    const expect = (...patterns: ReadonlyArray<readonly [number, string]>): string =>
      run(
        folder,
        'qemu-io',
        '-r',
        '-f',
        'raw',
        ...patterns.flatMap(([byte, at]) => ['-c', `read -P ${byte} ${at}`]),
        'copy.raw',
      );
    await write('write -P 1 0 4M');
    assert.equal(await pull(1), 4 * MiB);
    assert.doesNotMatch(expect([1, '0 4M'], [0, '4M 12M']), /failed/);
    await write('write -P 2 8M 64k');
    assert.equal(await pull(2, 'checkpoint1'), 3 * MiB + 64 * 1024);
    assert.doesNotMatch(expect([1, '0 2M'], [101, '2M 3M'], [2, '8M 64k'], [0, '9M 7M']), /failed/);
    assert.equal(await daemon.quit(), 0);
  },
);

/**
 * qmpbackup as it is published (github.com/abbbi/qmpbackup): a checkout of it at $QMPBACKUP, and Python with what it needs
 * (colorlog, qemu.qmp) as $QMPBACKUP_PYTHON.
 */
const checkout = process.env['QMPBACKUP'];
const python = process.env['QMPBACKUP_PYTHON'] ?? 'python3';
const skip = checkout === undefined && 'QMPBACKUP names no checkout of qmpbackup';

test(
  'qmpbackup makes full and incremental backups of running disks',
  { skip, timeout: 300_000 },
  async (t) => {
    if (skipWithout(t, 'qemu-img')) return;
    const folder = scratch(t);
    const backup = join(folder, 'backup');
    mkdirSync(backup);
    const names = ['d1', 'd2'];
    for (const name of names) run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', `${name}.qcow2`, '16M');
    const drives = names.flatMap((name) => [
      '-drive',
      `node-name=${name},file=${folder}/${name}.qcow2,format=qcow2`,
    ]);
    const daemon = await Daemon.livedisk(
      t,
      folder,
      '-S',
      '-name',
      'guest',
      ...drives,
      '-qmp',
      'unix:tool,server=on,wait=off',
    );
    const write = async (device: string, command: string): Promise<void> => {
      const line = `qemu-io ${device} "${command}"`;
      assert.equal(await daemon.execute('human-monitor-command', { 'command-line': line }), '');
    };
    const tool = (name: string, ...args: string[]): string =>
      run(folder, python, join(checkout ?? '', name), ...args);
    const take = async (level: string): Promise<void> => {
      // It names what it makes by the second.
      await new Promise((resolve) => setTimeout(resolve, 1001));
      tool('qmpbackup', '--socket', join(folder, 'tool'), 'backup', '--level', level, '--target', backup);
    };
    await write('ide0-hd0', 'write -P 1 0 3M');
    await take('full');
    await write('ide0-hd0', 'write -P 2 1M 1M');
    await write('ide0-hd1', 'write -P 3 0 64k');
    await take('inc');
    await write('ide0-hd0', 'write -P 4 8M 100k');
    await take('inc');
    assert.equal(await daemon.quit(), 0);
    for (const name of names) {
      const restored = `restored-${name}.qcow2`;
      tool(
        'qmprestore',
        'merge',
        '--dir',
        join(backup, `${name}.qcow2`),
        '--targetfile',
        join(folder, restored),
      );
      run(folder, 'qemu-img', 'compare', restored, `${name}.qcow2`);
      run(folder, 'qemu-img', 'check', '-q', `${name}.qcow2`);
    }
  },
);
