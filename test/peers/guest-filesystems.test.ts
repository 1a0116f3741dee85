import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { drawn } from '../kit/amount.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { bootWords, kernelFor } from './guest-machine.js';

/** Real guests with file systems of their own on our disks: their own checkers look at them after each job. */

const MiB = 1024 * 1024;
const DISK = '512M';
const BIG_BYTES = 48 * MiB;

interface FileSystem {
  name: string;
  make: (image: string) => [program: string, ...args: string[]];
  check: (image: string) => [program: string, ...args: string[]];
  modules: readonly string[];
}

const FILE_SYSTEMS: readonly FileSystem[] = [
  {
    name: 'ext4',
    make: (image) => ['mke2fs', '-q', '-F', '-t', 'ext4', image],
    check: (image) => ['e2fsck', '-f', '-n', image],
    modules: ['fs/ext4', 'fs/jbd2', 'fs/mbcache.ko'],
  },
  {
    name: 'xfs',
    make: (image) => ['mkfs.xfs', '-q', image],
    check: (image) => ['xfs_repair', '-n', '-f', image],
    modules: ['fs/xfs'],
  },
  {
    name: 'btrfs',
    make: (image) => ['mkfs.btrfs', '-q', image],
    check: (image) => ['btrfs', 'check', '--readonly', image],
    modules: ['fs/btrfs'],
  },
];

/**
 * Writes files with their checksums, round and round. Every few of them it takes the file system off, says so and rests, so
 * that it can be looked at whole; with the second rest a large file has gone, and what it had is given back.
 */
const init = (fs: string): string => `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t sysfs sys /sys
for module in virtio_pci virtio_blk crc32c_generic ${fs}; do modprobe $module 2>/dev/null; done
while [ ! -b /dev/vda ]; do sleep 1; done
mkdir -p /mnt
number=0
rests=0
while true; do
  mount -t ${fs} /dev/vda /mnt || echo GUEST ERROR mount
  [ $number = 0 ] && dd if=/dev/urandom of=/mnt/big bs=1M count=${BIG_BYTES / MiB} 2>/dev/null
  for sum in /mnt/*.sum; do [ -f $sum ] && { (cd /mnt && md5sum -c -s $sum) || echo GUEST ERROR $sum; }; done
  end=$((number + 10))
  while [ $number -lt $end ]; do
    name=f$((number % 16))
    rm -f /mnt/$name.sum
    dd if=/dev/urandom of=/mnt/$name bs=64k count=4 2>/dev/null || echo GUEST ERROR $number
    (cd /mnt && md5sum $name > $name.sum)
    sync
    number=$((number + 1))
    echo GUEST WROTE $number
  done
  [ $rests = 1 ] && { rm /mnt/big; sync; fstrim /mnt || echo GUEST ERROR trim; }
  umount /mnt || echo GUEST ERROR umount
  rests=$((rests + 1))
  echo GUEST RESTS $rests
  sleep 15
done
`;

for (const fs of drawn(FILE_SYSTEMS))
  test(`a guest's ${fs.name} is whole after each job, and what it trims is given back`, async (t) => {
    const [maker] = fs.make('');
    const [checker] = fs.check('');
    const missing = [maker, checker].filter((program) => spawnSync('which', [program]).status !== 0);
    if (missing.length > 0) return t.skip(`not installed: ${missing.join(', ')}`);
    if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
    const folder = scratch(t);
    const moduleFolders = [
      ...fs.modules,
      ...['lib', 'crypto', 'arch/x86/crypto', 'drivers/block', 'drivers/virtio'],
    ];
    const kernel = kernelFor(t, folder, { init: init(fs.name), moduleFolders });
    if (!kernel) return;
    run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'made.raw', DISK);
    run(folder, ...fs.make('made.raw'));
    run(folder, 'qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', 'made.raw', 'a.qcow2');
    const console = join(folder, 'console');
    const text = (): string => (existsSync(console) ? readFileSync(console, 'latin1') : '');
    const daemon = await Daemon.start(t, folder, [
      ...[process.execPath, PROGRAM, 'machine', '-display', 'none', '-nodefaults', '-accel', 'tcg'],
      ...['-M', 'q35', '-m', '256', '-serial', `file:${console}`, '-no-reboot'],
      ...bootWords(kernel),
      ...['-blockdev', 'node-name=A,driver=qcow2,discard=unmap,file.driver=file,file.filename=./a.qcow2'],
      ...['-device', 'virtio-blk-pci,drive=A,id=virtio0', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
    ]);
    /** Waits for the guest's next rest, in which nothing changes its disk, and has the file system checked as it is then. */
    let rests = 0;
    const rested = async (image: string): Promise<void> => {
      rests = Number([...text().matchAll(/GUEST RESTS (\d+)/g)].at(-1)?.[1] ?? 0) + 1;
      const end = Date.now() + 400_000;
      while (!text().includes(`GUEST RESTS ${rests}`)) {
        assert.ok(Date.now() < end, `rest ${rests} did not come:\n${text().slice(-2000)}\n${daemon.output}`);
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      await daemon.execute('stop');
      run(folder, 'qemu-img', 'convert', '-U', '-O', 'raw', image, 'content.raw');
      const [program, ...args] = fs.check('content.raw');
      run(folder, program, ...args);
      await daemon.execute('cont');
    };
    await rested('a.qcow2');
    const fullBytes = statSync(join(folder, 'a.qcow2')).blocks * 512;
    await rested('a.qcow2');
    assert.ok(rests === 2, 'the guest rests as often as it is looked at');
    const trimmedBytes = statSync(join(folder, 'a.qcow2')).blocks * 512;
    assert.ok(trimmedBytes <= fullBytes - BIG_BYTES / 2, `${fullBytes}, then ${trimmedBytes}`);

    const snapshot = (from: string, to: string): Promise<unknown> =>
      daemon.execute('blockdev-snapshot-sync', {
        ...{ 'node-name': from, 'snapshot-file': `${to}.qcow2`, 'snapshot-node-name': to },
      });
    await snapshot('A', 'B');
    await rested('B.qcow2');
    await daemon.execute('block-stream', { device: 'B', 'job-id': 's' });
    await daemon.event('BLOCK_JOB_COMPLETED', { device: 's' });
    await rested('B.qcow2');
    await snapshot('B', 'C');
    await daemon.execute('block-commit', { device: 'C', 'job-id': 'c' });
    await daemon.event('BLOCK_JOB_READY', { device: 'c' });
    await daemon.execute('block-job-complete', { device: 'c' });
    await daemon.event('BLOCK_JOB_COMPLETED', { device: 'c' });
    await rested('B.qcow2');
    await daemon.execute('drive-mirror', {
      ...{ device: 'B', 'job-id': 'm', sync: 'full', target: 'd.qcow2', 'node-name': 'D' },
    });
    await daemon.event('BLOCK_JOB_READY', { device: 'm' });
    await daemon.execute('block-job-complete', { device: 'm' });
    await daemon.event('BLOCK_JOB_COMPLETED', { device: 'm' });
    await rested('d.qcow2');
    assert.doesNotMatch(text(), /GUEST ERROR/);
    assert.equal(await daemon.quit(), 0, daemon.output);
    run(folder, 'qemu-img', 'check', 'd.qcow2');
  });
