import assert from 'node:assert/strict';
import { createServer, type Socket } from 'node:net';
import { test, type TestContext } from 'node:test';
import { scratch } from '../kit/program.js';
import { recorded } from '../view/recorded.js';
import { WebBed } from './web-bed.js';

interface Told {
  execute: string;
  arguments?: Record<string, unknown>;
  id: number;
}

/** A server of the chain A <-- ... <-- D; `take` hears what would change it, and says whether to answer. */
async function chainServer(
  t: TestContext,
  path: string,
  take: (told: Told, socket: Socket, answer: () => void) => boolean,
  more: Readonly<Record<string, unknown>> = {},
): Promise<void> {
  const answers = { ...recorded('qemu-chain'), ...more };
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    let text = '';
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const told = JSON.parse(text.slice(0, end)) as Told;
        text = text.slice(end + 1);
        const { execute, id } = told;
        const answer = (): void =>
          void socket.write(`${JSON.stringify({ return: answers[execute] ?? {}, id })}\n`);
        const isPlan = told.arguments?.['dry-run'] === true;
        if (/query|qmp_/.test(execute) || isPlan || take(told, socket, answer)) answer();
      }
    });
    const version = { qemu: { major: 10, minor: 0, micro: 0 }, package: '' };
    socket.write(`${JSON.stringify({ QMP: { version, capabilities: [] } })}\n`);
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
}

/** Goes away, without an answer, when it is sent a command; another comes at once. */
async function goesAt(
  t: TestContext,
  path: string,
  command: string,
  more: Readonly<Record<string, unknown>> = {},
): Promise<string[]> {
  const sent: string[] = [];
  const take = ({ execute }: Told, socket: Socket): boolean => {
    sent.push(execute);
    if (execute === command) socket.destroy();
    return execute !== command;
  };
  await chainServer(t, path, take, more);
  return sent;
}

const AMID = /^server went away in the midst of it\. What it was asked last may have been done/;

for (const [command, expected] of [
  ['nbd-server-start', ['nbd-server-start']],
  ['block-export-add', ['nbd-server-start', 'block-export-add']],
] as const)
  test(`a server that goes at ${command} is told of, and nothing of its plan is sent to the next one`, async (t) => {
    const path = `${scratch(t)}/goes.sock`;
    const sent = await goesAt(t, path, command);
    const web = await WebBed.start(t, { servers: [{ name: 'server', address: { type: 'unix', path } }] });
    await web.login();
    const action = { kind: 'export', image: 'D', name: 'e', isWritable: false, file: web.bed.path('nbd') };
    const [status, error] = await web.error('/api/run', { server: 'server', action });
    assert.equal(status, 400);
    assert.match(error, AMID);
    // Whoever is asked now is another.
    assert.equal((await web.ask('/api/plan', { server: 'server', action })).status, 200);
    assert.deepEqual(sent, expected);
  });

const PLAN = { words: ['w'], bytes: 1, seconds: 1, ends: [], invalid: [], users: [] };

for (const [verb, answer] of [
  ['create', { id: 'i', plan: PLAN, images: [], quiesced: false, deletes: [] }],
  ['revert', { id: 'i', plan: PLAN, images: [] }],
  ['delete', { id: 'i', state: 'planned', plan: PLAN }],
] as const)
  test(`a server that goes while a point is asked for (${verb}) is told of in the same words`, async (t) => {
    const path = `${scratch(t)}/goes.sock`;
    const command = `x-point-${verb}`;
    const commands = [{ name: 'x-point-list' }];
    const sent = await goesAt(t, path, command, { 'query-commands': commands, [command]: answer });
    const web = await WebBed.start(t, { servers: [{ name: 'server', address: { type: 'unix', path } }] });
    await web.login();
    const [status, error] = await web.error('/api/points', { server: 'server', verb, name: 'monday' });
    assert.equal(status, 400);
    assert.match(error, AMID);
    assert.deepEqual(sent, [command]);
  });

test('a plan that is under way when the page ends is done to its end, and no other begins', async (t) => {
  const path = `${scratch(t)}/slow.sock`;
  const sent: string[] = [];
  let started = (_answer: () => void): void => undefined;
  const isStarted = new Promise<() => void>((resolve) => (started = resolve));
  await chainServer(t, path, ({ execute }, _socket, answer) => {
    sent.push(execute);
    if (execute === 'nbd-server-start') started(answer);
    return execute !== 'nbd-server-start';
  });
  const web = await WebBed.start(t, { servers: [{ name: 'server', address: { type: 'unix', path } }] });
  await web.login();
  const action = { kind: 'export', image: 'D', name: 'e', isWritable: false, file: web.bed.path('nbd') };
  const asked = web.ask('/api/run', { server: 'server', action });
  const goOn = await isStarted;
  const ended = web.end();
  goOn();
  await ended;
  assert.equal((await asked).status, 200);
  assert.deepEqual(sent, ['nbd-server-start', 'block-export-add']);
});
