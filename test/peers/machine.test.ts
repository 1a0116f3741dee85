import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { scratch } from '../kit/program.js';
import { type Command, converse, failure, hasQemu } from './machine-side.js';

const skip = hasQemu ? false : 'not installed: qemu-system-x86_64';

/** A folder for each side with the same images. */
function folders(context: TestContext): { ours: string; theirs: string } {
  const folder = scratch(context);
  const sides = { ours: join(folder, 'ours'), theirs: join(folder, 'theirs') };
  for (const side of Object.values(sides)) {
    mkdirSync(side);
    const script = `qemu-img create -q -f qcow2 base.qcow2 1M; qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
      qemu-img create -q -f raw disk.img 1M`;
    spawnSync('sh', ['-ec', script], { cwd: side, stdio: 'inherit' });
  }
  return sides;
}

async function alike(
  context: TestContext,
  args: readonly string[],
  commands: readonly Command[],
): Promise<void> {
  const { ours, theirs } = folders(context);
  const [actual, expected] = [
    await converse('ours', ours, args, commands),
    await converse('theirs', theirs, args, commands),
  ];
  for (const [i, message] of expected.entries()) assert.deepEqual(actual[i], message);
  assert.equal(actual.length, expected.length);
}

const NULL = (...names: string[]): string[] =>
  names.flatMap((name) => ['-blockdev', `null-co,node-name=${name}`]);

test('drives with limits, and those that share a group', { skip, timeout: 300_000 }, (t) =>
  alike(
    t,
    [
      ...[
        '-drive',
        'if=none,id=a,file=FOLDER/disk.img,format=raw,iops=100,bps_max=5000,bps=1000,iops_size=512',
      ],
      ...['-drive', 'if=none,id=b,file=FOLDER/top.qcow2,throttling.group=g,throttling.iops-read=7'],
      ...['-drive', 'if=none,id=c,format=raw,throttling.group=g,throttling.iops-total=0'],
    ],
    [
      ['query-block'],
      [
        'block_set_io_throttle',
        { device: 'b', bps: 0, bps_rd: 0, bps_wr: 0, iops: 9, iops_rd: 0, iops_wr: 0 },
      ],
      ['query-block'],
      [
        'block_set_io_throttle',
        { device: 'nope', bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 },
      ],
      [
        'block_set_io_throttle',
        { device: 'a', bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 },
      ],
      ['query-block'],
    ],
  ),
);

test('drives and what queries say of them', { skip, timeout: 300_000 }, (t) =>
  alike(
    t,
    [
      ...['-drive', 'if=none,id=d0,file=FOLDER/top.qcow2,node-name=top,backing.node-name=low'],
      ...[
        '-drive',
        'if=virtio,file=FOLDER/disk.img,format=raw,cache=none,aio=native,discard=unmap,werror=stop',
      ],
      ...['-drive', 'if=none,id=empty', '-drive', 'index=3,format=null-co,cache=writethrough'],
      ...['-drive', 'media=cdrom,if=ide,index=1', '-drive', 'if=floppy,format=null-co,readonly=on'],
    ],
    [
      ['query-block'],
      'info block',
      'info block d0',
      'info block empty',
      ['blockdev-add', { driver: 'null-co', 'node-name': 'd0' }],
      ['block_resize', { device: 'd0', size: 2097152 }],
      ['block_resize', { device: 'empty', size: 2097152 }],
      ['block_resize', { device: 'nope', size: 2097152 }],
      ['blockdev-snapshot-sync', { device: 'empty', 'snapshot-file': 'FOLDER/s' }],
      ['block-commit', { device: 'empty' }],
      ['block-stream', { device: 'empty' }],
      'qemu-io d0 "write -P 3 0 512"',
      'qemu-io d0 "read -P 3 0 512"',
      'qemu-io empty "read 0 512"',
      'drive_del empty',
      'drive_del empty',
      'drive_add 0 if=none,id=d9,format=null-co',
      'drive_add 0 if=none,id=d9,format=null-co',
      'drive_add 0 if=ide,id=d8,format=null-co',
      'drive_add -n 0 driver=null-co,node-name=n7',
      'drive_del n7',
      'drive_del d9',
    ],
  ),
);

