import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import type { Action, Plan } from '../../src/view/plan/types.js';
import { WebBed } from './web-bed.js';

interface Ran {
  undo: Action;
}

async function answer<T>(web: WebBed, path: string, action: object): Promise<T> {
  const { status, text } = await web.ask(`/api/${path}`, { server: 'disk', action });
  assert.equal(status, 200, text);
  return JSON.parse(text) as T;
}

const EXPORT = { kind: 'export', image: 'C', name: 'e', isWritable: false };

async function start(...parameters: Parameters<typeof WebBed.start>): Promise<WebBed> {
  const web = await WebBed.start(...parameters);
  await web.login();
  return web;
}

test('an export starts the NBD server that it needs, as its plan says, and taking it back ends both', async (t) => {
  const web = await start(t);
  const { exports } = web.bed.engine;
  const action = { ...EXPORT, file: 'nbd.sock' };
  const plan = await answer<Plan>(web, 'plan', action);
  const socket = web.bed.path('nbd.sock');
  assert.ok(plan.words.some((words) => words.includes(`started at the unix socket ${socket}`)));
  assert.deepEqual(
    plan.commands.map(({ execute }) => execute),
    ['nbd-server-start', 'block-export-add'],
  );
  const { undo } = await answer<Ran>(web, 'run', action);
  assert.ok(existsSync(socket));
  assert.deepEqual(
    exports.list().map(({ id }) => id),
    ['e'],
  );
  // Whoever exports a second one needs no other server, and has the first one stay.
  const [, refused] = await web.error('/api/plan', {
    server: 'disk',
    action: { ...EXPORT, name: 'f', file: 'other.sock' },
  });
  assert.match(refused, /an NBD server runs already/);
  const second = await answer<Ran>(web, 'run', { ...EXPORT, name: 'f' });
  await answer(web, 'run', undo);
  assert.equal(exports.isServing, true);
  await answer(web, 'run', second.undo);
  assert.equal(exports.isServing, true);
  await answer(web, 'run', { ...EXPORT, name: 'g' });
  await answer(web, 'run', { ...undo, name: 'g' });
  assert.equal(exports.isServing, false);
});

test('an export that is refused leaves no NBD server', async (t) => {
  const web = await start(t);
  const [status, text] = await web.error('/api/run', {
    server: 'disk',
    action: { ...EXPORT, isWritable: true, file: 'nbd.sock' },
  });
  assert.equal(status, 400);
  assert.match(text, /write/);
  assert.equal(web.bed.engine.exports.isServing, false);
});

test('what no query tells of the NBD server is told with what to do', async (t) => {
  const web = await start(t);
  const ask = { server: 'disk', action: EXPORT };
  assert.match((await web.error('/api/run', ask))[1], /NBD server not running\. Name a socket/);
  await web.bed.execute('nbd-server-start', {
    addr: { type: 'unix', data: { path: web.bed.path('own.sock') } },
  });
  const named = { server: 'disk', action: { ...EXPORT, file: 'nbd.sock' } };
  assert.match((await web.error('/api/run', named))[1], /NBD server already running\. Leave the socket/);
  assert.equal(web.bed.engine.exports.isServing, true);
});

test('what is there already is not overwritten, whatever is made', async (t) => {
  const web = await start(t);
  const path = web.bed.path('precious');
  writeFileSync(path, 'precious');
  for (const action of [
    { kind: 'snapshot', image: 'C', file: 'precious', node: 'D' },
    { kind: 'mirror', image: 'C', file: 'precious', node: 'D' },
    { kind: 'backup', image: 'C', file: 'precious' },
    { ...EXPORT, file: 'precious' },
  ])
    for (const what of ['plan', 'run']) {
      const [status, text] = await web.error(`/api/${what}`, { server: 'disk', action });
      assert.equal(status, 400);
      assert.match(text, /there is a file '.*precious' already\. Choose another name/);
    }
  assert.equal(readFileSync(path, 'utf8'), 'precious');
});
