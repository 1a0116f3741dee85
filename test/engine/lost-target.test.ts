import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import type { Job } from '../../src/jobs/job.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';
import { ForgetfulServer } from './forgetful-server.js';

const POLICIES = ['ignore', 'stop'] as const;
/** So much is copied at once, and then the job waits. */
const SLOW = { speed: 2 * MiB };

interface Linked extends Pick<ForgetfulServer, 'path' | 'lose' | 'cut' | 'holdFlushes'> {
  bed: EngineBed;
}

/**
 * A raw disk S, all data, of device virtio0, and a node N of an NBD server's, of which nobody says that it stays the same.
 */
async function linked(t: TestContext, format: 'raw' | 'qcow2', delay = 0): Promise<Linked> {
  // Beds end in the order in which they were made.
  const bed = new EngineBed(t);
  const server = await ForgetfulServer.start(t, bed.folder, format);
  writeFileSync(bed.path('S'), Buffer.alloc(DISK_BYTES, 0x11));
  const source = { driver: 'file', filename: bed.path('S') };
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'S', file: source });
  await bed.device('S');
  const nbd = { driver: 'nbd', server: { type: 'unix', path: server.socket }, export: 'T' };
  await bed.engine.addNode({ driver: format, 'node-name': 'N', file: { ...nbd, 'reconnect-delay': delay } });
  const { path, lose, cut, holdFlushes } = server;
  return { bed, path, lose, cut, holdFlushes };
}

async function start(bed: EngineBed, command: string, more: JsonObject): Promise<Job> {
  await bed.execute(command, { 'job-id': 'j', device: 'S', target: 'N', sync: 'full', ...more });
  const job = bed.engine.jobs.find('j');
  assert.ok(job);
  return job;
}

const soon = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 5));

/** Some is in the target, and nothing is on its way. */
async function untilCopied(bed: EngineBed, job: Job): Promise<void> {
  const isBusy = (): boolean =>
    [...bed.engine.graph.node('N').parents].some(
      ({ parent }) => 'hasRequests' in parent && parent.hasRequests,
    );
  while (job.progress().doneBytes < MiB || isBusy()) await soon();
}

/** Resumes a job each time it is stopped by an error, to its end. */
async function toItsEnd(job: Job): Promise<void> {
  let isOver = false;
  void job.concluded.then(() => (isOver = true));
  while (!isOver) {
    if (job.pace.isUserPaused && (job.status === 'paused' || job.status === 'standby')) job.resume();
    await soon();
  }
}

/** [N] <- [M] <- [O]: M is committed into N, slowly, and that is persisted in J. */
async function startCommit(bed: EngineBed, before: () => void = () => undefined): Promise<Job> {
  for (const [below, name] of [
    ['N', 'M'],
    ['M', 'O'],
  ] as const) {
    await bed.image(name, { backing: null });
    await bed.execute('blockdev-snapshot', { node: below, overlay: name });
    if (name === 'M') {
      await bed.engine.addDevice('M', { id: 'filled' });
      const command = 'qemu-io -d filled "write -P 0x33 0 8M"';
      await bed.execute('human-monitor-command', { 'command-line': command });
      await bed.execute('device_del', { id: 'filled' });
    }
  }
  before();
  await bed.execute('block-commit', {
    ...{ 'job-id': 'j', device: 'O', 'top-node': 'M', 'base-node': 'N', 'on-error': 'ignore' },
    ...{ ...SLOW, 'x-persist': bed.path('J') },
  });
  const job = bed.engine.jobs.find('j');
  assert.ok(job);
  return job;
}

const committed = (path: string): boolean => readFileSync(path).equals(Buffer.alloc(DISK_BYTES, 0x33));

test('a persisted commit copies again what the base has lost', async (t) => {
  const { bed, path, lose } = await linked(t, 'raw');
  const job = await startCommit(bed);
  await untilCopied(bed, job);
  lose();
  await job.setSpeed(0);
  await job.concluded;
  assert.equal(job.error, undefined);
  assert.ok(committed(path));
  const [told] = await bed.engine.execute('x-job-history', { journal: bed.path('J') });
  assert.equal(told?.state, 'completed');
});

for (const delay of [0, 60])
  test(`a persisted commit that is cut off goes on with what the base has lost too, reconnect-delay=${delay}`, async (t) => {
    const { bed, path, lose, holdFlushes } = await linked(t, 'raw', delay);
    const job = await startCommit(bed, holdFlushes);
    while (job.progress().doneBytes < MiB) await soon();
    lose();
    // Of what was lost nothing is told as copied by a flush that succeeds.
    await job.kept?.checkpoint();
    await bed.execute('job-cancel', { id: 'j' });
    await job.concluded;
    // Who goes on with it in another process knows nothing of that.
    bed.engine.graph.node('N').instance.takeDoubtful?.();
    await bed.execute('x-job-resume', { journal: bed.path('J') });
    const again = bed.engine.jobs.find('j');
    assert.ok(again);
    await again.setSpeed(0);
    await again.concluded;
    assert.equal(again.error, undefined);
    assert.ok(committed(path));
  });