test('devices, and those that come and go', { skip, timeout: 300_000 }, (t) =>
  alike(
    t,
    [
      ...NULL('n1', 'n2', 'n3', 'n4', 'n5', 'n6', 'n7'),
      ...['-blockdev', 'null-co,node-name=r,read-only=on', '-device', 'virtio-scsi-pci,id=scsi0'],
      ...['-device', 'virtio-blk,drive=n1,id=vd,serial=x,logical_block_size=4096,physical_block_size=4096'],
      ...[
        '-device',
        'scsi-hd,drive=n2,id=hd,bus=scsi0.0',
        '-device',
        'scsi-cd,id=cd',
        '-device',
        'scsi-hd,drive=r',
      ],
      ...[
        '-device',
        'ide-hd,drive=n3,bus=ide.1',
        '-device',
        'nvme,drive=n4,serial=y',
        '-device',
        'floppy,id=fd',
      ],
      ...['-device', '{"driver":"virtio-blk","drive":"n7","id":"json","share-rw":true}'],
    ],
    [
      ['query-block'],
      ['device_add', { driver: 'virtio-blk', drive: 'n5', id: 'hot' }],
      ['device_add', { driver: 'virtio-blk', drive: 'n6', id: 'hot' }],
      ['device_add', { driver: 'virtio-blk', drive: 'n2' }],
      ['device_add', { driver: 'virtio-blk', drive: 'zz' }],
      ['device_add', { driver: 'virtio-blk' }],
      ['device_add', { driver: 'bogus' }],
      ['device_add', { drive: 'n6' }],
      ['device_add', { driver: 'virtio-blk', drive: 'n6', foo: 'bar' }],
      ['device_add', { driver: 'ide-hd', drive: 'n6' }],
      ['device_add', { driver: 'scsi-hd', drive: 'n6', bus: 'foo.0' }],
      ['device_add', { driver: 'scsi-hd', drive: 'n6', 'share-rw': true, id: 's6' }],
      ['device_del', { id: 'nope' }],
      ['device_del', { id: 'fd' }],
      'info block',
    ],
  ),
);

test('trays and media', { skip, timeout: 300_000 }, (t) => {
  const commands: Command[] = [
    ['query-block'],
    ['eject', { id: 'cd' }],
    ['eject', { id: 'cd' }],
    ['blockdev-change-medium', { id: 'cd', filename: 'FOLDER/disk.img', format: 'raw' }],
    [
      'blockdev-change-medium',
      { id: 'cd', filename: 'FOLDER/disk.img', format: 'raw', 'read-only-mode': 'read-only' },
    ],
    ['query-block'],
    ['blockdev-remove-medium', { id: 'cd' }],
    ['blockdev-open-tray', { id: 'cd' }],
    ['blockdev-remove-medium', { id: 'cd' }],
    ['blockdev-insert-medium', { id: 'cd', 'node-name': 'nope' }],
    ['blockdev-insert-medium', { id: 'cd', 'node-name': 'n1' }],
    ['blockdev-insert-medium', { id: 'cd', 'node-name': 'n2' }],
    ['blockdev-close-tray', { id: 'cd' }],
    ['blockdev-insert-medium', { id: 'cd', 'node-name': 'n2' }],
    ['eject', { id: 'hd' }],
    ['blockdev-open-tray', { id: 'hd' }],
    ['eject', { device: 'nope' }],
    ['eject', {}],
    ['eject', { device: 'd', id: 'cd' }],
    ['blockdev-change-medium', { id: 'scsi0', filename: 'FOLDER/disk.img' }],
    ['blockdev-change-medium', { device: 'd', filename: 'FOLDER/nope' }],
    ['blockdev-change-medium', { device: 'd', filename: 'FOLDER/top.qcow2', format: 'qcow2' }],
    'change d FOLDER/base.qcow2 qcow2 read-only',
    'change d FOLDER/base.qcow2 qcow2 bogus',
    'info block d',
    'eject d',
    'eject hd',
    'info block',
  ];
  const scsi = [
    '-device',
    'virtio-scsi-pci,id=scsi0',
    '-device',
    'scsi-cd,id=cd',
    '-device',
    'scsi-hd,id=hd,drive=n3',
  ];
  return alike(t, [...NULL('n1', 'n2', 'n3'), ...scsi, '-drive', 'if=none,id=d,format=null-co'], commands);
});

