import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../base/async.js';
import { errnoError } from '../base/error.js';
import { Graph } from '../block/graph.js';
import { memoryHost } from '../../test/kit/job-bench.js';
import { type EmitEvent, Job, type JobProperties } from './job.js';
import type { JobDriver } from './job-driver.js';
import type { WorkProgress } from './job-progress.js';

interface Bench {
  job: Job;
  events: Array<Parameters<EmitEvent>>;
  /** Names of the events, statuses in place of JOB_STATUS_CHANGE. */
  readonly story: () => unknown[];
}

const PROGRESS: WorkProgress = {
  doneBytes: 1,
  zeroBytes: 0,
  skippedBytes: 0,
  remainingBytes: 2,
};

/** A job that has done 1 of 3 bytes, and nothing to do but what `parts` say. */
function newJob(parts: Partial<JobDriver> = {}, properties: Partial<JobProperties> = {}): Bench {
  const events: Array<Parameters<EmitEvent>> = [];
  const job = new Job(
    { id: 'j', speed: 5, ...properties },
    new Graph(memoryHost()),
    (...event) => events.push(event),
    () => undefined,
  );
  const nothing = async (): Promise<void> => undefined;
  job.setDriver({ type: 'mirror', progress: () => PROGRESS, run: nothing, clean: nothing, ...parts });
  job.announce();
  const story = (): unknown[] =>
    events.map(([event, data]) => (event === 'JOB_STATUS_CHANGE' ? data['status'] : event));
  return { job, events, story };
}

