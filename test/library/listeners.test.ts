import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import type { Engine, EngineEvent } from '../../src/index.js';
import { MAX_WAITING_EVENTS } from '../../src/base/limits.js';
import { engineWithDisk, MiB } from './library-bed.js';

async function overlay(engine: Engine, folder: string): Promise<void> {
  const disk = await engine.openDisk('disk', { writable: true });
  await disk.write(0, Buffer.alloc(4 * MiB, 5));
  await disk.close();
  await engine.addDevice('disk', { id: 'v', endpoint: { type: 'unix', path: join(folder, 's') } });
  await engine.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'disk', 'snapshot-file': join(folder, 'o.qcow2'), 'snapshot-node-name': 'o' },
  });
}

for (const [how, listener] of [
  ['throws', (name: string) => assert.fail(`bug at ${name}`)],
  ['rejects', async (name: string) => assert.fail(`bug at ${name}`)],
] as const) {
  test(`a listener that ${how} is reported, and the engine works on`, async (t) => {
    const reported: unknown[] = [];
    const { engine, folder } = await engineWithDisk(t, {
      onUnexpectedError: (error) => reported.push(error),
    });
    const seen: string[] = [];
    engine.onEvent(listener);
    engine.onEvent((name) => void seen.push(name));
    await overlay(engine, folder);
    const job = await engine.start('block-stream', { device: 'o' });
    await job.result();
    assert.equal(job.status, 'null');
    assert.equal(engine.jobs.list().length, 0);
    assert.equal(reported.length, seen.length);
    assert.ok(seen.includes('BLOCK_JOB_COMPLETED'));
    assert.match(String(reported[0]), /bug at JOB_STATUS_CHANGE/);
    await engine.execute('query-jobs');
    await engine.close();
  });
}

test('without a reporter, what a listener throws is a warning of Node', async (t) => {
  const { engine, folder } = await engineWithDisk(t);
  const warned = new Promise<Error>((resolve) => process.once('warning', resolve));
  engine.onEvent(() => assert.fail('bug'));
  await overlay(engine, folder);
  await (await engine.start('block-stream', { device: 'o' })).result();
  assert.equal((await warned).message, 'bug');
});

test('what prints, or is told of errors, cannot hurt the engine either', async (t) => {
  const { engine, folder } = await engineWithDisk(t, {
    print: () => assert.fail('bug of print'),
    onUnexpectedError: () => assert.fail('bug of the reporter'),
  });
  const warned = new Promise<Error>((resolve) => process.once('warning', resolve));
  await overlay(engine, folder);
  await (await engine.start('block-stream', { device: 'o' })).result();
  assert.equal((await warned).message, 'bug of the reporter');
});

test('a listener that ends itself, or another, does so from the next event on', async (t) => {
  const { engine } = await engineWithDisk(t);
  const seen: string[] = [];
  const stop = engine.onEvent(() => {
    seen.push('a');
    stop();
  });
  engine.onEvent(() => void seen.push('b'));
  for (let i = 0; i < 2; i++) engine.emit('STOP', {});
  assert.deepEqual(seen, ['a', 'b', 'b']);
});

async function failing(t: TestContext): Promise<Engine> {
  const { engine, folder } = await engineWithDisk(t);
  await engine.createImage({ filename: join(folder, 't'), format: 'raw', sizeBytes: 8 * MiB });
  await engine.addNode({
    ...{ driver: 'blkdebug', 'node-name': 'target' },
    image: { driver: 'file', filename: join(folder, 't') },
    'inject-error': [{ event: 'none', iotype: 'write', errno: 28 }],
  });
  await overlay(engine, folder);
  return engine;
}

test("a job's failure is its result", async (t) => {
  const engine = await failing(t);
  const job = await engine.start('blockdev-backup', { device: 'o', target: 'target', sync: 'full' });
  const failure = {
    name: 'BlockError',
    kind: 'no-space',
    errno: 'ENOSPC',
    message: 'No space left on device',
  };
  await assert.rejects(job.result(), failure);
  await assert.rejects(job.result(), failure);
  await job.concluded;
  await assert.rejects(engine.start('block-stream', { device: 'nothing' }), { kind: 'not-found' });
});

test('a job is cancelled by a signal, also by one that was given before', async (t) => {
  const { engine, folder } = await engineWithDisk(t);
  await overlay(engine, folder);
  for (const early of [false, true]) {
    const controller = new AbortController();
    if (early) controller.abort(new Error('enough'));
    const job = await engine.start('block-stream', { device: 'o', speed: 1, 'job-id': 'mine' });
    const result = job.result({ signal: controller.signal });
    controller.abort(new Error('enough'));
    await assert.rejects(result, (error: Error) => {
      assert.equal((error as { kind?: string }).kind, 'cancelled');
      assert.equal((error.cause as Error).message, 'enough');
      return true;
    });
    assert.equal(engine.jobs.find('mine'), undefined);
  }
});

test('events are taken one after the other, those asked for, until the engine closes', async (t) => {
  const { engine, folder } = await engineWithDisk(t);
  await overlay(engine, folder);
  const all = engine.events();
  const mine = engine.events({
    only: ['JOB_STATUS_CHANGE'],
    where: ({ data }) => data.id === 'job-a' && data.status !== 'null',
  });
  const ended = engine.events({ only: ['BLOCK_JOB_COMPLETED'] });
  await (await engine.start('block-stream', { device: 'o', 'job-id': 'job-a' })).result();
  for await (const event of ended) {
    assert.equal(event.data.device, 'job-a');
    assert.equal(event.data.error, undefined);
    break;
  }
  await engine.close();
  const statuses: string[] = [];
  for await (const { data } of mine) statuses.push(data.status);
  assert.deepEqual(statuses, ['created', 'running', 'waiting', 'pending', 'concluded']);
  const seen: EngineEvent[] = [];
  for await (const event of all) seen.push(event);
  assert.equal(seen.length, 7);
  assert.deepEqual(await ended.next(), { value: undefined, done: true });
});

test('an iterator of events ends with its signal, and with an error when nobody takes them', async (t) => {
  const { engine } = await engineWithDisk(t);
  const controller = new AbortController();
  const aborted = engine.events({ signal: controller.signal });
  const waiting = aborted.next();
  controller.abort();
  assert.deepEqual(await waiting, { value: undefined, done: true });
  const idle = engine.events();
  for (let i = 0; i <= MAX_WAITING_EVENTS; i++) engine.emit('STOP', {});
  let taken = 0;
  await assert.rejects(
    async () => {
      for await (const _ of idle) taken++;
    },
    { kind: 'limit' },
  );
  assert.equal(taken, MAX_WAITING_EVENTS);
  assert.throws(() => engine.events({ only: ['NOTHING' as 'STOP'] }), { kind: 'invalid' });
});
