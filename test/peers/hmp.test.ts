import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

const LINES = `
commit
commit zz
commit r0
commit d0
commit all
info snapshots
info name
info uuid
info block
info block -v d0
info block r0
info block-jobs
info chardev
info iothreads
info kvm
info zz
loadvm
delvm
savevm x
loadvm x
delvm x
snapshot_blkdev_internal r0 s
snapshot_blkdev_internal zz s
snapshot_blkdev_internal
snapshot_blkdev_internal r0
snapshot_delete_blkdev_internal d0 s 1
snapshot_delete_blkdev_internal r0 s
snapshot_delete_blkdev_internal
snapshot_delete_blkdev_internal d0
block_set_io_throttle
block_set_io_throttle d0
block_set_io_throttle d0 x 0 0 0 0 0
block_set_io_throttle d0 1 2 3 0 0 0
block_set_io_throttle zz 0 0 0 0 0 0
block_set_io_throttle d0 1 0 0 0 3 4
info block d0
block_set_io_throttle d0 0 0 0 0 0 0
info block d0
chardev-add null,id=n0
chardev-add null,id=n0
chardev-add null
chardev-add zap,id=n0
chardev-add socket,id=x,path=/nonexistent/x
chardev-add ringbuf,id=rb,size=16
ringbuf_write rb hello
ringbuf_read rb 100
ringbuf_read n0 5
ringbuf_read rb 0
ringbuf_read rb x
ringbuf_read rb
chardev-change n0 null
chardev-change none null
chardev-send-break n0
chardev-remove n0
chardev-remove n0
object_add secret,id=s1,data=x
object_add secret,id=s1,data=x
object_add zap,id=s1
object_add iothread,id=io
qom-get /objects/io poll-max-ns
qom-set /objects/io poll-max-ns 5
qom-get /objects/io poll-max-ns
qom-set -j /objects/io poll-max-ns 7
qom-get /objects/io poll-max-ns
object_del s1
object_del s1
qom-list
qom-list /objects/io
qom-list /zz
qom-get /objects type
qom-get /objects zz
qom-set /objects type x
qom-get
qom-set a b
getfd x
closefd x
`
  .split('\n')
  .filter((line) => line !== '');

const HELP = [
  ...['commit', 'savevm', 'loadvm', 'delvm', 'snapshot_blkdev_internal', 'snapshot_delete_blkdev_internal'],
  ...['block_set_io_throttle', 'chardev-add', 'chardev-change', 'chardev-remove', 'chardev-send-break'],
  ...['ringbuf_read', 'ringbuf_write', 'object_add', 'object_del', 'qom-list', 'qom-get', 'qom-set'],
  ...['getfd', 'closefd', 'info name', 'info uuid', 'info snapshots', 'info chardev', 'info kvm'],
  ...['info iothreads', 'info block'],
].map((name) => `help ${name}`);

test('the human monitor prints what that of QEMU prints', async (context) => {
  if (skipWithout(context, 'qemu-system-x86_64', 'qemu-img')) return;
  const answers: string[][] = [];
  for (const program of [['qemu-system-x86_64'], [process.execPath, PROGRAM, 'run']]) {
    const folder = scratch(context);
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', '1M');
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', '-b', 'a.qcow2', '-F', 'qcow2', 'b.qcow2');
    run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'r.raw', '1M');
    const daemon = await Daemon.start(context, folder, [
      ...program,
      ...['-S', '-display', 'none', '-nodefaults', '-qmp', 'unix:qmp.sock,server=on,wait=off'],
      // The first one that is writable is named where snapshots are refused.
      ...['-drive', 'file=r.raw,if=none,id=r0,format=raw', '-device', 'virtio-blk,drive=r0,id=v1'],
      ...['-drive', 'file=b.qcow2,if=none,id=d0,format=qcow2', '-device', 'virtio-blk,drive=d0,id=v0'],
    ]);
    const list: string[] = [];
    for (const line of [...LINES, ...HELP]) {
      const text = String(await daemon.execute('human-monitor-command', { 'command-line': line }));
      const isSizeLess = text.replace(/disk size: .*/g, 'disk size');
      list.push(
        `${line}\n${isSizeLess.replace(/#block\d+/g, '#block').replace(/thread_id=\d+/, 'thread_id')}`,
      );
    }
    answers.push(list);
    await daemon.quit();
  }
  const [theirs = [], ours = []] = answers;
  for (const [i, answer] of theirs.entries()) assert.equal(ours[i], answer);
});
