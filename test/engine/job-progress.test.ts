import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

interface Case {
  name: string;
  command: string;
  args: JsonObject;
  /** In MiB, at the end. */
  data: number;
  zero: number;
  skipped: number;
}

/**
 * On a disk of 8 MiB: A holds data up to 4 MiB, B the second MiB, C the third, and zeroes in the fourth. D is empty.
 * The target T is new.
 */
const CASES: readonly Case[] = [
  { name: 'stream', command: 'block-stream', args: { device: 'D' }, data: 3, zero: 5, skipped: 0 },
  {
    name: 'stream onto a base',
    command: 'block-stream',
    args: { device: 'D', 'base-node': 'A' },
    ...{ data: 2, zero: 1, skipped: 5 },
  },
  {
    name: 'commit',
    command: 'block-commit',
    args: { device: 'D', 'top-node': 'C' },
    ...{ data: 2, zero: 1, skipped: 5 },
  },
  {
    name: 'active commit',
    command: 'block-commit',
    args: { device: 'D' },
    ...{ data: 2, zero: 1, skipped: 0 },
  },
  {
    name: 'mirror',
    command: 'blockdev-mirror',
    args: { device: 'D', target: 'T', sync: 'full' },
    ...{ data: 3, zero: 5, skipped: 0 },
  },
  {
    name: 'backup',
    command: 'blockdev-backup',
    args: { device: 'D', target: 'T', sync: 'full' },
    ...{ data: 3, zero: 5, skipped: 0 },
  },
  {
    name: 'backup of a top without data',
    command: 'blockdev-backup',
    args: { device: 'D', target: 'T', sync: 'top' },
    ...{ data: 0, zero: 0, skipped: 8 },
  },
];

for (const { name, command, args, data, zero, skipped } of CASES) {
  test(`the progress of a ${name} tells data, zeroes and what was skipped; queries tell the same`, async (t) => {
    const bed = new EngineBed(t);
    await bed.chain('A', 'B', 'C');
    await bed.guest('write -z 3M 1M');
    await bed.snapshot('C', 'D');
    await bed.image('T');
    const before = bed.engine.jobs.list().length;
    await bed.execute(command, { ...args, 'job-id': 'j', 'auto-dismiss': false, 'auto-finalize': false });
    assert.equal(bed.engine.jobs.list().length, before + 1);
    const job = bed.engine.jobs.find('j');
    assert.ok(job);
    const first = job.progress();
    assert.ok(first.remainingBytes + first.doneBytes <= DISK_BYTES);
    if (command === 'blockdev-mirror' || name === 'active commit') {
      await bed.event('BLOCK_JOB_READY', 'j');
      assert.equal(job.progress().phase, 'following');
      job.complete();
    }
    while (job.status !== 'pending') await new Promise((resolve) => setImmediate(resolve));
    const pending = job.progress();
    const { bytesPerSecond, ...amounts } = pending;
    const isBackup = command === 'blockdev-backup';
    assert.deepEqual(amounts, {
      phase: 'ending',
      doneBytes: (data + zero + (isBackup ? 0 : skipped)) * MiB,
      dataBytes: data * MiB,
      zeroBytes: zero * MiB,
      skippedBytes: skipped * MiB,
      remainingBytes: 0,
    });
    assert.equal(bytesPerSecond > 0, data > 0);
    assert.deepEqual(first, { ...first }, 'a value');
    const [ofJob] = (await bed.execute('query-jobs')) as JsonObject[];
    assert.deepEqual(
      [ofJob?.['current-progress'], ofJob?.['total-progress']],
      [pending.doneBytes, pending.doneBytes],
    );
    const [ofBlockJob] = (await bed.execute('query-block-jobs')) as JsonObject[];
    assert.deepEqual([ofBlockJob?.['offset'], ofBlockJob?.['len']], [pending.doneBytes, pending.doneBytes]);
    job.finalize();
    await job.concluded;
    assert.equal(job.progress().phase, 'over');
  });
}

test('the progress of a job that is held back shows what is left, and no speed', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('T');
  const backup = { device: 'A', target: 'T', sync: 'full', 'job-id': 'j', speed: 1 };
  await bed.execute('blockdev-backup', backup);
  const job = bed.engine.jobs.find('j');
  assert.ok(job);
  while (job.progress().doneBytes === 0) await new Promise((resolve) => setImmediate(resolve));
  const held = job.progress();
  assert.equal(held.phase, 'copying');
  assert.equal(held.doneBytes + held.remainingBytes, DISK_BYTES);
  assert.ok(held.remainingBytes > 0);
  job.setSpeed(0);
  await job.concluded;
  // What was read before is as it was.
  assert.ok(held.remainingBytes > 0);
  assert.equal(job.progress().remainingBytes, 0);
});

test('a speed is any int64, told exactly: clients that want no limit give the largest', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('copy');
  const most = 2n ** 63n - 2n ** 20n;
  const mirror = { 'job-id': 'm', device: 'A', target: 'copy', sync: 'full' };
  await bed.execute('blockdev-mirror', { ...mirror, speed: most, 'buf-size': 2n ** 62n });
  const ready = await bed.event('BLOCK_JOB_READY', 'm');
  assert.equal(ready['speed'], most);
  await bed.execute('block-job-set-speed', { device: 'm', speed: 2n ** 63n - 1n });
  const [job] = (await bed.execute('query-block-jobs')) as Array<{ speed: unknown }>;
  assert.equal(job?.speed, 2n ** 63n - 1n);
  await assert.rejects(bed.execute('block-job-set-speed', { device: 'm', speed: 2n ** 63n }), {
    message: "Invalid parameter type for 'speed', expected: integer",
  });
  await bed.execute('block-job-cancel', { device: 'm' });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'm'))['speed'], 2n ** 63n - 1n);
});

test('clients that asked for it are told the phases of a job, those of a mirror to its end; others nothing of them', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.image('T', { discard: 'unmap' });
  const mirror = { 'job-id': 'j', device: 'B', target: 'T', sync: 'full', 'auto-dismiss': false };
  await bed.execute('blockdev-mirror', mirror);
  await bed.event('BLOCK_JOB_READY', 'j');
  await bed.guest('write -P 7 6M 1M');
  const job = bed.engine.jobs.find('j');
  assert.ok(job);
  job.complete();
  await job.concluded;
  const asked = { takeDescriptor: () => undefined, hasExtensions: true };
  const plain = { ...asked, hasExtensions: false };
  const { registry } = bed.engine;
  const answer = async (command: string, caller: typeof asked): Promise<JsonObject> => {
    const [first] = (await registry.execute(command, {}, caller)) as unknown as JsonObject[];
    assert.ok(first);
    return first;
  };
  for (const query of ['query-jobs', 'query-block-jobs']) {
    assert.equal('x-progress' in (await answer(query, plain)), false);
    const told = (await answer(query, asked))['x-progress'] as JsonObject;
    assert.deepEqual(
      [told['phase'], told['percent'], told['left'], told['outlook']],
      ['pivot', 100, 0, 'in-step'],
    );
    const phases = told['phases'] as JsonObject[];
    assert.deepEqual(
      phases.map(({ phase, done, left, data, zero }) => [phase, done, left, data, zero]),
      [
        ['prepare', 0, 0, 0, 0],
        ['zero', DISK_BYTES, 0, 0, DISK_BYTES],
        ['copy', 4 * MiB, 0, 4 * MiB, 0],
        ['follow', MiB, 0, MiB, 0],
        ['pivot', 0, 0, 0, 0],
      ],
    );
  }
});
