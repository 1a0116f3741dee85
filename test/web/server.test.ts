import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { BlockError } from '../../src/base/error.js';
import { AllowedFiles } from '../../src/programs/web/allowed-files.js';
import type { Plan } from '../../src/view/plan/types.js';
import type { LogEntry, ServerState, ToldPlan } from '../../src/web/messages.js';
import type { JsonObject } from '../../src/schema/types.js';
import { scratch } from '../kit/program.js';
import { WebBed } from './web-bed.js';

test('a token is good once, leaves the address, and gives a cookie that scripts and other sites do not have', async (t) => {
  const web = await WebBed.start(t);
  assert.match(web.url.search, /^\?token=[\w-]{43}$/);
  assert.equal((await web.ask('/')).status, 401);
  assert.equal((await web.ask('/?token=wrong')).status, 401);
  for (const path of ['//', '//:', 'http://[', 'http://x:99999/'])
    assert.equal((await web.ask(path)).status, 400, path);
  const first = await web.ask(`/${web.url.search}`);
  assert.deepEqual([first.status, first.headers.location], [303, '/']);
  assert.match(
    first.headers['set-cookie']?.[0] ?? '',
    /^livedisk-\d+=[\w-]{43}; HttpOnly; SameSite=Strict; Path=\/$/,
  );
  assert.equal((await web.ask(`/${web.url.search}`)).status, 401);
  const cookie = first.headers['set-cookie']?.[0]?.split(';')[0];
  assert.equal((await web.ask('/', undefined, { cookie })).status, 200);
  const wrong = `${cookie?.slice(0, -1)}!`;
  assert.equal((await web.ask('/', undefined, { cookie: wrong })).status, 401);
  // Of a server at another port of this machine.
  assert.equal((await web.ask('/', undefined, { cookie: `${wrong}; ${cookie}` })).status, 200);
});

test('the address is good as a link of another site', async (t) => {
  const web = await WebBed.start(t);
  const { status, headers, text } = await web.ask(`/${web.url.search}`, undefined, {
    'sec-fetch-site': 'cross-site',
  });
  // A redirection would still be that site's, and the cookie is not sent for those.
  assert.equal(status, 200);
  assert.match(headers['set-cookie']?.[0] ?? '', /HttpOnly; SameSite=Strict/);
  assert.match(text, /<meta http-equiv="refresh" content="0;url=\/">/);
  assert.doesNotMatch(text, /token/);
});

test('tokens are not guessed at', async (t) => {
  const web = await WebBed.start(t);
  const tried = await Promise.all(Array.from({ length: 12 }, (_, i) => web.ask(`/?token=${i}`)));
  assert.deepEqual(tried.map(({ status }) => status).sort(), [...Array<number>(10).fill(401), 429, 429]);
  // Whoever has the right one is not kept out by who has not.
  assert.equal((await web.ask(`/${web.url.search}`)).status, 303);
  assert.equal((await web.ask(`/${web.url.search}`)).status, 401);
});

test('every answer has a strict content security policy', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  for (const path of ['/', '/nothing', '/api/log']) {
    const { headers } = await web.ask(path);
    const policy = String(headers['content-security-policy']);
    assert.match(policy, /default-src 'none'; script-src 'self'; style-src 'self'/);
    assert.doesNotMatch(policy, /unsafe|\*|http/);
    assert.equal(headers['x-content-type-options'], 'nosniff');
    assert.equal(headers['cache-control'], 'no-store');
    assert.equal(headers['access-control-allow-origin'], undefined);
  }
});

