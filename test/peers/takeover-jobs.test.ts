import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { drawn } from '../kit/amount.js';
import { skipWithout } from './daemon.js';
import { CRAWLING, MiB, PATIENCE_MS, UpdatedDisk } from './takeover-jobs-disk.js';
import { endUnlessTold, successor } from './takeover-sides.js';

/**
 * Jobs without a journal go on in the process that takes over, under a guest that writes: of what they end with qemu-img is
 * the judge.
 */

const UPDATES = 2;

for (const sync of drawn(['full', 'top', 'none'] as const))
  for (const mode of drawn(['background', 'write-blocking'] as const))
    test(`a mirror, sync=${sync}, ${mode}, is taken over while it copies and when it is ready`, async (t) => {
      if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
      const disk = await UpdatedDisk.start(t);
      await disk.addTarget('copy', sync === 'full' ? undefined : await disk.content());
      const job = { device: 'disk', target: 'copy', 'job-id': 'j', 'filter-node-name': 'above' };
      await disk.execute('blockdev-mirror', { ...job, sync, 'copy-mode': mode, speed: CRAWLING });
      await disk.startGuest();
      let reached = 0;
      for (let update = 1; update <= UPDATES; update++) {
        if (sync !== 'none') await disk.crawlFrom(update * 4 * MiB);
        await disk.untilWritten(8);
        reached = (await disk.job()).offset;
        await disk.update();
        assert.ok((await disk.job()).offset >= reached, 'what is done does not go back');
      }
      await disk.execute('block-job-set-speed', { device: 'j', speed: 0 });
      await disk.until(({ ready }) => ready);
      await disk.daemon.event('BLOCK_JOB_READY', { device: 'j' });
      await disk.update();
      assert.equal((await disk.job()).ready, true);
      await disk.untilWritten(8);
      assert.ok(!disk.daemon.events.some(({ event }) => event === 'BLOCK_JOB_READY'), 'it is said once');
      await disk.stopGuest();
      await disk.execute('block-job-cancel', { device: 'j' });
      await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
      await disk.quit();
      disk.assertSame('disk.qcow2', 'copy.qcow2');
    });

test('a mirror that was taken over takes its disk over', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const disk = await UpdatedDisk.start(t);
  await disk.addTarget('copy');
  const job = { device: 'disk', target: 'copy', 'job-id': 'j', sync: 'full', 'auto-finalize': false };
  await disk.execute('blockdev-mirror', job);
  await disk.daemon.event('BLOCK_JOB_READY', { device: 'j' });
  await disk.startGuest();
  await disk.update();
  await disk.execute('block-job-complete', { device: 'j' });
  await disk.until(({ status }) => status === 'pending');
  await disk.update();
  assert.equal((await disk.job()).status, 'pending');
  await disk.untilWritten(8);
  await disk.execute('job-finalize', { id: 'j' });
  await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
  await disk.untilWritten(8);
  await disk.update();
  await disk.stopGuest();
  const all = await disk.content();
  await disk.quit();
  assert.equal(all.compare(disk.contentOf('copy.qcow2')), 0);
});

const BACKUPS = Object.entries({
  full: { sync: 'full' },
  'full, compressed': { sync: 'full', compress: true },
  top: { sync: 'top' },
  none: { sync: 'none' },
  incremental: { sync: 'incremental', bitmap: 'changes' },
  'bitmap, always': { sync: 'bitmap', bitmap: 'changes', 'bitmap-mode': 'always' },
});

