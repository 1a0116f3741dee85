import assert from 'node:assert/strict';
import { readdirSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { test } from 'node:test';
import { drawn } from '../kit/amount.js';
import { PROGRAM, run, skipWithout } from './daemon.js';
import { CRAWLING, type JobInfo, MiB, UpdatedDisk } from './takeover-jobs-disk.js';
import { DISK_BYTES } from './takeover-sides.js';

/**
 * Jobs with `x-verify`, `x-manifest`, `x-fleecing` and `x-finish-by`, and no journal, go on in the process that takes over,
 * under a guest that writes: qemu-img and the manifest are the judges.
 */

const UPDATES = 2;

interface Progress {
  phase: string;
  buffer?: { used: number; peak: number; max: number };
  finish?: { way: string; 'seconds-left': number };
}

async function progress(disk: UpdatedDisk): Promise<Progress> {
  return ((await disk.job()) as JobInfo & { 'x-progress': Progress })['x-progress'];
}

async function untilProgress(disk: UpdatedDisk, what: (now: Progress) => boolean): Promise<void> {
  while (!what(await progress(disk))) await new Promise((resolve) => setTimeout(resolve, 5));
}

function assertManifest(disk: UpdatedDisk, ...image: string[]): void {
  run(disk.folder, process.execPath, PROGRAM, 'img', 'verify', ...image, 'manifest');
}

/** A raw target whose requests are held to a pace, which `setPace` changes. */
async function addSlowTarget(disk: UpdatedDisk, limits: { [limit: string]: number }): Promise<void> {
  writeFileSync(disk.daemon.path('copy.raw'), '');
  truncateSync(disk.daemon.path('copy.raw'), DISK_BYTES);
  await disk.execute('object-add', { 'qom-type': 'throttle-group', id: 'pace', limits });
  await disk.execute('blockdev-add', {
    ...{ driver: 'throttle', 'node-name': 'copy', 'throttle-group': 'pace' },
    file: { driver: 'raw', file: { driver: 'file', filename: 'copy.raw' } },
  });
}

function setPace(disk: UpdatedDisk, limits: { [limit: string]: number }): Promise<unknown> {
  return disk.execute('qom-set', { path: '/objects/pace', property: 'limits', value: limits });
}

function rawContent(disk: UpdatedDisk): Buffer {
  run(disk.folder, 'qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', 'copy.raw', 'raw.qcow2');
  return disk.contentOf('raw.qcow2');
}

const CHECKED = { 'x-verify': true, 'x-manifest': 'manifest' };

for (const mode of drawn(['background', 'write-blocking'] as const))
  test(`a mirror, ${mode}, that is taken over three times knows the hashes of all of its copy`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const disk = await UpdatedDisk.start(t);
    await disk.addTarget('copy');
    const job = { device: 'disk', target: 'copy', 'job-id': 'j', sync: 'full', ...CHECKED };
    await disk.execute('blockdev-mirror', { ...job, 'copy-mode': mode, speed: CRAWLING });
    await disk.startGuest();
    for (let update = 1; update <= UPDATES; update++) {
      await disk.crawlFrom(update * 4 * MiB);
      await disk.untilWritten(8);
      await disk.update();
    }
    await disk.execute('block-job-set-speed', { device: 'j', speed: 0 });
    await disk.until(({ ready }) => ready);
    await disk.update();
    await disk.untilWritten(8);
    await disk.stopGuest();
    await disk.execute('block-job-cancel', { device: 'j' });
    assert.equal((await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' }))['error'], undefined);
    await disk.quit();
    disk.assertSame('disk.qcow2', 'copy.qcow2');
    assertManifest(disk, 'copy.qcow2');
  });

test('a backup that is taken over while it is read back finds what was spoilt, wherever it is', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const disk = await UpdatedDisk.start(t);
  const moment = await disk.content();
  await addSlowTarget(disk, { 'bps-read': MiB / 2 });
  const job = { device: 'disk', target: 'copy', 'job-id': 'j', sync: 'full', speed: CRAWLING, ...CHECKED };
  await disk.execute('blockdev-backup', job);
  await disk.startGuest();
  await disk.untilWritten(8);
  await disk.update();
  await disk.untilWritten(8);
  await disk.execute('block-job-set-speed', { device: 'j', speed: 0 });
  await untilProgress(disk, ({ phase }) => phase === 'pivot');
  await disk.update();
  assert.equal((await progress(disk)).phase, 'pivot');
  const file = await open(disk.daemon.path('copy.raw'), 'r+');
  await file.write(Buffer.from('spoilt'), 0, 6, 57 * MiB + 1000);
  await file.close();
  await disk.update();
  await setPace(disk, { 'bps-read': 0 });
  const told = await disk.daemon.event('X_BLOCK_JOB_CHUNK_DIFFERS', { device: 'j' });
  assert.deepEqual([told['offset'], told['action']], [57 * MiB, 'copied-again']);
  assert.equal((await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' }))['error'], undefined);
  await disk.stopGuest();
  await disk.quit();
  assert.equal(rawContent(disk).compare(moment), 0, 'the copy is the disk of its start');
  assertManifest(disk, '-f', 'raw', 'copy.raw');
});

for (const onFull of drawn(['fail', 'spill'] as const))
  test(`what the buffer of a backup keeps goes over, on-full=${onFull}, and guests wait for nothing`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const disk = await UpdatedDisk.start(t);
    const moment = await disk.content();
    await addSlowTarget(disk, { 'bps-write': 256 * 1024 });
    const spill = onFull === 'spill' ? { 'on-full': 'spill', 'spill-folder': disk.folder } : {};
    const max = onFull === 'spill' ? 256 * 1024 : 64 * MiB;
    await disk.execute('blockdev-backup', {
      ...{ device: 'disk', target: 'copy', 'job-id': 'j', sync: 'full', ...CHECKED },
      'x-fleecing': { folder: disk.folder, 'max-bytes': max, ...spill },
      'x-perf': { 'max-workers': 1, 'max-chunk': 65536 },
    });
    await disk.startGuest();
    for (let update = 1; update <= UPDATES; update++) {
      await disk.untilWritten(64);
      const { peak, used } = (await progress(disk)).buffer ?? { peak: 0, used: 0 };
      assert.ok(used > 0 && used <= max, `${used} bytes are kept`);
      await disk.update();
      const after = (await progress(disk)).buffer;
      assert.ok(after && after.peak >= peak && after.used > 0 && after.used <= max, JSON.stringify(after));
    }
    await disk.untilWritten(64);
    assert.ok(!readdirSync(disk.folder).some((name) => name.startsWith('.livedisk-fleecing')));
    await setPace(disk, { 'bps-write': 0 });
    assert.equal((await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' }))['error'], undefined);
    await disk.stopGuest();
    await disk.quit();
    assert.equal(rawContent(disk).compare(moment), 0, 'the copy is the disk of its start');
    assertManifest(disk, '-f', 'raw', 'copy.raw');
  });

test('a mirror that is to end by a time has what is left of it', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const disk = await UpdatedDisk.start(t);
  await addSlowTarget(disk, { 'bps-write': 4 * MiB });
  const job = { device: 'disk', target: 'copy', 'job-id': 'j', sync: 'full' };
  await disk.execute('blockdev-mirror', { ...job, 'x-finish-by': 1000 });
  await disk.startGuest();
  let left = 1000;
  for (let update = 1; update <= UPDATES; update++) {
    await disk.until(({ offset }) => offset >= update * 2 * MiB);
    await untilProgress(disk, ({ finish }) => finish !== undefined);
    await disk.update();
    const { finish } = await progress(disk);
    assert.ok(finish && finish['seconds-left'] <= left, JSON.stringify(finish));
    left = finish['seconds-left'];
  }
  await setPace(disk, { 'bps-write': 0 });
  await disk.until(({ ready }) => ready);
  await disk.update();
  assert.equal((await disk.job()).ready, true);
  await disk.untilWritten(8);
  await disk.stopGuest();
  await disk.execute('block-job-cancel', { device: 'j' });
  await disk.daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
  const content = await disk.content();
  await disk.quit();
  assert.equal(rawContent(disk).compare(content), 0);
});