test('requests that other sites cause are turned away', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const plan = { server: 'disk', action: { kind: 'delete', image: 'B' } };
  assert.equal((await web.ask('/api/plan', plan)).status, 200);
  for (const [status, headers] of [
    [421, { host: 'evil.example' }],
    [421, { host: undefined }],
    [403, { origin: 'http://evil.example' }],
    [403, { origin: undefined }],
    [403, { origin: 'null' }],
    [403, { 'sec-fetch-site': 'cross-site' }],
    [415, { 'content-type': 'text/plain' }],
    [401, { cookie: undefined }],
  ] as ReadonlyArray<readonly [number, Record<string, string | undefined>]>) {
    const answer = await web.ask('/api/plan', plan, headers).catch(() => ({ status: 421 }));
    // Node itself turns a request without a Host away.
    if (!('host' in headers && headers['host'] === undefined && answer.status === 400))
      assert.equal(answer.status, status, JSON.stringify(headers));
  }
  assert.equal((await web.ask('/', undefined, { host: 'evil.example' })).status, 421);
  assert.equal((await web.ask('/api/log', undefined, { origin: 'http://evil.example' })).status, 403);
  // An address of this machine with another port is the same site: cookies come along, and no Origin with a picture's GET.
  for (const site of ['same-site', 'cross-site'])
    for (const path of ['/api/log', '/api/events'])
      assert.equal(
        (await web.ask(path, undefined, { 'sec-fetch-site': site })).status,
        403,
        `${site} ${path}`,
      );
  assert.equal((await web.ask('/', undefined, { 'sec-fetch-site': 'cross-site' })).status, 200);
  // Who asks for the head of the stream does not watch.
  assert.equal((await web.ask('/api/events', undefined, {}, 'HEAD')).status, 405);
  // What changes something is no GET.
  assert.equal((await web.ask('/api/run')).status, 404);
  assert.equal((await web.ask('/api/run', undefined, {}, 'PUT')).status, 405);
});

test('a plan is made, run and seen; what is wrong with one is told', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const action = { kind: 'snapshot', image: 'C', file: 'D.qcow2', node: 'D' };
  const plan = JSON.parse((await web.ask('/api/plan', { server: 'disk', action })).text) as Plan;
  assert.equal(plan.commands[0]?.arguments['snapshot-file'], web.bed.path('D.qcow2'));
  const seen = web.events((event, data: ServerState) => {
    return event === 'state' && data.view?.chains[0]?.images.join() === 'A,B,C,D';
  });
  const logged = web.events((event, data: LogEntry[]) => {
    return (
      event === 'log' &&
      data.some(({ kind, name }) => kind === 'command' && name === 'blockdev-snapshot-sync')
    );
  });
  assert.equal((await web.ask('/api/run', { server: 'disk', action })).status, 200);
  await Promise.all([seen, logged]);
  assert.match((await web.ask('/api/log')).text, /"name":"blockdev-snapshot-sync"/);
  for (const [body, told] of [
    [
      { server: 'disk', action: { ...action, image: 'D', file: 'E.qcow2', node: 'C' } },
      "there is a node 'C' already",
    ],
    [{ server: 'no', action }, 'there is no such server'],
    [{ server: 'disk', action: { kind: 'toString' } }, 'a kind that there is'],
    [
      { server: 'disk', action: { kind: 'snapshot', image: 'D', node: 'E' } },
      "Parameter 'action.file' is missing",
    ],
    [{ server: 'disk', action: { kind: 'resize', image: 'D', bytes: 'x' } }, 'action.bytes'],
  ] as const) {
    const [status, text] = await web.error('/api/plan', body);
    assert.equal(status, 400);
    assert.ok(text.includes(told), text);
  }
});

test('what was not told is not done: disks that have changed since are planned anew', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const planOf = async (action: object): Promise<ToldPlan> =>
    JSON.parse((await web.ask('/api/plan', { server: 'disk', action })).text) as ToldPlan;
  const run = async (action: object, gist: string): Promise<[number | undefined, string]> => {
    const { status, text } = await web.ask('/api/run', { server: 'disk', action, gist });
    return [status, text];
  };
  const bytes = (mebibytes: number): number => mebibytes * 1024 * 1024;
  const lengthOf = async ({ bed }: WebBed): Promise<unknown> =>
    ((await bed.execute('query-block')) as Array<{ inserted: { image: JsonObject } }>)[0]?.inserted.image[
      'virtual-size'
    ];
  // Told as a longer disk, it would be a shorter one by now.
  const longer = { kind: 'resize', image: 'C', bytes: bytes(16) };
  const { gist, invalid } = await planOf(longer);
  assert.deepEqual(invalid, []);
  await web.bed.execute('block_resize', { 'node-name': 'C', size: bytes(32) });
  const [status, text] = await run(longer, gist);
  assert.equal(status, 400);
  assert.match(text, /do something else than was told\. Look at the plan again/);
  assert.equal(await lengthOf(web), bytes(32));
  const again = await planOf(longer);
  assert.equal(again.invalid.length, 1);
  assert.equal((await run(longer, again.gist))[0], 200);
  // Layers that came in between would flow, too.
  const stream = { kind: 'stream', image: 'C' };
  const told = await planOf(stream);
  await web.bed.guest('write -P 9 0 2M');
  assert.equal((await planOf(stream)).gist, told.gist, 'what guests write is no other plan');
  await web.bed.execute('block-stream', { 'job-id': 's', device: 'C', 'base-node': 'A' });
  await web.bed.event('BLOCK_JOB_COMPLETED', 's');
  assert.equal((await run(stream, told.gist))[0], 400);
});

