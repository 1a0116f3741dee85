import assert from 'node:assert/strict';
import { get, type IncomingMessage } from 'node:http';
import { createServer, type Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import type { ServerState } from '../../src/web/messages.js';
import { scratch } from '../kit/program.js';
import { recorded } from '../view/recorded.js';
import { WebBed } from './web-bed.js';

interface Command {
  execute: string;
  id: number;
}

/** A monitor that greets, takes the first command, and answers all others as `lie` does. */
async function liar(
  t: TestContext,
  lie: (command: Command, socket: Socket) => void,
  { refusesExtensions = false } = {},
): Promise<string> {
  const path = `${scratch(t)}/liar.sock`;
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    let text = '';
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const command = JSON.parse(text.slice(0, end)) as Command;
        text = text.slice(end + 1);
        if (command.execute === 'qmp_capabilities' && refusesExtensions && 'arguments' in command)
          socket.write(
            `${JSON.stringify({ error: { class: 'GenericError', desc: 'no' }, id: command.id })}\n`,
          );
        else if (command.execute === 'qmp_capabilities')
          socket.write(`${JSON.stringify({ return: {}, id: command.id })}\n`);
        else lie(command, socket);
      }
    });
    socket.write('{"QMP": {"version": {"qemu": {"major": 9}}, "capabilities": []}}\n');
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return path;
}

async function watch(t: TestContext, path: string): Promise<WebBed> {
  const web = await WebBed.start(t, { servers: [{ name: 'liar', address: { type: 'unix', path } }] });
  await web.login();
  return web;
}

const send = (socket: Socket, message: object): void => void socket.write(`${JSON.stringify(message)}\n`);

const EVENTS = 4000;
const WRONG = [null, 7, 'x', true, [], {}, [[]], [null, 7, {}], { nodes: [{}], edges: [{}] }, { status: {} }];

test('answers of wrong types give a poor picture, and the page goes on', async (t) => {
  let count = 0;
  const path = await liar(t, ({ id }, socket) => send(socket, { return: WRONG[count++ % WRONG.length], id }));
  const web = await watch(t, path);
  let looks = 0;
  await web.events((event, data) => event === 'state' && 'view' in (data as ServerState) && ++looks === 3);
  for (const what of ['plan', 'map', 'points', 'heat', 'bitmap', 'beside']) {
    const body = {
      server: 'liar',
      verb: 'list',
      image: 'a',
      node: 'a',
      name: 'b',
      action: { kind: 'delete', image: 'a' },
    };
    const { status, text } = await web.ask(`/api/${what}`, body);
    assert.ok(status === 200 || status === 400 || status === 403, `${what}: ${String(status)} ${text}`);
    assert.doesNotMatch(text, /internal error|undefined/, what);
  }
});

test('no server but a livedisk is asked what a command would do, by a command that does it', async (t) => {
  const asked: string[] = [];
  const answers = recorded('qemu-chain');
  const path = await liar(
    t,
    ({ execute, id }, socket) => {
      asked.push(execute);
      send(socket, { return: answers[execute] ?? {}, id });
    },
    { refusesExtensions: true },
  );
  const web = await watch(t, path);
  const { status, text } = await web.ask('/api/plan', {
    server: 'liar',
    action: { kind: 'stream', image: 'D' },
  });
  assert.equal(status, 200, text);
  assert.match(text, /"execute":"block-stream"/);
  assert.ok(!asked.includes('block-stream'));
});

test('errors and events that are none break nothing', async (t) => {
  const odd = [
    { event: 7 },
    { event: 'X' },
    { event: 'X', timestamp: null, data: null },
    { event: 'JOB_STATUS_CHANGE', timestamp: 'now', data: [] },
    { event: 'x'.repeat(1000), timestamp: {}, data: 'y' },
  ];
  let count = 0;
  const path = await liar(t, ({ id }, socket) => {
    for (const event of odd) send(socket, event);
    const answers = [
      { error: null },
      { error: { class: 7 } },
      { error: 'no' },
      { return: [] },
      { return: [] },
    ];
    send(socket, { ...answers[count++ % answers.length], id });
    send(socket, { return: {}, id: 99999 });
  });
  const web = await watch(t, path);
  let states = 0;
  await web.events((event) => event === 'state' && ++states === 3);
  assert.equal((await web.ask('/')).status, 200);
});