for (const [name, more] of drawn(BACKUPS))
  test(`a backup, sync=${name}, that is taken over twice has the moment of its start`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const disk = await UpdatedDisk.start(t);
    const earlier = await disk.content();
    const hasBitmap = 'bitmap' in more;
    if (hasBitmap) await disk.execute('block-dirty-bitmap-add', { node: 'disk', name: 'changes' });
    if (hasBitmap) await disk.letGuestWrite(32);
    // Where no guest's change has it copied: the job has this to do.
    if (hasBitmap) await disk.writeAside(60 * MiB, 2 * MiB);
    const moment = await disk.content();
    // What the job does not copy, the target has from below.
    const isWhole = more.sync === 'full';
    await disk.addTarget('copy', isWhole ? undefined : hasBitmap ? earlier : moment);
    const job = { device: 'disk', target: 'copy', 'job-id': 'j', speed: CRAWLING };
    await disk.execute('blockdev-backup', { ...job, ...more });
    await disk.startGuest();
    for (let update = 1; update <= UPDATES; update++) {
      await disk.untilWritten(8);
      const { offset } = await disk.job();
      await disk.update();
      assert.ok((await disk.job()).offset >= offset, 'what is done does not go back');
    }
    await disk.untilWritten(24);
    if (more.sync === 'none') {
      await disk.execute('block-job-cancel', { device: 'j' });
      await disk.daemon.event('BLOCK_JOB_CANCELLED', { device: 'j' });
    } else {
      await disk.execute('block-job-set-speed', { device: 'j', speed: 0 });
      await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
    }
    await disk.stopGuest();
    const now = await disk.content();
    // What was written since is in the bitmap, and the next backup brings it.
    if (hasBitmap) {
      await disk.execute('blockdev-backup', {
        ...job,
        ...more,
        'job-id': 'k',
        speed: 0,
        target: await second(disk, moment),
      });
      await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'k' });
    }
    await disk.quit();
    assert.equal(disk.contentOf('copy.qcow2').compare(moment), 0, 'the copy is the disk of its start');
    if (hasBitmap)
      assert.equal(disk.contentOf('second.qcow2').compare(now), 0, 'the bitmap had what came since');
  });

async function second(disk: UpdatedDisk, before: Buffer): Promise<string> {
  await disk.addTarget('second', before);
  return 'second';
}

const COPIES_IN_A_CHAIN = Object.entries({
  stream: { command: 'block-stream', args: { device: 'disk', 'base-node': 'base' }, ends: 'middle' },
  commit: {
    command: 'block-commit',
    args: { device: 'disk', 'top-node': 'middle', 'base-node': 'base' },
    ends: 'middle',
  },
  'commit of the active layer': {
    command: 'block-commit',
    args: { device: 'disk', 'base-node': 'base' },
    ends: '',
  },
});

for (const [name, { command, args, ends }] of drawn(COPIES_IN_A_CHAIN))
  test(`a ${name} that is taken over twice ends right`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const disk = await UpdatedDisk.start(t);
    await disk.execute(command, { ...args, 'job-id': 'j', speed: CRAWLING });
    await disk.startGuest();
    for (let update = 1; update <= UPDATES; update++) {
      await disk.crawlFrom(update * 2 * MiB);
      await disk.untilWritten(8);
      const { offset } = await disk.job();
      await disk.update();
      assert.ok((await disk.job()).offset >= offset, 'what is done does not go back');
    }
    await disk.execute('block-job-set-speed', { device: 'j', speed: 0 });
    if (ends === '') {
      await disk.daemon.event('BLOCK_JOB_READY', { device: 'j' });
      await disk.update();
      await disk.execute('block-job-complete', { device: 'j' });
    }
    await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
    await disk.stopGuest();
    const all = await disk.content();
    const nodes = (await disk.execute('query-named-block-nodes')) as Array<{
      'node-name': string;
      ro: boolean;
    }>;
    const isReadOnly = (node: string): boolean | undefined =>
      nodes.find(({ 'node-name': one }) => one === node)?.ro;
    if (ends !== '') assert.equal(isReadOnly('base'), true, 'the base is read-only again');
    await disk.quit();
    assert.equal(disk.contentOf(ends === '' ? 'base.qcow2' : 'disk.qcow2').compare(all), 0);
  });