test('what takes a job back ends no other', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const run = async (action: object): Promise<{ jobId: string; undo: object }> =>
    JSON.parse((await web.ask('/api/run', { server: 'disk', action })).text) as {
      jobId: string;
      undo: object;
    };
  const first = await run({ kind: 'stream', image: 'C', base: 'A' });
  await web.bed.event('BLOCK_JOB_COMPLETED', first.jobId);
  const second = await run({ kind: 'stream', image: 'C' });
  assert.deepEqual(await web.error('/api/plan', { server: 'disk', action: first.undo }), [
    400,
    `there is no job '${first.jobId}'`,
  ]);
  await web.bed.event('BLOCK_JOB_COMPLETED', second.jobId);
});

test('of a livedisk a plan of a copy has the numbers that the server counts, and what it would refuse', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const planOf = async (action: object): Promise<Plan> =>
    JSON.parse((await web.ask('/api/plan', { server: 'disk', action })).text) as Plan;
  const backup = { kind: 'backup', image: 'C', file: 'copy.qcow2' };
  const counted = await planOf(backup);
  assert.deepEqual(counted.dryRun?.refused, []);
  assert.equal(counted.bytes, 4 * 1024 * 1024);
  assert.equal(counted.dryRun?.room?.path, web.bed.path('copy.qcow2'));
  await web.bed.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'C', 'snapshot-file': web.bed.path('D.qcow2'), 'snapshot-node-name': 'D' },
  });
  const commit = await planOf({ kind: 'commit', image: 'C', base: 'B' });
  assert.deepEqual(commit.dryRun?.refused, []);
  const resize = await planOf({ kind: 'resize', image: 'D', bytes: 16 * 1024 * 1024 });
  assert.equal(resize.dryRun, undefined);
});

test('whoever only looks changes nothing', async (t) => {
  const web = await WebBed.start(t, { isReadOnly: true, hasConsole: true });
  await web.login();
  const action = { kind: 'delete', image: 'B' };
  assert.equal((await web.ask('/api/plan', { server: 'disk', action })).status, 200);
  assert.deepEqual(await web.error('/api/run', { server: 'disk', action }), [
    403,
    'this page only looks (--read-only)',
  ]);
  assert.equal((await web.ask('/api/command', { server: 'disk', execute: 'query-jobs' })).status, 200);
  for (const execute of ['block-stream', 'quit', 'stop', 'query-jobs; quit', 'xquery-block'])
    assert.equal((await web.ask('/api/command', { server: 'disk', execute })).status, 403, execute);
  assert.deepEqual(await web.bed.layers(), ['C', 'B', 'A']);
});

test('the console is off, and reaches no further than the disks', async (t) => {
  const without = await WebBed.start(t);
  await without.login();
  assert.equal((await without.ask('/api/command', { server: 'disk', execute: 'query-jobs' })).status, 403);
  const web = await WebBed.start(t, { hasConsole: true });
  await web.login();
  const { text } = await web.ask('/api/command', { server: 'disk', execute: 'query-jobs' });
  assert.deepEqual(JSON.parse(text), { return: [] });
  for (const execute of [
    'human-monitor-command',
    'blockdev-add',
    'chardev-add',
    'quit',
    'drive-mirror',
    'object-add',
    'transaction',
  ])
    assert.equal((await web.ask('/api/command', { server: 'disk', execute })).status, 403, execute);
  for (const [execute, named] of [
    ['block-stream', 'backing-file'],
    ['block-commit', 'backing-file'],
    ['blockdev-mirror', 'x-persist'],
  ] as const) {
    const args = { device: 'disk', [named]: '/etc/shadow' };
    const body = { server: 'disk', execute, arguments: args };
    assert.equal((await web.ask('/api/command', body)).status, 403, named);
  }
  const [status, error] = await web.error('/api/command', {
    server: 'disk',
    execute: 'block-stream',
    arguments: { device: 'x' },
  });
  assert.deepEqual([status, error], [400, "Cannot find device='x' nor node-name='x'"]);
});