for (const [what, lie] of [
  ['half an answer, and goes', (socket: Socket) => void socket.end('{"return": [')],
  ['what is no JSON', (socket: Socket) => void socket.write('{"return": [}\n')],
  ['brackets without end', (socket: Socket) => void socket.write('['.repeat(100_000))],
] as const)
  test(`a server that says ${what} is told of`, async (t) => {
    const web = await watch(t, await liar(t, (_, socket) => lie(socket)));
    await web.events((event, data) => event === 'state' && (data as ServerState).error !== undefined);
    assert.equal((await web.ask('/')).status, 200);
  });

test('an answer that is too long is not kept, and the page is served', async (t) => {
  const chunk = Buffer.alloc(1024 * 1024, 'a');
  const path = await liar(t, ({ execute }, socket) => {
    if (execute !== 'query-version') return;
    socket.write('{"return": "');
    const pour = (): void => {
      if (!socket.destroyed) socket.write(chunk, pour);
    };
    pour();
  });
  const web = await watch(t, path);
  await web.events((event, data) => event === 'state' && (data as ServerState).error !== undefined);
  assert.equal((await web.ask('/')).status, 200);
});

test('events without end, ten who do not read: what is kept is bounded, and the page is served', async (t) => {
  const data = { text: 'e'.repeat(50_000) };
  let sent = 0;
  const path = await liar(t, ({ id }, socket) => {
    send(socket, { return: [], id });
    const flood = (): void => {
      for (let i = 0; i < 20 && sent < EVENTS; i++, sent++)
        send(socket, { event: 'FLOOD', data, timestamp: { seconds: 1, microseconds: 0 } });
      if (sent < EVENTS && !socket.destroyed) setImmediate(flood);
    };
    if (sent === 0) flood();
  });
  const web = await watch(t, path);
  const { host, port } = web.url;
  const headers = { host, cookie: web.cookie };
  const viewers: IncomingMessage[] = await Promise.all(
    Array.from(
      { length: 10 },
      () =>
        new Promise<IncomingMessage>((resolve, reject) => {
          const path = '/api/events';
          get({ host: '127.0.0.1', port, path, headers }, (response) => resolve(response.pause())).on(
            'error',
            reject,
          );
        }),
    ),
  );
  while (sent < EVENTS) await new Promise((resolve) => setTimeout(resolve, 20));
  const { status, text } = await web.ask('/api/log');
  assert.equal(status, 200);
  assert.ok(text.length < 8 * 1024 * 1024, `${text.length} bytes are kept`);
  for (const viewer of viewers) viewer.destroy();
});

const PLAN = { words: ['w'], bytes: 1, seconds: 1, ends: [], invalid: [], users: [] };
const IMAGE = { disk: 'd', node: 'n', 'new-node-name': 'm', file: '/f' };
const POINT = { name: 'p', id: 'i', created: 1, state: 'usable', node: 'n', bytes: 1, disks: 1 };
const DISK = { disk: 'd', node: 'n', file: '/d', points: [POINT] };

/** Each is right but for one thing. */
const POINT_LIES: Readonly<Record<string, readonly unknown[]>> = {
  'x-point-list': [
    ...WRONG,
    { disks: [null], queue: [] },
    { disks: [{ ...DISK, points: {} }], queue: [] },
    { disks: [{ ...DISK, points: [{ ...POINT, name: { toString: 'x' } }] }], queue: [] },
    { disks: [{ ...DISK, points: [{ ...POINT, state: 'alive' }] }], queue: [] },
    { disks: [{ ...DISK, points: [{ ...POINT, created: 'now' }] }], queue: [] },
    { disks: [{ ...DISK, points: [{ ...POINT, why: [7] }] }], queue: [] },
    { disks: [DISK] },
  ],
  'x-point-create': [
    ...WRONG,
    { id: 'i', plan: PLAN, images: [{ ...IMAGE, file: 7 }], quiesced: false, deletes: [] },
    { id: 'i', plan: PLAN, images: [IMAGE], quiesced: false, deletes: [[]] },
    { id: 'i', plan: { ...PLAN, words: 'w' }, images: [IMAGE], quiesced: false, deletes: [] },
  ],
  'x-point-delete': [
    ...WRONG,
    { id: 'i', state: 'planned', plan: { ...PLAN, ends: [null] } },
    { id: 'i', state: 'planned', plan: { ...PLAN, bytes: -1 } },
  ],
  'x-point-revert': [...WRONG, { id: 'i', plan: PLAN, images: {} }, { id: 'i', plan: null, images: [] }],
  'x-query-write-heat': [...WRONG, { region: 1, 'half-life': 1, counted: 1, regions: [{ start: 'x' }] }],
};