for (const how of ['cut', 'lose'] as const)
  test(`backup with x-verify and reconnect-delay: a server that was ${how === 'cut' ? 'cut off is gone on with' : 'lost is found out, where a guest has changed what is gone'}`, async (t) => {
    const server = await linked(t, 'raw', 60);
    const { bed, path } = server;
    const job = await start(bed, 'blockdev-backup', { ...SLOW, 'x-verify': true });
    await untilCopied(bed, job);
    await bed.guest('write -P 0x22 0 64k');
    server[how]();
    await job.setSpeed(0);
    await job.concluded;
    if (how === 'cut') {
      assert.equal(job.error, undefined);
      assert.ok(readFileSync(path).equals(Buffer.alloc(DISK_BYTES, 0x11)));
    } else assert.match(job.error ?? '', /^The copy differs from what was sent in 65536 bytes at 0,/);
  });

for (const [delay, loss, end] of [
  [0, 'lost', 'fails'],
  [0, 'lost', 'is cancelled'],
  [60, 'lost', 'is cancelled'],
  [0, 'not got', 'is cancelled'],
  [60, 'not got', 'is cancelled'],
] as const)
  test(`a bitmap that is always settled holds what the server has ${loss} of a backup that ${end}, reconnect-delay=${delay}`, async (t) => {
    const { bed, lose } = await linked(t, 'raw', delay);
    await bed.execute('block-dirty-bitmap-add', { node: 'S', name: 'bits' });
    await bed.guest(`write -P 0x12 0 ${DISK_BYTES}`);
    const how = { sync: 'bitmap', bitmap: 'bits', 'bitmap-mode': 'always' };
    const job = await start(bed, 'blockdev-backup', { ...SLOW, ...how });
    await untilCopied(bed, job);
    if (loss === 'lost') lose();
    if (end === 'fails') await job.setSpeed(0);
    else await bed.execute('block-job-cancel', { device: 'j', force: true });
    await job.concluded;
    const { doneBytes } = job.progress();
    assert.ok(doneBytes >= MiB);
    const [bitmap] = bed.engine.graph.node('S').dirtyBitmaps;
    assert.equal(bitmap?.dirtyBytes, loss === 'lost' ? DISK_BYTES : DISK_BYTES - doneBytes);
  });

for (const policy of POLICIES) {
  test(`backup: what the target's server has lost is copied again, where its errors are to ${policy}`, async (t) => {
    const { bed, path, lose } = await linked(t, 'raw');
    const job = await start(bed, 'blockdev-backup', { ...SLOW, 'on-target-error': policy });
    await untilCopied(bed, job);
    lose();
    await job.setSpeed(0);
    await toItsEnd(job);
    assert.equal(job.error, undefined);
    assert.ok(readFileSync(path).equals(Buffer.alloc(DISK_BYTES, 0x11)));
  });

  test(`backup: what its target's server has lost and a guest has changed since ends it, where errors are to ${policy}`, async (t) => {
    const { bed, lose } = await linked(t, 'raw');
    const job = await start(bed, 'blockdev-backup', { ...SLOW, 'on-target-error': policy });
    await untilCopied(bed, job);
    await bed.guest('write -P 0x22 0 64k');
    lose();
    await job.setSpeed(0);
    await toItsEnd(job);
    assert.equal(job.error, 'Input/output error');
  });

  for (const command of ['blockdev-backup', 'blockdev-mirror'])
    test(`${command}: a qcow2 target that its server has lost a part of ends it, where errors are to ${policy}`, async (t) => {
      const { bed, lose } = await linked(t, 'qcow2');
      const job = await start(bed, command, { ...SLOW, 'on-target-error': policy });
      await untilCopied(bed, job);
      lose();
      await job.setSpeed(0);
      await toItsEnd(job);
      assert.equal(job.error, 'Input/output error');
      assert.equal(job.wasReady, false);
    });

  test(`stream: what the node's server has lost ends it, where errors are to ${policy}`, async (t) => {
    const { bed, lose } = await linked(t, 'qcow2');
    await bed.execute('blockdev-snapshot', { node: 'S', overlay: 'N' });
    await bed.execute('block-stream', { 'job-id': 'j', device: 'N', ...SLOW, 'on-error': policy });
    const job = bed.engine.jobs.find('j');
    assert.ok(job);
    await untilCopied(bed, job);
    lose();
    await job.setSpeed(0);
    await toItsEnd(job);
    assert.equal(job.error, 'Input/output error');
    assert.deepEqual(await bed.layers(), ['N', 'S']);
    await assert.rejects(bed.engine.close(), /lost/);
  });

  test(`mirror: what the server has lost between the last flush and the pivot is copied again (${policy})`, async (t) => {
    const { bed, path, lose } = await linked(t, 'raw');
    const job = await start(bed, 'blockdev-mirror', { 'auto-finalize': false, 'on-target-error': policy });
    await bed.event('BLOCK_JOB_READY', 'j');
    await bed.execute('job-complete', { id: 'j' });
    while (job.status !== 'pending') await soon();
    // It goes to both sides, and is not flushed.
    await bed.guest('write -P 0x22 1M 64k');
    lose();
    await bed.execute('job-finalize', { id: 'j' });
    await job.concluded;
    assert.equal(job.error, undefined);
    assert.deepEqual(await bed.layers(), ['N']);
    await bed.guest('read -P 0x22 1M 64k');
    await bed.guest('flush');
    assert.ok(readFileSync(path).equals(readFileSync(bed.path('S'))));
  });
}
