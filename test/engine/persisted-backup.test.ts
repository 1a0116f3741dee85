import assert from 'node:assert/strict';
import { readFileSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { errnoError } from '../../src/base/error.js';
import { createImage } from '../../src/block/create.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const BACKUP = { 'job-id': 'j', device: 'S', target: 'T', sync: 'full' };

/** A disk S, all data, of device virtio0, and a raw target T. `folder`: of a bed that has ended. */
async function newBed(t: TestContext, { folder, format = 'raw' }: { folder?: string; format?: string } = {}) {
  const bed = new EngineBed(t);
  const from = folder ?? bed.folder;
  if (folder === undefined) {
    await createImage(bed.engine.opener, `${from}/S`, format, { sizeBytes: DISK_BYTES, options: {} });
    writeFileSync(`${from}/T`, '');
    truncateSync(`${from}/T`, DISK_BYTES);
  }
  const file = (name: string) => ({ driver: 'file', filename: `${from}/${name}` });
  await bed.engine.addNode({ driver: format, 'node-name': 'S', file: file('S') });
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'T', file: file('T') });
  await bed.device('S');
  if (folder === undefined) await bed.guest('write -P 0x11 0 8M');
  return bed;
}

/** Fails a backup when some of it was copied and its journal knows. */
async function cutOff(bed: EngineBed, more: { [key: string]: string } = {}): Promise<string> {
  const journal = bed.path('journal');
  await bed.execute('blockdev-backup', { ...BACKUP, 'x-persist': journal, speed: 4 * MiB, ...more });
  const left = async (): Promise<number> =>
    Number((await bed.engine.execute('x-job-history', { journal }))[0]?.left);
  while ((await left()) > 6 * MiB) await new Promise((resolve) => setTimeout(resolve, 20));
  await bed.execute('job-cancel', { id: 'j' });
  await bed.engine.jobs.find('j')?.concluded;
  return journal;
}

async function end(bed: EngineBed): Promise<void> {
  const job = bed.engine.jobs.find('j');
  job?.setSpeed(0);
  await job?.concluded;
  assert.equal(job?.error, undefined);
}

const holds = (folder: string, ...parts: ReadonlyArray<readonly [number, number]>): void => {
  const model = Buffer.alloc(DISK_BYTES, 0x11);
  for (const [offset, byte] of parts) model.fill(byte, offset, offset + 65536);
  assert.ok(readFileSync(`${folder}/T`).equals(model));
};

test('what a guest changes before the cut is in the target, and what it changes after is known to be lost or not', async (t) => {
  const bed = await newBed(t);
  const journal = await cutOff(bed);
  // Long copied; the point in time does not need it.
  await bed.guest('write -P 0x22 0 64k');
  const kept = await bed.engine.execute('x-job-resume', { journal });
  assert.equal(kept.point, 'kept');
  assert.ok(kept.left <= 6 * MiB);
  await bed.guest('write -P 0x33 7M 64k');
  await bed.execute('job-cancel', { id: 'j' });
  await bed.engine.jobs.find('j')?.concluded;
  await bed.execute('x-job-resume', { journal });
  await end(bed);
  holds(bed.folder);
});

test('a point in time that is lost is told, and another one may be taken', async (t) => {
  const bed = await newBed(t);
  const journal = await cutOff(bed);
  await bed.guest('write -P 0x33 7M 64k');
  const text =
    "The backup's point in time is lost: node 'S' was changed since where the target does not have it yet";
  assert.equal(await bed.refusal('x-job-resume', { journal }), text);
  assert.equal(await bed.refusal('x-job-resume', { journal, 'if-changed': 'ignore' }), text);
  const { point } = await bed.engine.execute('x-job-resume', { journal, 'if-changed': 'compare' });
  assert.equal(point, 'new');
  await bed.guest('write -P 0x44 7M 64k');
  await end(bed);
  holds(bed.folder, [7 * MiB, 0x33]);
  assert.equal(await bed.refusal('x-job-resume', { journal }), "Job 'j' has completed");
});

test('after a restart a backup goes on where nobody changed its source', async (t) => {
  const first = await newBed(t);
  const journal = await cutOff(first);
  await first.engine.close();
  const soon = Date.now() / 1000 + 3600;
  const bed = await newBed(t, { folder: first.folder });
  assert.equal((await bed.engine.execute('x-job-resume', { journal })).point, 'kept');
  await bed.execute('job-cancel', { id: 'j' });
  await bed.engine.jobs.find('j')?.concluded;
  await bed.engine.close();
  utimesSync(first.path('S'), soon, soon);
  const last = await newBed(t, { folder: first.folder });
  assert.match(
    await last.refusal('x-job-resume', { journal }),
    /may have been changed since .*: its file was/,
  );
  assert.equal(
    (await last.engine.execute('x-job-resume', { journal, 'if-changed': 'compare' })).point,
    'new',
  );
  await end(last);
  holds(first.folder);
});