test('jobs that rest are told of the same before and after', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const disk = await UpdatedDisk.start(t);
  await disk.addTarget('one');
  await disk.addTarget('two');
  await disk.addTarget('three');
  await disk.execute('block-dirty-bitmap-add', { node: 'disk', name: 'changes' });
  await disk.execute('block-dirty-bitmap-add', { node: 'disk', name: 'kept', persistent: true });
  await disk.letGuestWrite(32);
  await disk.execute('blockdev-backup', {
    ...{ device: 'disk', speed: CRAWLING, 'job-id': 'b', target: 'one', sync: 'bitmap', bitmap: 'changes' },
    ...{ 'bitmap-mode': 'on-success', 'auto-dismiss': false, 'filter-node-name': 'above' },
  });
  await disk.execute('blockdev-backup', {
    ...{ device: 'disk', speed: CRAWLING, 'job-id': 'c', target: 'two', sync: 'bitmap', bitmap: 'kept' },
    ...{ 'bitmap-mode': 'always', 'auto-finalize': false },
  });
  // One that is over, and one that failed, wait to be dismissed.
  await disk.execute('blockdev-create', {
    'job-id': 'over',
    options: { driver: 'file', filename: 'new', size: MiB },
  });
  await disk.execute('blockdev-create', {
    'job-id': 'failed',
    options: { driver: 'file', filename: '/none/new', size: MiB },
  });
  for (const id of ['over', 'failed'])
    await disk.daemon.event('JOB_STATUS_CHANGE', { id, status: 'concluded' });
  for (const device of ['b', 'c']) {
    await disk.execute('block-job-pause', { device });
    await disk.until(({ status }) => status === 'paused', device);
  }
  await disk.updateAlike();
  await disk.updateAlike();
  for (const id of ['over', 'failed']) await disk.execute('job-dismiss', { id });
  for (const device of ['b', 'c']) {
    await disk.execute('block-job-set-speed', { device, speed: 0 });
    await disk.execute('block-job-resume', { device });
  }
  await disk.until(({ status }) => status === 'concluded', 'b');
  await disk.until(({ status }) => status === 'pending', 'c');
  await disk.updateAlike();
  await disk.execute('job-dismiss', { id: 'b' });
  await disk.execute('job-finalize', { id: 'c' });
  await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'c' });
  assert.deepEqual(await disk.jobs(), []);
  await disk.update();
  await disk.quit();
});

test('jobs of one transaction end together after updates, well or not at all', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const disk = await UpdatedDisk.start(t);
  for (const target of ['one', 'two', 'three', 'four']) await disk.addTarget(target);
  const moment = await disk.content();
  const pair = async (first: string, second: string): Promise<void> => {
    const backup = (id: string, target: string, speed: number): object => ({
      type: 'blockdev-backup',
      data: { device: 'disk', 'job-id': id, target, sync: 'full', speed },
    });
    await disk.execute('transaction', {
      actions: [backup('fast', first, 0), backup('slow', second, CRAWLING)],
      properties: { 'completion-mode': 'grouped' },
    });
    await disk.until(({ status }) => status === 'waiting', 'fast');
    for (let update = 1; update <= UPDATES; update++) {
      await disk.update();
      assert.equal((await disk.job('fast')).status, 'waiting');
    }
  };
  await pair('one', 'two');
  await disk.startGuest();
  await disk.untilWritten(8);
  await disk.execute('block-job-set-speed', { device: 'slow', speed: 0 });
  for (const device of ['fast', 'slow']) await disk.daemon.event('BLOCK_JOB_COMPLETED', { device });
  await disk.stopGuest();
  await pair('three', 'four');
  await disk.execute('block-job-cancel', { device: 'slow' });
  for (const device of ['fast', 'slow']) await disk.daemon.event('BLOCK_JOB_CANCELLED', { device });
  assert.deepEqual(await disk.jobs(), []);
  await disk.quit();
  for (const image of ['one.qcow2', 'two.qcow2'])
    assert.equal(disk.contentOf(image).compare(moment), 0, image);
});

test('the new image of a drive-mirror goes over with its job', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const disk = await UpdatedDisk.start(t);
  await disk.execute('drive-mirror', {
    device: 'disk',
    target: 'new.qcow2',
    format: 'qcow2',
    sync: 'full',
    'job-id': 'j',
    speed: CRAWLING,
  });
  await disk.startGuest();
  for (let update = 1; update <= UPDATES; update++) {
    await disk.crawlFrom(update * 2 * MiB);
    await disk.update();
  }
  await disk.execute('block-job-set-speed', { device: 'j', speed: 0 });
  await disk.daemon.event('BLOCK_JOB_READY', { device: 'j' });
  await disk.stopGuest();
  await disk.execute('block-job-cancel', { device: 'j' });
  await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
  await disk.quit();
  disk.assertSame('disk.qcow2', 'new.qcow2');
});