test('files outside the allowed folders are not named, by no way', (t) => {
  const folder = scratch(t);
  const [allowed, other] = [join(folder, 'allowed'), join(folder, 'other')];
  for (const path of [allowed, other, join(allowed, 'in')]) mkdirSync(path);
  symlinkSync(other, join(allowed, 'out'));
  symlinkSync(join(other, 'file'), join(allowed, 'link'));
  symlinkSync('/etc/passwd', join(allowed, 'passwd'));
  const files = new AllowedFiles([allowed]);
  assert.equal(files.find('x.qcow2'), join(allowed, 'x.qcow2'));
  assert.equal(files.find(join(allowed, 'in', 'x')), join(allowed, 'in', 'x'));
  assert.equal(files.find('in/../y'), join(allowed, 'y'));
  for (const name of [
    '../x',
    '/etc/passwd',
    'passwd',
    'link',
    'out/x',
    'in/../../other/x',
    'in/../..',
    '..',
    '',
    'json:{}/x',
    'a\0b',
    `${allowed}x/y`,
  ])
    assert.throws(() => files.find(name), /allow/, JSON.stringify(name));
  // In a folder of ours it is the name of a file, and a whole path, which no protocol is.
  assert.equal(files.find('nbd:h:1'), join(allowed, 'nbd:h:1'));
  assert.throws(() => new AllowedFiles([]).find('x'), /no file may be named/);
  assert.throws(
    () => files.findNew('y'.repeat(300)),
    (error) => error instanceof BlockError && /cannot be looked at: File name too long/.test(error.message),
  );
});

test('who asks too much waits, and bodies are bounded', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const [, text] = await web.error('/api/plan', { junk: 'x'.repeat(70_000) });
  assert.equal(text, 'what was sent is too long');
  const many = await Promise.all(Array.from({ length: 150 }, () => web.ask('/')));
  assert.ok(many.some(({ status }) => status === 429));
  assert.ok(many.some(({ status }) => status === 200));
});

test('a server that goes away and comes back is seen anew', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const notes: string[] = [];
  let viewsAfter = 0;
  await web.events((event, data) => {
    if (event === 'log')
      notes.push(...(data as LogEntry[]).filter(({ kind }) => kind === 'note').map(({ name }) => name));
    if (event !== 'state') return false;
    const { error, view } = data as ServerState;
    assert.equal(error, undefined);
    if (!notes.includes('disconnected')) web.hangUp();
    else if (view?.chains[0]?.images.join() === 'A,B,C') viewsAfter++;
    return notes.join() === 'connected,disconnected,connected' && viewsAfter > 0;
  });
});

test('monitors are held while somebody watches', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  assert.equal(web.connections, 0);
  await web.events((event) => event === 'state');
  assert.equal(web.connections, 1);
});

test('connections for one question are no news: numbers are asked for all day, and the log is for people', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const body = { server: 'disk', action: { kind: 'resize', image: 'C', bytes: 16 * 1024 * 1024 } };
  for (let i = 0; i < 3; i++) assert.equal((await web.ask('/api/plan', body)).status, 200);
  assert.ok(web.connections >= 3);
  assert.equal((await web.ask('/api/log')).text, '');
});

test('what a bitmap has as dirty is read by its name', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  await web.bed.execute('block-dirty-bitmap-add', { node: 'C', name: 'b', granularity: 65536 });
  await web.bed.guest('write 65536 512');
  const { text } = await web.ask('/api/bitmap', { server: 'disk', node: 'C', name: 'b' });
  assert.deepEqual(JSON.parse(text), { stretches: [{ start: 65536, lengthBytes: 65536 }], isCut: false });
  const [status, error] = await web.error('/api/bitmap', { server: 'disk', node: 'C', name: '<b>' });
  assert.deepEqual([status, error], [400, "Dirty bitmap '<b>' not found"]);
});
