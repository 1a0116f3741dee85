import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Daemon, run, scratch, skipWithout } from './daemon.js';

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
