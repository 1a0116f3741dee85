import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Daemon, PROGRAM, run } from './daemon.js';
import { assertUnbroken, ringOf } from './guest-ring.js';
import { End, newBed, PRIVATE, VIRTIO } from './machine-end.js';

/** A machine that runs goes to another process, memory, processors and disk, while its guest writes numbered records. */

const SIZE = '64M';

test('a machine that runs goes to another process, on shared storage, and back', async (t) => {
  const bed = newBed(t);
  if (!bed) return;
  const { folder } = bed;
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', SIZE);
  const source = await End.start(t, bed, 'source', 'a.qcow2', ...VIRTIO);
  await source.reached(10);
  const there = await End.start(t, bed, 'there', 'a.qcow2', ...VIRTIO, '-incoming', 'unix:move.sock');
  assert.equal(await there.status(), 'inmigrate');
  await source.daemon.execute('migrate', { uri: 'unix:move.sock' });
  assert.equal(await source.moved(), 'completed');
  assert.equal(await source.status(), 'postmigrate');
  assert.equal(await there.status(), 'running');
  const left = source.lastRecord;
  await there.reached(left + 20);
  // What it counts is in its memory: it has gone on, and not begun anew.
  assert.ok(there.firstRecord >= left && there.firstRecord <= left + 2, `${left}, then ${there.firstRecord}`);
  assert.equal(source.lastRecord, left);
  const refused = await source.daemon.raw('cont');
  assert.match(refused.error?.desc ?? '', /The machine has moved/);
  assert.equal(await source.daemon.quit(), 0, source.daemon.output);

  const back = await End.start(t, bed, 'back', 'a.qcow2', ...VIRTIO, '-incoming', 'unix:back.sock');
  await there.daemon.execute('migrate', { uri: 'unix:back.sock' });
  assert.equal(await there.moved(), 'completed');
  await back.reached(there.lastRecord + 20);
  assert.doesNotMatch(source.text + there.text + back.text, /GUEST ERROR/);
  assert.equal(await there.daemon.quit(), 0, there.daemon.output);
  await back.daemon.execute('stop');
  const last = back.lastRecord;
  assert.equal(await back.daemon.quit(), 0, back.daemon.output);
  run(folder, 'qemu-img', 'check', 'a.qcow2');
  assertUnbroken(ringOf(folder, 'a.qcow2'), last, 'the disk');
});

test('a machine goes with its disk, which is copied to where it goes; its disk comes over NBD', async (t) => {
  const bed = newBed(t);
  if (!bed) return;
  const { folder } = bed;
  for (const image of ['a.qcow2', 'b.qcow2'])
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', image, SIZE);
  const source = await End.start(t, bed, 'source', 'a.qcow2', ...VIRTIO, ...PRIVATE);
  await source.reached(10);
  const there = await End.start(
    t,
    bed,
    'there',
    'b.qcow2',
    ...[
      ...VIRTIO,
      ...PRIVATE,
      '-incoming',
      'unix:move.sock',
      '-nbd-server',
      'addr.type=unix,addr.path=nbd.sock',
    ],
    ...['-export', 'nbd,id=e,node-name=disk,name=virtio0,writable=on'],
  );
  await source.daemon.execute('x-move', {
    uri: 'unix:move.sock',
    storage: { server: { type: 'unix', path: 'nbd.sock' } },
  });
  await source.daemon.event('X_MOVE_STAGE', { stage: 'switching' }, 240_000);
  assert.equal(await source.moved(), 'completed');
  const left = source.lastRecord;
  await there.reached(left + 20);
  assert.ok(there.firstRecord >= left && there.firstRecord <= left + 2, `${left}, then ${there.firstRecord}`);
  assert.doesNotMatch(source.text + there.text, /GUEST ERROR/);
  assert.equal(await source.daemon.quit(), 0, source.daemon.output);
  await there.daemon.execute('stop');
  const last = there.lastRecord;
  assert.equal(await there.daemon.quit(), 0, there.daemon.output);
  for (const image of ['a.qcow2', 'b.qcow2']) run(folder, 'qemu-img', 'check', image);
  assertUnbroken(ringOf(folder, 'b.qcow2'), last, 'the copy');
  const before = ringOf(folder, 'a.qcow2');
  assert.ok(Math.max(...before) <= left + 1, 'the disk that was left is written no more');
});

