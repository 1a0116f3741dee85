import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { AllowedFiles } from '../../src/programs/web/allowed-files.js';
import { imageOf, type View } from '../../src/view/model.js';
import type { Action } from '../../src/view/plan/types.js';
import type { LogEntry, PointList, PointPlan, ServerState } from '../../src/web/messages.js';
import { WebBed } from './web-bed.js';

async function loggedIn(t: TestContext, options: Parameters<typeof WebBed.start>[1] = {}): Promise<WebBed> {
  const web = await WebBed.start(t, options);
  await web.login();
  return web;
}

async function ask<T>(web: WebBed, path: string, body: object): Promise<T> {
  const { status, text } = await web.ask(path, { server: 'disk', ...body });
  assert.equal(status, 200, text);
  return JSON.parse(text) as T;
}

async function names(web: WebBed): Promise<string[]> {
  const { disks } = await ask<PointList>(web, '/api/points', { verb: 'list' });
  return disks.flatMap(({ points }) => points.map(({ name, state }) => `${name} ${state}`));
}

/** Images of the disk, base first. */
const diskOf = ({ chains, users }: View): readonly string[] => {
  const top = users.find(({ kind }) => kind === 'device')?.imageId;
  return chains.find(({ images }) => images.at(-1) === top)?.images ?? [];
};

/** Those without a name of their own count as files. */
const filesOf = (view: View): string[] =>
  diskOf(view).map((id) => (imageOf(view, id)?.filename ?? '').replace(/^.*\//, ''));

test('a point is made, listed, and deleted, as the plans say', async (t) => {
  const web = await loggedIn(t);
  const plan = await ask<PointPlan>(web, '/api/points', { verb: 'create', name: 'monday', 'dry-run': true });
  assert.deepEqual(diskOf(plan.before), ['A', 'B', 'C']);
  assert.match(plan.plan.words.join(' '), /\[C\] keeps what the disk holds at this moment/);
  assert.deepEqual(await names(web), []);
  await ask(web, '/api/points', { verb: 'create', name: 'monday' });
  assert.deepEqual(await names(web), ['monday usable']);
  const deletion = await ask<PointPlan>(web, '/api/points', {
    verb: 'delete',
    name: 'monday',
    'dry-run': true,
  });
  assert.deepEqual(filesOf(deletion.before), filesOf(plan.after));
  const deleted = web.events(
    (event, data: LogEntry[]) => event === 'log' && data.some(({ name }) => name === 'point deleted'),
  );
  await ask(web, '/api/points', { verb: 'delete', name: 'monday' });
  await deleted;
  assert.deepEqual(await names(web), []);
  await web.events((event, { view }: ServerState) => {
    return event === 'state' && view !== undefined && filesOf(view).join() === filesOf(deletion.after).join();
  });
});

test('a disk goes back to a point, as its plan says', async (t) => {
  const web = await loggedIn(t);
  await ask(web, '/api/points', { verb: 'create', name: 'monday' });
  assert.match(
    (await web.error('/api/points', { server: 'disk', verb: 'revert', name: 'monday' }))[1],
    /guest/,
  );
  await web.bed.execute('nbd-server-start', {
    addr: { type: 'unix', data: { path: web.bed.path('nbd') } },
  });
  const { disks } = await ask<PointList>(web, '/api/points', { verb: 'list' });
  const node = disks[0]?.node ?? '';
  await web.bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': node });
  await web.bed.execute('device_del', { id: 'virtio0' });
  const plan = await ask<PointPlan>(web, '/api/points', { verb: 'revert', name: 'monday', 'dry-run': true });
  assert.deepEqual(plan.plan.users, ['e']);
  await ask(web, '/api/points', { verb: 'revert', name: 'monday' });
  const exported = ({ users, chains }: View): readonly string[] | undefined => {
    const { imageId } = users.find(({ id }) => id === 'export:e') ?? {};
    return chains.find(({ images }) => images.at(-1) === imageId)?.images;
  };
  const after = exported(plan.after);
  assert.equal(after?.length, 4);
  await web.events((event, { view }: ServerState) => {
    return event === 'state' && view !== undefined && exported(view)?.slice(0, 3).join() === 'A,B,C';
  });
});

test('new images are called as the plan has shown them', async (t) => {
  const web = await loggedIn(t);
  const made = async (verb: string, more: object): Promise<PointPlan> => {
    const plan = await ask<PointPlan>(web, '/api/points', { verb, ...more, 'dry-run': true });
    await ask(web, '/api/points', { verb, ...more, called: plan.called });
    return plan;
  };
  const top = async (): Promise<string | undefined> => (await web.bed.layers())[0];
  const create = await made('create', { name: 'monday' });
  assert.ok(imageOf(create.after, create.called[0]?.['new-node-name']));
  assert.equal(await top(), create.called[0]?.['new-node-name']);
  await web.bed.execute('device_del', { id: 'virtio0' });
  await web.bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: web.bed.path('nbd') } } });
  const node = create.called[0]?.['new-node-name'] ?? '';
  await web.bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': node });
  const revert = await made('revert', { name: 'monday' });
  assert.ok(imageOf(revert.after, revert.called[0]?.['new-node-name']));
  const { disks } = await ask<PointList>(web, '/api/points', { verb: 'list' });
  assert.ok(
    disks.some((disk) => disk.node === revert.called[0]?.['new-node-name']),
    JSON.stringify(disks),
  );
  // One that is taken meanwhile is not taken twice.
  const [status] = await web.error('/api/points', {
    ...{
      server: 'disk',
      verb: 'create',
      name: 'x',
      called: [{ node: revert.called[0]?.['new-node-name'], 'new-node-name': 'A' }],
    },
  });
  assert.equal(status, 400);
});

