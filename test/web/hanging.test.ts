import assert from 'node:assert/strict';
import { createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import type { ServerState } from '../../src/web/messages.js';
import { MonitorLink } from '../../src/web/monitor-link.js';
import { scratch } from '../kit/program.js';
import { WebBed } from './web-bed.js';

/** Greets, answers so many commands with nothing in them, and then says no more. */
function hanging(path: string, answers: number): Promise<{ close: () => void }> {
  let left = answers;
  const server = createServer((socket: Socket) => {
    let text = '';
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const { id } = JSON.parse(text.slice(0, end)) as { id: unknown };
        text = text.slice(end + 1);
        if (left-- > 0) socket.write(`${JSON.stringify({ return: {}, id })}\n`);
      }
    });
    const version = { qemu: { major: 9, minor: 0, micro: 0 }, package: '' };
    socket.write(`${JSON.stringify({ QMP: { version, capabilities: [] } })}\n`);
  });
  return new Promise((resolve) => {
    server.listen(path, () => resolve({ close: () => server.close() }));
  });
}

/** Patience is short with it. */
function hastyHost(): ReturnType<typeof createRealHost> {
  const host = createRealHost();
  const { clock } = host;
  const hasty = {
    nowMs: () => clock.nowMs(),
    wallClock: () => clock.wallClock(),
    sleep: (ms: number) => clock.sleep(ms),
    macrotask: () => clock.macrotask(),
    defer: (callback: () => void) => clock.defer(callback),
    setTimer: (ms: number, callback: () => void) => clock.setTimer(ms / 20, callback),
  };
  return { ...host, clock: hasty };
}

for (const [what, body] of [
  ['plan', { action: { kind: 'delete', image: 'a' } }],
  ['run', { action: { kind: 'delete', image: 'a' } }],
  ['map', { image: 'a' }],
  ['heat', { node: 'a' }],
  ['bitmap', { node: 'a', name: 'b' }],
  ['points', { verb: 'list' }],
  ['complete', { line: 'q' }],
  ['command', { line: 'query-status' }],
  ['command', { execute: 'query-status' }],
] as ReadonlyArray<readonly [string, object]>)
  test(`who asks a server that hangs for ${what} ${Object.keys(body).join(' ')} is told so`, async (t) => {
    const path = `${scratch(t)}/hanging.sock`;
    const server = await hanging(path, 1);
    t.after(() => server.close());
    const web = await WebBed.start(t, {
      host: hastyHost(),
      servers: [{ name: 'hanging', address: { type: 'unix', path } }],
      hasConsole: true,
    });
    await web.login();
    const [status, error] = await web.error(`/api/${what}`, { server: 'hanging', ...body });
    assert.deepEqual([status, error], [400, 'hanging has not answered for 5 s']);
  });

test('that nobody watches any more is no error of the server', async (t) => {
  const path = `${scratch(t)}/hanging.sock`;
  const server = await hanging(path, 1);
  t.after(() => server.close());
  const states: ServerState[] = [];
  let connected = (): void => undefined;
  const isConnected = new Promise<void>((resolve) => (connected = resolve));
  const link = new MonitorLink({
    host: createRealHost(),
    address: { type: 'unix', path },
    name: 'hanging',
    listener: { onState: (state) => states.push(state), onLog: () => connected() },
    readMap: async () => undefined,
  });
  t.after(() => link.close());
  link.watch(true);
  await isConnected;
  link.watch(false);
  // The look that was under way ends with the connection.
  await link.lookNow().catch(() => undefined);
  assert.deepEqual(states, []);
});

for (const [what, answers] of [
  ['that says nothing at all', 0],
  ['that stops in the middle of a look', 5],
  ['that hangs after some looks', 40],
] as const)
  test(`a server ${what} is told of, and the page is served`, async (t) => {
    const path = `${scratch(t)}/hanging.sock`;
    const server = await hanging(path, answers);
    t.after(() => server.close());
    const web = await WebBed.start(t, {
      host: hastyHost(),
      servers: [{ name: 'hanging', address: { type: 'unix', path } }],
    });
    await web.login();
    await web.events((event, data) => {
      const { error = '' } = data as unknown as ServerState;
      return event === 'state' && /has not answered for 5 s|in use|not answered|no QMP greeting/.test(error);
    });
    assert.equal((await web.ask('/')).status, 200);
  });