test('an export of a drive goes with its medium', { skip, timeout: 300_000 }, (t) =>
  alike(
    t,
    ['-drive', 'if=none,id=d,format=null-co'],
    [
      ['nbd-server-start', { addr: { type: 'unix', data: { path: 'FOLDER/nbd' } } }],
      ['nbd-server-add', { device: 'd' }],
      ['query-block-exports'],
      ['eject', { device: 'd' }],
      ['query-block-exports'],
      ['nbd-server-add', { device: 'd' }],
      ['nbd-server-add', { device: 'nope' }],
    ],
  ),
);

test('the first medium of an empty drive', { skip, timeout: 300_000 }, (t) => {
  const scsi = ['-device', 'virtio-scsi-pci,id=scsi0', '-device', 'scsi-cd,id=cd'];
  const drives = ['if=none,id=d', 'if=none,id=c,media=cdrom', 'if=none,id=r,readonly=on'];
  const change = (name: { id: string } | { device: string }): Command => [
    'blockdev-change-medium',
    { ...name, filename: 'FOLDER/disk.img', format: 'raw' },
  ];
  return alike(
    t,
    [...scsi, ...drives.flatMap((drive) => ['-drive', drive])],
    [
      ...[{ id: 'cd' }, { device: 'c' }, { device: 'r' }].map(change),
      ['query-block'],
      ['eject', { id: 'cd' }],
      ['eject', { device: 'c' }],
      ['eject', { device: 'r' }],
      change({ device: 'd' }),
      ['query-block'],
    ],
  );
});

test('commands of the human monitor', { skip, timeout: 300_000 }, (t) => {
  const missing = [
    ...[
      'block_job_cancel',
      'block_job_complete',
      'block_job_pause',
      'block_job_resume',
      'block_job_set_speed',
    ],
    ...[
      'block_resize',
      'block_stream',
      'change',
      'device_add',
      'device_del',
      'drive_add',
      'drive_backup',
      'drive_del',
    ],
    ...[
      'drive_mirror',
      'eject',
      'nbd_server_add',
      'nbd_server_remove',
      'nbd_server_start',
      'nbd_server_stop',
    ],
    ...['snapshot_blkdev', 'qemu-io', 'system_reset', 'system_powerdown'],
  ];
  return alike(
    t,
    ['-drive', 'if=none,id=d,file=FOLDER/top.qcow2'],
    [
      ...missing,
      ...missing.map((name) => `help ${name}`),
      'block_resize d 2M',
      'block_resize nope 2M',
      'snapshot_blkdev d FOLDER/snap.qcow2',
      'info block d',
      'nbd_server_start -a unix:FOLDER/nbd',
      ['query-block-exports'],
      'nbd_server_remove d',
      'nbd_server_stop',
      'nbd_server_start -w unix:FOLDER/nbd',
      'block_resize d -1',
      'block_job_set_speed d x',
      'block_stream d x',
      'object_add iothread,id=1x',
      'drive_add 0 id=1x,if=none,file=FOLDER/base.qcow2',
      'nbd_server_start nonsense',
      'nbd_server_start tcp:127.0.0.1',
      'nbd_server_start [::1:5',
      'nbd_server_start :',
      'nbd_server_start unix:',
      'nbd_server_start fd:9',
      'nbd_server_start 127.0.0.1:0,to=x',
      'block_job_set_speed d 1M',
      'device_add virtio-blk,drive=nope',
      'device_del nope',
    ],
  );
});