test('an image that is being made is made anew by who takes over', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const disk = await UpdatedDisk.start(t);
  const limits = { 'bps-write': 16 * 1024 };
  await disk.execute('object-add', { 'qom-type': 'throttle-group', id: 'slow', limits });
  writeFileSync(disk.daemon.path('new.qcow2'), '');
  await disk.execute('blockdev-add', {
    ...{ driver: 'throttle', 'node-name': 'place', 'throttle-group': 'slow' },
    file: { driver: 'file', filename: 'new.qcow2' },
  });
  const options = { driver: 'qcow2', file: 'place', size: 4 * MiB, preallocation: 'full' };
  await disk.execute('blockdev-create', { 'job-id': 'j', options });
  await disk.execute('qom-set', { path: '/objects/slow', property: 'limits', value: { 'bps-write': 0 } });
  await disk.update();
  await disk.daemon.event('JOB_STATUS_CHANGE', { id: 'j', status: 'concluded' });
  assert.deepEqual(
    ((await disk.execute('query-jobs')) as object[]).map((job) => ({ ...job, 'x-progress': 0 })),
    [
      {
        id: 'j',
        type: 'create',
        status: 'concluded',
        'current-progress': 1,
        'total-progress': 1,
        'x-progress': 0,
      },
    ],
  );
  await disk.execute('job-dismiss', { id: 'j' });
  await disk.quit();
  assert.equal(disk.contentOf('new.qcow2').compare(Buffer.alloc(4 * MiB)), 0);
});

test('what cannot go over is named, and the job goes on', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const disk = await UpdatedDisk.start(t);
  await disk.addTarget('copy');
  await successor(t, disk.folder);
  const job = { device: 'disk', target: 'copy', 'job-id': 'j', sync: 'full', speed: CRAWLING };
  await disk.execute('blockdev-backup', job);
  const overlay = { 'snapshot-file': 'over.qcow2', 'snapshot-node-name': 'over', format: 'qcow2' };
  await disk.execute('blockdev-snapshot-sync', { 'node-name': 'disk', ...overlay });
  const refused = disk.execute('x-takeover', { socket: 'next.sock' });
  const why = "job 'j' of type backup has a layer between its filter and its disk";
  await assert.rejects(refused, new RegExp(why));
  const { refuses } = (await disk.execute('x-takeover', { 'dry-run': true })) as { refuses: string[] };
  assert.deepEqual(refuses, [why]);
  await disk.execute('block-job-set-speed', { device: 'j', speed: 0 });
  await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
  const ended = once(disk.serving, 'exit');
  await disk.execute('x-takeover', { socket: 'next.sock' });
  await ended;
  await disk.execute('quit');
});

const KILLS = Number(process.env['TAKEOVER_KILLS'] ?? 4);

test(`${KILLS} updates during a backup of which one side is killed: its moment is held by the other`, async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const count = { old: 0, new: 0, none: 0 };
  for (let round = 0; round < KILLS; round++) {
    const disk = await UpdatedDisk.start(t);
    const moment = await disk.content();
    await disk.addTarget('copy');
    const job = { device: 'disk', target: 'copy', 'job-id': 'j', sync: 'full', speed: MiB };
    const buffer = { 'x-fleecing': { folder: disk.folder, 'max-bytes': 64 * MiB } };
    await disk.execute('blockdev-backup', { ...job, 'x-verify': true, ...(round % 4 < 2 && buffer) });
    const old = disk.serving;
    const next = await successor(t, disk.folder);
    await disk.startGuest();
    const asked = disk.daemon.raw('x-takeover', { socket: 'next.sock', timeout: PATIENCE_MS });
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 600));
    const [victim, other] = round % 2 === 0 ? [next, old] : [old, next];
    victim.kill('SIGKILL');
    if (victim === old) void endUnlessTold(other, disk.daemon.path('next.sock'));
    const isServed = await Promise.race([
      asked.then(({ error }) => (error ? error.class !== 'Closed' : victim === old)),
      once(other, 'exit').then(() => false),
    ]);
    count[isServed ? (other === old ? 'old' : 'new') : 'none']++;
    if (!isServed) {
      if (other.exitCode === null) await once(other, 'exit');
      continue;
    }
    await disk.execute('block-job-set-speed', { device: 'j', speed: 0 });
    await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
    await disk.stopGuest();
    const ended = once(other, 'exit');
    await disk.execute('quit');
    await ended;
    assert.equal(disk.contentOf('copy.qcow2').compare(moment), 0, 'the copy is the disk of its start');
  }
  t.diagnostic(`the old one served ${count.old} times, the new one ${count.new}, nobody ${count.none}`);
});
