import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { PATIENT_MS, withHeldClock } from '../kit/held-clock.js';
import { EngineBed } from './engine-bed.js';

const newBed = (context: TestContext): EngineBed =>
  new EngineBed(context, { host: withHeldClock(PATIENT_MS) });

/** Events that a step causes, in short; what is as in QEMU 7.2. */
async function eventsOf(bed: EngineBed, step: () => Promise<unknown>): Promise<string[]> {
  const before = bed.events.length;
  await step();
  return bed.events.slice(before).map(({ event, data }) => {
    const { id, status } = data as { id?: string; status?: string };
    return event === 'JOB_STATUS_CHANGE' ? `${id} ${status}` : event;
  });
}

/** A job that sleeps most of the time, since it is slow; and a disk E beside. */
async function slowJob(context: TestContext, command: string): Promise<EngineBed> {
  const bed = newBed(context);
  await bed.chain('A', 'B', 'C');
  await bed.image('E');
  await bed.image('F');
  const args = command === 'block-stream' ? { 'base-node': 'A' } : { target: 'E', sync: 'full' };
  await bed.execute(command, { device: 'C', 'job-id': 'j', speed: 65536, ...args });
  return bed;
}

const paused = ['j paused', 'j running'];
const addBitmap = { type: 'block-dirty-bitmap-add', data: { node: 'F', name: 'b' } };

test('stop and transactions let every job pause once, also those of other disks', async (t) => {
  const bed = await slowJob(t, 'block-stream');
  assert.deepEqual(await eventsOf(bed, () => bed.execute('transaction', { actions: [addBitmap] })), paused);
  assert.deepEqual(await eventsOf(bed, () => bed.execute('stop')), ['STOP', ...paused]);
  assert.deepEqual(await eventsOf(bed, () => bed.execute('cont')), ['RESUME']);
});

test('a ready job shows itself in standby', async (t) => {
  const bed = newBed(t);
  await bed.image('D');
  await bed.device('D');
  await bed.image('E');
  await bed.execute('blockdev-mirror', { device: 'D', target: 'E', 'job-id': 'j', sync: 'full' });
  await bed.event('BLOCK_JOB_READY', 'j');
  assert.deepEqual(await eventsOf(bed, () => bed.execute('stop')), ['STOP', 'j standby', 'j ready']);
  assert.deepEqual(await eventsOf(bed, () => bed.execute('cont')), ['RESUME']);
});

test('a job of its own disk pauses once more for a snapshot', async (t) => {
  const bed = await slowJob(t, 'blockdev-backup');
  assert.deepEqual(await eventsOf(bed, () => bed.snapshot('C', 'S')), [...paused, ...paused]);
  assert.deepEqual(await eventsOf(bed, () => bed.snapshot('F', 'G')), paused);
});

test('a snapshot that is refused pauses as one that is not', async (t) => {
  const bed = await slowJob(t, 'block-stream');
  const events = await eventsOf(bed, async () => {
    assert.match(
      await bed.snapshot('C', 'S').then(String, String),
      /busy: block device is in use by block job: stream/,
    );
  });
  assert.deepEqual(events, [...paused, ...paused]);
});

test('a second backup of a disk pauses the first while it is put in, and a filter that goes pauses only who is above', async (t) => {
  const bed = await slowJob(t, 'blockdev-backup');
  const second = { device: 'C', target: 'F', 'job-id': 'k', sync: 'full', speed: 65536 };
  const begun = ['k created', 'k running', 'k paused', 'k running'];
  const events = await eventsOf(bed, () => bed.execute('blockdev-backup', second));
  assert.deepEqual(events, [...paused, 'j paused', ...begun, 'j running']);
  // The filter of the first is above that of the second.
  const end = await eventsOf(bed, async () => {
    await bed.execute('block-job-cancel', { device: 'j' });
    await bed.event('BLOCK_JOB_CANCELLED', 'j');
  });
  assert.equal(end.includes('k paused'), false);
});