/** The same, READY until it is told how to end. */
function readyJob(parts: Partial<JobDriver> = {}): Bench {
  const ended = deferred();
  const bench = newJob({
    run: async () => {
      bench.job.becomeReady();
      await ended.promise;
    },
    freeze: async () => ended.resolve(),
    complete: () => ended.resolve(),
    ...parts,
  });
  return bench;
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const DATA = { device: 'j', len: 3, offset: 1, speed: 5, type: 'mirror' };

test('the events of a job tell its length, offset and speed', async () => {
  const { job, events, story } = readyJob();
  job.start();
  job.complete();
  await job.concluded;
  const end = ['waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded', 'null'];
  assert.deepEqual(story(), ['created', 'running', 'ready', 'BLOCK_JOB_READY', ...end]);
  for (const name of ['BLOCK_JOB_READY', 'BLOCK_JOB_COMPLETED'])
    assert.deepEqual(events.find(([event]) => event === name)?.[1], DATA);
});

test('a job that waits to be finalized says so, and may still be cancelled', async () => {
  let prepared = false;
  const prepare = async (): Promise<void> => void (prepared = true);
  const { job, events, story } = newJob({ prepare }, { autoFinalize: false });
  assert.throws(() => job.finalize(), { message: /^Job 'j' in state 'created' cannot accept / });
  job.start();
  while (job.status !== 'pending') await turn();
  await turn();
  assert.deepEqual(events.at(-1), ['BLOCK_JOB_PENDING', { type: 'mirror', id: 'j' }]);
  await job.cancel({ force: false, softOnReady: true });
  await job.concluded;
  assert.deepEqual(story().slice(-4), ['aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null']);
  assert.equal(prepared, false);
});

test('a job that is not dismissed by itself stays, and tells its error', async () => {
  const failing = async (): Promise<void> => {
    throw errnoError('ENOSPC');
  };
  const { job, events } = newJob({ clean: failing }, { autoDismiss: false });
  job.start();
  await job.concluded;
  const error = 'No space left on device';
  assert.deepEqual(events.find(([event]) => event === 'BLOCK_JOB_COMPLETED')?.[1], { ...DATA, error });
  assert.equal(job.blockJobInfo()['error'], error);
  assert.deepEqual(job.jobInfo(), {
    ...{ id: 'j', type: 'mirror', status: 'concluded', 'current-progress': 1, 'total-progress': 3, error },
  });
  job.dismiss();
  assert.equal(job.status, 'null');
});

test('a cancelled job that stays tells that it was cancelled; its event has no error', async () => {
  const { job, events } = newJob({}, { autoDismiss: false, autoFinalize: false });
  job.start();
  await job.cancel({ force: true, softOnReady: false });
  await job.concluded;
  assert.equal(job.jobInfo()['error'], 'Operation canceled');
  assert.deepEqual(events.find(([event]) => event === 'BLOCK_JOB_CANCELLED')?.[1], DATA);
});

test('a request that fails is told once, with what it was; the job ends with the text of its errno', async () => {
  const { job, events } = newJob({
    run: async () => {
      const inner = job.ioError('write', errnoError('ENOSPC', "Could not write 'x'"));
      throw job.ioError('read', inner);
    },
  });
  job.start();
  await job.concluded;
  const told = events.filter(([event]) => event === 'BLOCK_JOB_ERROR').map(([, data]) => data);
  assert.deepEqual(told, [{ device: 'j', operation: 'write', action: 'report' }]);
  assert.equal(job.error, 'No space left on device');
});

test('a paused job is not paused again, nor softly cancelled, and runs on for a forced cancel', async () => {
  const { job, story } = newJob({
    run: async () => {
      for (;;) {
        await job.pace.checkpoint(() => undefined);
        await turn();
      }
    },
  });
  job.start();
  job.pause();
  assert.throws(() => job.pause(), { message: 'Job is already paused' });
  const paused = "The block job for device 'j' is currently paused";
  await assert.rejects(job.cancel({ force: false, softOnReady: true }), { message: paused });
  while (job.status !== 'paused') await turn();
  assert.deepEqual([job.blockJobInfo()['paused'], job.blockJobInfo()['busy']], [true, false]);
  await job.cancel({ force: true, softOnReady: true });
  assert.equal(job.blockJobInfo()['paused'], false);
  await job.concluded;
  assert.deepEqual(story().slice(2), [
    'paused', 'running', 'aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null',
  ]); // prettier-ignore
});

test('a READY job is told once how to end', async () => {
  const told: string[] = [];
  const held = deferred();
  const run = async (): Promise<void> => {
    cancelled.job.becomeReady();
    await held.promise;
  };
  const freeze = async (): Promise<void> => void told.push('freeze');
  const complete = (): void => void told.push('complete');
  const cannot = { message: "The active block job 'j' cannot be completed" };
  const cancelled: Bench = newJob({ run, freeze, complete });
  cancelled.job.start();
  await cancelled.job.cancel({ force: false, softOnReady: true });
  await cancelled.job.cancel({ force: false, softOnReady: true });
  assert.throws(() => cancelled.job.complete(), cannot);
  assert.deepEqual(told, ['freeze']);
  held.resolve();
  await cancelled.job.concluded;

  const completed = readyJob({ complete });
  completed.job.start();
  completed.job.complete();
  completed.job.complete();
  assert.deepEqual(told, ['freeze', 'complete']);
  void completed.job.cancel({ force: true, softOnReady: true });
  assert.throws(() => completed.job.complete(), cannot);
});

test('a job in standby is still ready', async () => {
  const { job } = readyJob();
  job.start();
  job.pause();
  const resting = job.pace.pausePoint();
  assert.equal(job.status, 'standby');
  assert.deepEqual([job.isReady, job.blockJobInfo()['ready']], [true, true]);
  job.resume();
  await resting;
  assert.equal(job.status, 'ready');
});

test('a job that is to rest or to end does not go to sleep first', { timeout: 60_000 }, async () => {
  for (const wake of [
    (job: Job): void => job.pause(),
    (job: Job): void => job.pace.drainBegin(),
    (job: Job): void => void job.cancel({ force: true, softOnReady: false }),
  ]) {
    const { job } = newJob({ run: () => new Promise(() => undefined) });
    job.start();
    wake(job);
    await job.pace.sleep(60_000);
  }
});

test(
  'a new speed takes effect at once, also for a job that waits for its turn',
  { timeout: 60_000 },
  async () => {
    const { job } = newJob({
      run: async () => {
        job.limit.spend(1000);
        assert.equal(job.pace.needsCheckpoint, true);
        await job.pace.checkpoint(() => undefined);
      },
    });
    job.start();
    await turn();
    assert.equal(job.blockJobInfo()['busy'], false);
    assert.throws(() => job.setSpeed(-1), { message: "Parameter 'speed' expects a non-negative value" });
    assert.equal(job.limit.bytesPerSecond, 5);
    job.setSpeed(1000_000);
    await job.concluded;
    assert.equal(job.error, undefined);
  },
);

test('a job in a section of its own does not work while another section holds it', async () => {
  const { job } = newJob({ run: () => new Promise(() => undefined) });
  job.start();
  job.pace.rest();
  job.pace.drainBegin();
  let isAwake = false;
  const waking = job.pace.wakeInSection().then(() => (isAwake = true));
  await turn();
  assert.deepEqual([isAwake, job.blockJobInfo()['busy']], [false, false]);
  job.pace.drainEnd();
  await waking;
  assert.equal(job.blockJobInfo()['busy'], true);
});

test('a job that is started in a drained section rests before it does anything', async () => {
  let isWorking = false;
  const { job } = newJob({
    run: async () => {
      isWorking = true;
    },
  });
  job.pace.drainBegin();
  job.start();
  assert.deepEqual([job.status, job.blockJobInfo()['busy']], ['paused', false]);
  await turn();
  assert.equal(isWorking, false);
  job.pace.drainEnd();
  await job.concluded;
  assert.equal(isWorking, true);
});

test('a job that is to rest does so when its requests have landed, not earlier', async () => {
  const { job } = newJob({ run: () => new Promise(() => undefined) });
  job.start();
  job.pause();
  const landed = deferred();
  const checked = job.pace.checkpoint(() => landed.promise);
  await turn();
  assert.deepEqual([job.status, job.blockJobInfo()['busy']], ['running', true]);
  landed.resolve();
  await turn();
  assert.deepEqual([job.status, job.blockJobInfo()['busy']], ['paused', false]);
  job.resume();
  await checked;
});

test('a job that has worked for a while lets others run', async () => {
  const { job } = newJob({ run: () => new Promise(() => undefined) }, { speed: 0 });
  job.start();
  let hasRun = false;
  setImmediate(() => (hasRun = true));
  const began = performance.now();
  while (performance.now() - began < 10);
  assert.equal(job.pace.needsCheckpoint, true);
  await job.pace.checkpoint(() => undefined);
  assert.equal(hasRun, true);
});