test('command lines that cannot be', { skip, timeout: 600_000 }, (t) => {
  const sides = folders(t);
  const disk = 'file=FOLDER/base.qcow2';
  for (const args of [
    ...[
      ...[
        `${disk},foo=bar`,
        'file=FOLDER/nope',
        `if=bogus,${disk}`,
        `cache=bogus,${disk}`,
        `aio=bogus,${disk}`,
      ],
      ...[
        `discard=bogus,${disk}`,
        `detect-zeroes=bogus,${disk}`,
        `werror=bogus,${disk}`,
        `rerror=enospc,${disk}`,
      ],
      ...[
        `if=floppy,werror=stop,${disk}`,
        `format=bogus,${disk}`,
        `driver=qcow2,format=qcow2,${disk}`,
        'format=raw',
      ],
      ...[
        'media=bogus',
        `snapshot=bogus,${disk}`,
        `id=x,node-name=x,if=none,${disk}`,
        `node-name=1x,${disk}`,
      ],
      ...[
        `${disk},file.filename=FOLDER/disk.img`,
        'file=json:{bogus}',
        `if=none,id=1a,${disk}`,
        `bus=5,${disk}`,
      ],
      ...[
        `if=scsi,${disk}`,
        `unit=7,${disk}`,
        `index=x,${disk}`,
        `read-only=on,readonly=off,${disk}`,
        'if=virtio',
      ],
      ...[`if=none,aio=native,${disk}`, `if=none,${disk},backing=nope`],
      ...[
        'throttling.iops-total=x',
        'iops=-1',
        'throttling.iops-total=1k',
        'throttling.foo=1',
        'iops=5,iops_rd=3',
      ].map((limits) => `if=none,id=d,format=null-co,${limits}`),
      ...['iops_max=5', 'iops_size=4096'].map((limits) => `if=none,id=d,format=null-co,${limits}`),
    ].map((drive) => ['-drive', drive]),
    ...[
      ...[
        'virtio-blk',
        'virtio-blk,drive=nope',
        'virtio-blk,drive=n,foo=1',
        'bogus',
        'virtio-blk,drive=n,id=1a',
      ],
      ...[
        'scsi-hd,drive=n',
        'ide-hd,drive=r',
        'nvme,drive=n',
        'usb-storage,drive=n',
        'virtio-blk,drive=n,bus=foo',
      ],
      ...['virtio-blk,drive=n,logical_block_size=3', 'virtio-blk,drive=n,rerror=bogus', 'drive=n'],
      ...[
        'virtio-blk,drive=n,logical_block_size=1024,physical_block_size=512',
        'virtio-blk,drive=n,share-rw=bogus',
      ],
      ...['virtio-blk,drive=n,write-cache=bogus', 'virtio-blk,drive=n,bootindex=x'],
      '{"driver":"virtio-blk","drive":"n","share-rw":"on"}',
    ].map((device) => [...NULL('n'), '-blockdev', 'null-co,node-name=r,read-only=on', '-device', device]),
    [...NULL('n'), '-device', 'virtio-blk,drive=n', '-device', 'virtio-blk,drive=n,id=b'],
    ['-drive', `index=0,${disk}`, '-drive', 'index=0,format=null-co'],
    ['-drive', 'if=none,id=a,format=null-co', '-drive', 'if=none,id=a,format=null-co'],
    ['-drive', 'if=none,id=d', '-device', 'virtio-blk,drive=d'],
    ['-M', 'none', ...NULL('n'), '-device', 'virtio-blk,drive=n'],
    ['-M', 'q35', '-drive', `bus=0,unit=1,${disk}`],
    ['-hda', 'FOLDER/nope'],
    ['FOLDER/base.qcow2', 'FOLDER/top.qcow2'],
    ['-uuid', 'bogus'],
    ['-name', 'a,foo=b'],
    ['-m', 'bogus'],
    ['-bogus'],
    ['-m'],
    ['-display', 'bogus'],
    ['-M', 'bogus'],
  ]) {
    const [actual, expected] = [failure('ours', sides.ours, args), failure('theirs', sides.theirs, args)];
    assert.deepEqual(actual, expected, args.join(' '));
  }
});