test('a durable bitmap tells after a restart whether the point in time is there, and what a new one needs', async (t) => {
  const first = await newBed(t, { format: 'qcow2' });
  await first.execute('x-bitmap-ensure', { name: 'b', disks: [{ node: 'S' }] });
  const journal = await cutOff(first);
  await first.guest('write -P 0x22 0 64k');
  await first.engine.close();
  const bed = await newBed(t, { folder: first.folder, format: 'qcow2' });
  assert.match(await bed.refusal('x-job-resume', { journal }), /may have been changed/);
  assert.match(await bed.refusal('x-job-resume', { journal, bitmap: 'c' }), /could not be found/);
  await bed.execute('block-dirty-bitmap-add', { node: 'S', name: 'young' });
  assert.match(await bed.refusal('x-job-resume', { journal, bitmap: 'young' }), /it is not durable/);
  assert.equal((await bed.engine.execute('x-job-resume', { journal, bitmap: 'b' })).point, 'kept');
  await bed.execute('job-cancel', { id: 'j' });
  await bed.engine.jobs.find('j')?.concluded;
  await bed.guest('write -P 0x33 7M 64k');
  assert.match(await bed.refusal('x-job-resume', { journal, bitmap: 'b' }), /point in time is lost/);
  const { point, left } = await bed.engine.execute('x-job-resume', {
    journal,
    bitmap: 'b',
    'if-changed': 'compare',
  });
  assert.equal(point, 'new');
  assert.ok(left < 7 * MiB, `${left} bytes left`);
  await end(bed);
  holds(first.folder, [0, 0x22], [7 * MiB, 0x33]);
});

test('a backup whose journal would be of no use is refused', async (t) => {
  const bed = await newBed(t);
  const persist = { ...BACKUP, 'x-persist': bed.path('journal') };
  assert.match(await bed.refusal('blockdev-backup', { ...persist, sync: 'none' }), /never ends/);
  assert.match(
    await bed.refusal('blockdev-backup', { ...persist, 'discard-source': true }),
    /the source as it was/,
  );
  const data = { ...persist, target: 'nobody' };
  assert.match(await bed.refusal('transaction', { actions: [{ type: 'blockdev-backup', data }] }), /nobody/);
});

test('in a transaction that fails, and where the journal is there already, nothing of the backup stays', async (t) => {
  const bed = await newBed(t);
  const data = { ...BACKUP, 'x-persist': bed.path('journal') };
  const good = { type: 'blockdev-backup', data };
  const bad = { type: 'blockdev-snapshot', data: { node: 'S', overlay: 'T' } };
  await bed.refusal('transaction', { actions: [good, bad] });
  assert.throws(() => readFileSync(bed.path('journal')), { code: 'ENOENT' });
  writeFileSync(bed.path('journal'), 'mine');
  await bed.refusal('transaction', { actions: [good] });
  assert.equal(readFileSync(bed.path('journal'), 'utf8'), 'mine');
  assert.deepEqual(bed.engine.graph.node('S').dirtyBitmaps, []);
});

test('a guest does not wait for zeroes that the target has refused, while the job rests', async (t) => {
  const bed = new EngineBed(t);
  writeFileSync(bed.path('S'), '');
  truncateSync(bed.path('S'), DISK_BYTES);
  writeFileSync(bed.path('T'), Buffer.alloc(DISK_BYTES, 0x11));
  for (const name of ['S', 'T']) {
    const file = { driver: 'file', filename: bed.path(name), 'node-name': `${name}-file` };
    await bed.engine.addNode({ driver: 'raw', 'node-name': name, file });
  }
  await bed.device('S');
  const { io } = bed.engine.graph.node('T-file').instance;
  assert.ok(io);
  const writeZeroes = io.writeZeroes.bind(io);
  let refused = 0;
  io.writeZeroes = (...args) => {
    if (refused++ === 0) return Promise.reject(errnoError('EIO'));
    return writeZeroes(...args);
  };
  const persist = { 'x-persist': bed.path('journal'), 'on-target-error': 'stop' };
  await bed.execute('blockdev-backup', { ...BACKUP, ...persist });
  const job = bed.engine.jobs.find('j');
  assert.ok(job);
  while (job.status !== 'paused') await new Promise((resolve) => setTimeout(resolve, 5));
  let isWritten = false;
  const writing = bed.guest('write -P 0x22 0 64k').then(() => (isWritten = true));
  for (let waits = 0; waits < 400 && !isWritten; waits++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  const wasWritten = isWritten;
  job.resume();
  await writing;
  await job.concluded;
  assert.ok(wasWritten, 'the guest waits until the job goes on');
  assert.equal(job.error, undefined);
  assert.ok(readFileSync(bed.path('T')).equals(Buffer.alloc(DISK_BYTES)));
});
