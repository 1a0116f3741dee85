import assert from 'node:assert/strict';
import { readFileSync, statSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { JobJournal } from '../../src/jobs/persisted/job-journal.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';
import { Held } from './held.js';

const MIRROR = { 'job-id': 'j', device: 'S', target: 'T', sync: 'full' };

/** A raw disk S, all data, of device virtio0, and a raw target T. `folder`: of a bed that has ended. */
async function newBed(t: TestContext, folder?: string): Promise<EngineBed> {
  const bed = new EngineBed(t);
  const from = folder ?? bed.folder;
  if (folder === undefined) {
    writeFileSync(`${from}/S`, Buffer.alloc(DISK_BYTES, 0x11));
    writeFileSync(`${from}/T`, '');
    truncateSync(`${from}/T`, DISK_BYTES);
  }
  for (const name of ['S', 'T']) {
    const file = {
      driver: 'file',
      filename: `${from}/${name}`,
      'node-name': `${name}-file`,
      discard: 'unmap',
    };
    await bed.engine.addNode({ driver: 'raw', 'node-name': name, file, discard: 'unmap' });
  }
  await bed.device('S');
  return bed;
}

/** Cancels a mirror when some of it was copied and its journal knows. */
async function cutOff(bed: EngineBed, journal: string): Promise<void> {
  await bed.execute('blockdev-mirror', { ...MIRROR, 'x-persist': journal, speed: 4 * MiB });
  const left = async (): Promise<number> => {
    const [told] = await bed.engine.execute('x-job-history', { journal });
    assert.equal(told?.state, 'unfinished');
    return Number(told.left);
  };
  while ((await left()) > 6 * MiB) await new Promise((resolve) => setTimeout(resolve, 20));
  await bed.execute('job-cancel', { id: 'j' });
  await bed.engine.jobs.find('j')?.concluded;
}

/** Ends a mirror softly; answers how much of the disk it copied as data. */
async function finish(bed: EngineBed): Promise<number> {
  await bed.event('BLOCK_JOB_READY', 'j');
  const job = bed.engine.jobs.find('j');
  assert.ok(job);
  const { dataBytes } = job.progress();
  await bed.execute('block-job-cancel', { device: 'j' });
  await job.concluded;
  assert.equal(job.error, undefined);
  return dataBytes;
}

function assertAlike(folder: string): void {
  assert.ok(readFileSync(`${folder}/S`).equals(readFileSync(`${folder}/T`)));
}

test('a job that was cut off goes on in the same engine: with what was left, and what was written since', async (t) => {
  const bed = await newBed(t);
  const journal = bed.path('journal');
  await cutOff(bed, journal);
  assert.deepEqual(await bed.engine.execute('x-job-history', {}), [
    { id: 'j', type: 'mirror', state: 'failed', error: 'Operation canceled' },
  ]);
  await bed.guest('write -P 0x22 0 64k');
  const { left } = await bed.engine.execute('x-job-resume', { journal });
  assert.ok(left <= 6 * MiB, `${left} bytes left`);
  const copied = await finish(bed);
  assert.ok(copied >= 64 * 1024 && copied <= 7 * MiB, `${copied} bytes copied`);
  assertAlike(bed.folder);
  const [end] = await bed.engine.execute('x-job-history', { journal });
  assert.deepEqual([end?.state, end?.left], ['completed', 0]);
  assert.equal(await bed.refusal('x-job-resume', { journal }), "Job 'j' has completed");
});

test('it goes on at the speed that was set last', async (t) => {
  const bed = await newBed(t);
  const journal = bed.path('journal');
  await bed.execute('blockdev-mirror', { ...MIRROR, 'x-persist': journal, speed: 65536 });
  const speed = (): unknown => (bed.engine.jobs.find('j')?.blockJobInfo() ?? {})['speed'];
  await bed.execute('block-job-set-speed', { device: 'j', speed: 131072 });
  // On disk once the command is answered: a process that is killed says no more.
  const { plan } = await JobJournal.look(bed.engine.host, journal);
  assert.equal(plan['speed'], 131072);
  await bed.execute('job-cancel', { id: 'j' });
  await bed.engine.jobs.find('j')?.concluded;
  await bed.execute('x-job-resume', { journal });
  assert.equal(speed(), 131072);
  await bed.execute('job-cancel', { id: 'j' });
  await bed.engine.jobs.find('j')?.concluded;
});

test('after a restart it goes on where nobody changed the source, and else is refused, or compares', async (t) => {
  const first = await newBed(t);
  const journal = first.path('journal');
  await cutOff(first, journal);
  await first.engine.close();
  const bed = await newBed(t, first.folder);
  const { mtimeMs } = statSync(first.path('S'));
  const soon = mtimeMs / 1000 + 3600;
  utimesSync(first.path('S'), soon, soon);
  assert.equal(
    await bed.refusal('x-job-resume', { journal }),
    "Node 'S' may have been changed since the job was cut off: its file was",
  );
  const { left } = await bed.engine.execute('x-job-resume', { journal, 'if-changed': 'compare' });
  assert.equal(left, DISK_BYTES);
  const sent = await finish(bed);
  // What is in the target already is not sent again.
  assert.ok(sent <= 6.5 * MiB, `${sent} bytes sent`);
  assertAlike(first.folder);
});

test('after a restart a source that nobody changed is copied from where the job was', async (t) => {
  const first = await newBed(t);
  const journal = first.path('journal');
  await cutOff(first, journal);
  await first.engine.close();
  const bed = await newBed(t, first.folder);
  const { id, left } = await bed.engine.execute('x-job-resume', { journal, 'job-id': 'j' });
  assert.equal(id, 'j');
  assert.ok(left <= 6 * MiB);
  assert.ok((await finish(bed)) <= 6 * MiB);
  assertAlike(first.folder);
});

for (const [what, change] of [
  ['write', 'write -P 0x22 64k 64k'],
  ['write of zeroes', 'write -z 64k 64k'],
  ['discard', 'discard 64k 64k'],
] as const)
  test(`a ${what} that is under way while a checkpoint is made stays in the journal`, async (t) => {
    const bed = await newBed(t);
    const [flushes, changes] = [new Held(), new Held()];
    const [source, target] = ['S-file', 'T-file'].map((name) => bed.engine.graph.node(name).instance);
    assert.ok(source?.io && target);
    flushes.hold(target, 'flush');
    await bed.execute('blockdev-mirror', { ...MIRROR, 'x-persist': bed.path('journal'), speed: 2 * MiB });
    const job = bed.engine.jobs.find('j');
    assert.ok(job?.kept);
    const { left } = job.kept;
    await flushes.begun;
    source.io.tryWrite = () => false;
    for (const kind of ['write', 'writeZeroes', 'discard'] as const) changes.hold(source.io, kind);
    const changing = bed.guest(change);
    await changes.begun;
    flushes.letGo();
    await job.kept.checkpoint();
    const told = [left.isDirty(0), left.isDirty(64 * 1024)];
    changes.letGo();
    await changing;
    assert.deepEqual(told, [false, true], 'what the target lacks stays');
    await job.setSpeed(0);
    await finish(bed);
    assertAlike(bed.folder);
  });

test('a journal is refused that is another job’s, in use, of other images, or none', async (t) => {
  const bed = await newBed(t);
  const journal = bed.path('journal');
  const mirror = { ...MIRROR, 'x-persist': journal, speed: 65536 };
  await bed.execute('blockdev-mirror', mirror);
  assert.equal(await bed.refusal('x-job-resume', { journal }), `The journal '${journal}' is in use by a job`);
  await bed.execute('job-cancel', { id: 'j' });
  await bed.engine.jobs.find('j')?.concluded;
  assert.match(await bed.refusal('blockdev-mirror', mirror), /File exists/);
  await bed.execute('blockdev-del', { 'node-name': 'T' });
  assert.match(await bed.refusal('x-job-resume', { journal }), /T/);
  writeFileSync(bed.path('other'), Buffer.alloc(DISK_BYTES));
  const file = { driver: 'file', filename: bed.path('other') };
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'T', file });
  assert.match(await bed.refusal('x-job-resume', { journal }), /is not the image that the job is for/);
  const bytes = readFileSync(journal);
  for (const [name, broken] of [
    ['short', bytes.subarray(0, 100_000)],
    [
      'changed',
      Buffer.concat([Buffer.alloc(64), bytes.subarray(64, 65536), Buffer.alloc(64), bytes.subarray(65600)]),
    ],
    ['nothing', Buffer.alloc(0)],
  ] as const) {
    writeFileSync(bed.path(name), broken);
    assert.match(
      await bed.refusal('x-job-resume', { journal: bed.path(name) }),
      /is no journal of a job|is broken/,
    );
  }
});

test('onto an older copy only what differs is sent', async (t) => {
  for (const command of ['blockdev-mirror', 'blockdev-backup']) {
    const bed = await newBed(t);
    const old = Buffer.alloc(DISK_BYTES, 0x11);
    old.fill(0x33, 2 * MiB, 3 * MiB);
    writeFileSync(bed.path('T'), old);
    await bed.guest('write -z 5M 1M');
    const args = { ...MIRROR, 'x-compare': true, 'auto-dismiss': false };
    await bed.execute(command, args);
    if (command === 'blockdev-mirror') assert.ok((await finish(bed)) <= 2 * MiB);
    await bed.engine.jobs.find('j')?.concluded;
    assertAlike(bed.folder);
  }
});