for (const [command, lies] of Object.entries(POINT_LIES))
  test(`${command}: an answer that is none is told as that`, async (t) => {
    let lie: unknown;
    const path = await liar(t, ({ execute, id }, socket) => {
      if (execute === command) return send(socket, { return: lie, id });
      const right: Readonly<Record<string, unknown>> = {
        'query-commands': [{ name: 'x-point-list' }],
        'x-point-list': { disks: [DISK], queue: [] },
      };
      send(socket, { return: right[execute] ?? [], id });
    });
    const web = await watch(t, path);
    const isHeat = command === 'x-query-write-heat';
    const verb = isHeat ? '' : command.replace('x-point-', '');
    for (lie of lies)
      for (const more of verb === 'list' || isHeat ? [{}] : [{ 'dry-run': true }, {}]) {
        const body = {
          server: 'liar',
          ...(isHeat ? { node: 'n' } : { verb, ...more }),
          ...(verb !== 'list' && !isHeat && { name: 'p' }),
        };
        const { status, text } = await web.ask(isHeat ? '/api/heat' : '/api/points', body);
        const what = `${JSON.stringify(lie)}: ${text}`;
        assert.equal(status, 400, what);
        assert.match(text, new RegExp(`the server's answer to ${command} is none: `), what);
      }
  });

test('a right answer with more in it than is known is taken', async (t) => {
  const path = await liar(t, ({ execute, id }, socket) => {
    const right: Readonly<Record<string, unknown>> = {
      'query-commands': [{ name: 'x-point-list' }],
      'x-point-list': {
        disks: [{ ...DISK, colour: 'red', points: [{ ...POINT, mood: {} }] }],
        queue: [],
        next: 7,
      },
    };
    send(socket, { return: right[execute] ?? [], id });
  });
  const web = await watch(t, path);
  const { status, text } = await web.ask('/api/points', { server: 'liar', verb: 'list' });
  assert.deepEqual([status, JSON.parse(text)], [200, { disks: [DISK], queue: [] }]);
});

test('names that are of nothing there are told of, and a history that is none has no ends', async (t) => {
  const path = await liar(t, ({ execute, id }, socket) => {
    const right: Readonly<Record<string, unknown>> = {
      'query-commands': [{ name: 'x-point-list' }],
      'x-point-list': { disks: [DISK, DISK], queue: [] },
      'x-point-create': { id: 'i', plan: PLAN, images: [IMAGE, IMAGE], quiesced: true, deletes: ['a', 'a'] },
      'x-point-delete': { id: 'i', state: 'planned', plan: { ...PLAN, ends: ['x', 'x'] } },
      'x-point-revert': { id: 'i', plan: PLAN, images: [IMAGE, IMAGE] },
      'x-job-history': [{ id: 7 }],
    };
    send(socket, { return: right[execute] ?? [], id });
  });
  const web = await watch(t, path);
  for (const verb of ['create', 'delete', 'revert']) {
    const { status, text } = await web.ask('/api/points', {
      server: 'liar',
      verb,
      name: 'p',
      'dry-run': true,
    });
    assert.ok(status === 200 || (status === 400 && text.includes("there is no image 'n'")), text);
  }
  await web.events((event, data) => {
    const { view, ended } = data as ServerState;
    if (event === 'state' && view) assert.equal(ended, undefined);
    return event === 'state' && view !== undefined;
  });
});