test('a move that fails at its very end leaves the machine where it ran, and nobody else writes', async (t) => {
  const bed = newBed(t);
  if (!bed) return;
  const { folder } = bed;
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', SIZE);
  const source = await End.start(t, bed, 'source', 'a.qcow2', ...VIRTIO);
  await source.reached(10);
  const capabilities = [
    { capability: 'pause-before-switchover', state: true },
    { capability: 'events', state: true },
  ];
  await source.daemon.execute('migrate-set-capabilities', { capabilities });
  const there = await End.start(t, bed, 'there', 'a.qcow2', ...VIRTIO, '-incoming', 'unix:move.sock');
  await source.daemon.execute('migrate', { uri: 'unix:move.sock' });
  // All of the memory is there, and the guest rests.
  await source.daemon.event('MIGRATION', { status: 'pre-switchover' }, 240_000);
  assert.equal(await source.status(), 'finish-migrate');
  await there.daemon.kill();
  await source.daemon.execute('migrate-continue', { state: 'pre-switchover' });
  assert.match(await source.moved(), /closed|ended|reset|Broken pipe/);
  await source.reached(source.lastRecord + 10);
  assert.equal(await source.status(), 'running');

  // And so does one that a user gives up, while its memory goes.
  const again = await End.start(t, bed, 'again', 'a.qcow2', ...VIRTIO, '-incoming', 'unix:again.sock');
  const ended = new Promise<number | null>((resolve) => again.daemon.process.once('exit', resolve));
  await source.daemon.execute('migrate-set-parameters', { 'max-bandwidth': 1_000_000 });
  await source.daemon.execute('migrate', { uri: 'unix:again.sock' });
  await source.daemon.event('MIGRATION', { status: 'active' });
  await new Promise((resolve) => setTimeout(resolve, 3000));
  await source.daemon.execute('migrate_cancel');
  assert.equal(await source.moved(), 'cancelled');
  await source.reached(source.lastRecord + 10);
  // What has a part of a machine in its memory is of no use, and ends, as QEMU's does.
  assert.equal(await ended, 1, again.daemon.output);
  const last = source.lastRecord;
  assert.doesNotMatch(source.text, /GUEST ERROR/);
  assert.equal(await source.daemon.quit(), 0, source.daemon.output);
  assertUnbroken(ringOf(folder, 'a.qcow2'), last, 'the disk');
});

test('a machine goes to a machine: where none is, it stays', async (t) => {
  const bed = newBed(t);
  if (!bed) return;
  const { folder } = bed;
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'a.qcow2', SIZE);
  const source = await End.start(t, bed, 'source', 'a.qcow2', ...VIRTIO);
  await source.reached(3);
  const bare = await Daemon.start(
    t,
    folder,
    [
      ...[process.execPath, PROGRAM, 'run', '-M', 'q35', '-nodefaults', '-monitor', 'none', ...VIRTIO],
      ...['-blockdev', 'node-name=disk,driver=qcow2,file.driver=file,file.filename=./a.qcow2'],
      ...['-qmp', 'unix:bare.qmp,server=on,wait=off', '-incoming', 'unix:move.sock'],
    ],
    'bare.qmp',
  );
  await source.daemon.execute('migrate', { uri: 'unix:move.sock' });
  assert.match(
    await source.moved(),
    /Unknown savevm section 'memory'|closed the connection|Broken pipe|reset/,
  );
  await source.reached(source.lastRecord + 5);
  assert.match(bare.output, /Unknown savevm section 'memory'/);
  assert.equal(await source.daemon.quit(), 0, source.daemon.output);
});
