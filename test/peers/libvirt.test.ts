import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** The address of a libvirt that may start domains here, as root: LIBVIRT=qemu:///system. */
const uri = process.env['LIBVIRT'];
const skip = uri === undefined && 'LIBVIRT names no libvirt (qemu:///system)';
const NAME = `livedisk-test-${process.pid}`;

function domain(emulator: string, disk: string): string {
  return `<domain type='qemu'><name>${NAME}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
    <os><type arch='x86_64' machine='pc'>hvm</type></os>
    <devices><emulator>${emulator}</emulator>
      <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${disk}'/>
        <target dev='vda' bus='virtio'/></disk>
    </devices></domain>`;
}

/** A pull backup over NBD at that socket, of what changed since a checkpoint. */
function backup(folder: string, since?: string): string {
  const incremental = since === undefined ? '' : `<incremental>${since}</incremental>`;
  return `<domainbackup mode='pull'>${incremental}<server transport='unix' socket='${folder}/nbd'/>
    <disks><disk name='vda' backup='yes' type='file' exportname='vda'><scratch file='${folder}/scratch'/></disk></disks>
    </domainbackup>`;
}

test(
  'libvirt runs a domain on livedisk: snapshots, jobs, backups, hot plug',
  { skip, timeout: 600_000 },
  (t) => {
    if (skipWithout(t, 'virsh', 'qemu-img', 'nbdinfo')) return;
    const folder = scratch(t);
    const virsh = (...words: string[]): string => run(folder, 'virsh', '-c', uri ?? '', ...words);
    const file = (name: string, text: string): string => {
      writeFileSync(join(folder, name), text);
      return join(folder, name);
    };
    mkdirSync(join(folder, 'bin'));
    run(folder, process.execPath, PROGRAM, 'launchers', 'bin');
    const emulator = join(folder, 'bin/qemu-system-x86_64');
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '64M');
    run(folder, 'qemu-io', '-c', 'write -P 5 0 5M', 'disk.qcow2');
    const isAt = (name: string): void => assert.ok(virsh('domblklist', NAME).includes(join(folder, name)));

    assert.match(virsh('domcapabilities', '--virttype', 'qemu', '--emulatorbin', emulator), /<vcpu/);
    virsh('define', file('domain.xml', domain(emulator, join(folder, 'disk.qcow2'))));
    t.after(() => {
      // The folder may be gone by now.
      run('/', 'virsh', '-c', uri ?? '', 'destroy', NAME);
      run('/', 'virsh', '-c', uri ?? '', 'undefine', NAME, '--checkpoints-metadata');
    });
    virsh('start', NAME);

    virsh(
      ...['snapshot-create-as', NAME, 's1', '--disk-only', '--no-metadata'],
      '--diskspec',
      `vda,file=${folder}/s1`,
    );
    isAt('s1');
    virsh('blockcommit', NAME, 'vda', '--active', '--pivot', '--wait');
    isAt('disk.qcow2');
    virsh(
      'blockcopy',
      NAME,
      'vda',
      join(folder, 'copy'),
      '--format',
      'qcow2',
      '--wait',
      '--pivot',
      '--transient-job',
    );
    isAt('copy');
    virsh(
      ...['snapshot-create-as', NAME, 's2', '--disk-only', '--no-metadata'],
      '--diskspec',
      `vda,file=${folder}/s2`,
    );
    virsh('blockpull', NAME, 'vda', '--wait');
    isAt('s2');

    const checkpoint = `<domaincheckpoint><name>c1</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>`;
    virsh('backup-begin', NAME, file('full.xml', backup(folder)), file('checkpoint.xml', checkpoint));
    run(folder, 'nbdinfo', `nbd+unix:///vda?socket=${folder}/nbd`);
    virsh('domjobabort', NAME);
    virsh('backup-begin', NAME, file('more.xml', backup(folder, 'c1')));
    const map = run(
      folder,
      'nbdinfo',
      '--map=qemu:dirty-bitmap:backup-vda',
      `nbd+unix:///vda?socket=${folder}/nbd`,
    );
    assert.match(map, /^ +0 +67108864 +0 +clean$/m);
    virsh('domjobabort', NAME);

    virsh('suspend', NAME);
    assert.match(virsh('domstate', NAME), /paused/);
    virsh('resume', NAME);
    virsh('blockresize', NAME, 'vda', '128M');
    run(folder, 'qemu-img', 'create', '-q', 'extra', '1M');
    virsh('attach-disk', NAME, join(folder, 'extra'), 'vdb', '--driver', 'qemu', '--subdriver', 'raw');
    isAt('extra');
    virsh('detach-disk', NAME, 'vdb');
  },
);