test('points are made where files may be named alone, and not by who only looks', async (t) => {
  const shut = await loggedIn(t, { allowFile: async (name) => new AllowedFiles([]).find(name) });
  const body = { server: 'disk', verb: 'create', name: 'monday' };
  assert.equal((await shut.ask('/api/points', body)).status, 403);
  assert.deepEqual(await shut.bed.layers(), ['C', 'B', 'A']);
  const looking = await loggedIn(t, { isReadOnly: true });
  await ask(looking, '/api/points', { ...body, 'dry-run': true });
  assert.equal((await looking.ask('/api/points', body)).status, 403);
  assert.deepEqual(await looking.bed.layers(), ['C', 'B', 'A']);
});

test('what is wrong with a request for points is told', async (t) => {
  const web = await loggedIn(t);
  for (const [body, told] of [
    [{ verb: 'create', name: '../x' }, 'a letter or digit'],
    [{ verb: 'create', name: '<b>' }, 'a letter or digit'],
    [{ verb: 'delete', name: 'none' }, 'none'],
    [{ verb: 'undelete' }, "Parameter 'verb' does not accept value 'undelete'"],
    [{ verb: 'create', name: 'x', quiesce: 'no-agent.sock' }, 'no-agent.sock'],
    [{ verb: 'create', name: 'x', keep: 0 }, 'keep is at least 1'],
    [{ verb: 'delete', name: 'x', keep: 1 }, 'are for a point that is made'],
  ] as const) {
    const [status, text] = await web.error('/api/points', { server: 'disk', ...body });
    assert.equal(status, 400, text);
    assert.ok(text.includes(told), text);
  }
  const [status, text] = await web.error('/api/points', {
    ...{ server: 'disk', verb: 'create', name: 'x', quiesce: '/etc/x' },
  });
  assert.deepEqual([status, text.split(' gave')[0]], [403, "'/etc/x' is not in a folder that --allow"]);
  assert.deepEqual(await web.bed.layers(), ['C', 'B', 'A']);
});

test('a point that is made lets the oldest go, which is told first', async (t) => {
  const web = await loggedIn(t);
  const make = (name: string, more: object = {}): Promise<PointPlan> =>
    ask(web, '/api/points', { verb: 'create', name, ...more });
  for (const name of ['one', 'two']) await make(name);
  assert.deepEqual((await make('three', { keep: 2, 'dry-run': true })).deletes, ['one']);
  await make('three', { keep: 2 });
  while (!web.bed.events.some(({ event }) => event === 'x-point-deleted'))
    await new Promise((resolve) => setImmediate(resolve));
  const { disks } = await ask<PointList>(web, '/api/points', { verb: 'list' });
  assert.deepEqual(
    disks[0]?.points.map(({ name, state }) => `${name} ${state}`),
    ['two usable', 'three usable'],
  );
});

test('what was done is taken back by what the answer names, until it cannot be', async (t) => {
  const web = await loggedIn(t);
  const run = async (action: Action): Promise<Action | undefined> =>
    (await ask<{ undo?: Action }>(web, '/api/run', { action })).undo;
  const snapshot = (image: string, node: string): Action => ({
    ...{ kind: 'snapshot', image, node },
    file: `${node}.qcow2`,
  });
  const undo = await run(snapshot('C', 'D'));
  assert.deepEqual(undo, { kind: 'commit', image: 'D', base: 'C' });
  assert.ok(undo);
  const ready = web.bed.event('BLOCK_JOB_READY', 'commit0');
  const cancel = await run(undo);
  await ready;
  await run({ kind: 'job', job: 'commit0', verb: 'complete' });
  await web.bed.event('BLOCK_JOB_COMPLETED', 'commit0');
  assert.deepEqual(await web.bed.layers(), ['C', 'B', 'A']);
  for (const [late, told] of [
    [cancel, "there is no job 'commit0'"],
    [undo, "there is no image 'D'"],
  ] as const)
    assert.deepEqual(await web.error('/api/plan', { server: 'disk', action: late }), [400, told]);
});
