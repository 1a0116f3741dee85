import assert from 'node:assert/strict';
import { request } from 'node:http';
import { connect } from 'node:net';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { isLocalName, isLoopback } from '../../src/web/access.js';
import { MetricsServer, type MetricsOptions } from '../../src/web/metrics-server.js';
import { manyDisks } from '../peers/fake-monitor.js';
import { recorded } from '../view/recorded.js';

const { clock } = createRealHost();

async function serve(
  t: TestContext,
  options: Partial<MetricsOptions> = {},
): Promise<{ port: number; asked: string[] }> {
  const asked: string[] = [];
  const answers = recorded('livedisk-chain');
  const execute = async (command: string): Promise<never> => {
    asked.push(command);
    return (answers[command] ?? []) as never;
  };
  const address = { type: 'inet', host: '127.0.0.1', port: 0 } as const;
  const server = await MetricsServer.start({ address, execute, clock, ...options });
  t.after(() => server.close());
  return { port: server.port ?? 0, asked };
}

interface Answer {
  status: number | undefined;
  text: string;
}

function ask(
  port: number,
  path: string,
  headers: Record<string, string> = {},
  method = 'GET',
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    request({ host: '127.0.0.1', port, path, headers, method }, (response) => {
      let text = '';
      response.on('data', (chunk: Buffer) => (text += chunk.toString()));
      response.on('end', () => resolve({ status: response.statusCode, text }));
    })
      .on('error', reject)
      .end();
  });
}

test('many scrapes ask the server once', async (t) => {
  const { port, asked } = await serve(t, { clock: { ...clock, nowMs: () => 5 } });
  const answers = await Promise.all(Array.from({ length: 10 }, () => ask(port, '/metrics')));
  for (const { status, text } of answers) {
    assert.equal(status, 200);
    assert.match(text, /^livedisk_up\{server="livedisk 0\.1\.0"\} 1$/m);
  }
  assert.equal(asked.filter((command) => command === 'query-block').length, 1);
});

test('who asks for numbers and does not read them is let go', { timeout: 60_000 }, async (t) => {
  const answers = manyDisks([500]);
  const execute = async (command: string): Promise<never> => (answers[command] ?? []) as never;
  const { port } = await serve(t, { execute, slowReaderMs: 50, clock: { ...clock, nowMs: () => 5 } });
  const socket = connect(port, '127.0.0.1').pause();
  t.after(() => socket.destroy());
  const isLetGo = new Promise((resolve) => socket.on('error', resolve));
  const asking = setInterval(
    () => socket.write('GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(50)),
    10,
  );
  t.after(() => clearInterval(asking));
  await isLetGo;
});

test('only /metrics is there, to be read, by who names this machine', async (t) => {
  const { port, asked } = await serve(t);
  assert.equal((await ask(port, '/')).status, 404);
  assert.equal((await ask(port, '/metrics', {}, 'POST')).status, 405);
  assert.equal((await ask(port, '/metrics', { host: 'evil.example:80' })).status, 403);
  assert.deepEqual(asked, []);
});

test('with a token everybody needs it', async (t) => {
  const { port } = await serve(t, { token: 'a-long-secret-token' });
  assert.equal((await ask(port, '/metrics')).status, 401);
  assert.equal((await ask(port, '/metrics', { authorization: 'Bearer a-long-secret-tokem' })).status, 401);
  const host = { host: 'storage.example:9100' };
  assert.equal(
    (await ask(port, '/metrics', { authorization: 'Bearer a-long-secret-token', ...host })).status,
    200,
  );
});

test('a server that hangs is asked once, however long', async (t) => {
  let [looks, now, isHung] = [0, 0, true];
  const waiting: Array<() => void> = [];
  const execute = (command: string): Promise<never> => {
    if (command === 'query-version') looks++;
    return new Promise((resolve) => {
      if (isHung) waiting.push(() => resolve([] as never));
      else resolve([] as never);
    });
  };
  const { port } = await serve(t, { execute, clock: { ...clock, nowMs: () => (now += 2000) } });
  const scrapes = Promise.all([1, 2, 3].map(() => ask(port, '/metrics')));
  // Each of them is there when a later one is answered.
  for (let i = 0; i < 3; i++) await ask(port, '/');
  const asked = looks;
  isHung = false;
  for (const answer of waiting) answer();
  assert.deepEqual([(await scrapes).map(({ status }) => status), asked], [[200, 200, 200], 1]);
});

test('what failed is told once, and not kept', async (t) => {
  let failing = true;
  const execute = async (): Promise<never> => {
    if (failing) throw new Error('no answer');
    return [] as never;
  };
  let now = 0;
  const { port } = await serve(t, { execute, clock: { ...clock, nowMs: () => (now += 2000) } });
  const first = await ask(port, '/metrics');
  assert.deepEqual([first.status, first.text], [500, 'no answer\n']);
  failing = false;
  assert.equal((await ask(port, '/metrics')).status, 200);
});

test('further servers are asked for by name, and each is asked for itself', async (t) => {
  const names: string[] = [];
  const of = (name: string) => async (): Promise<never> => (names.push(name), [] as never);
  const { port } = await serve(t, { execute: of('first'), targets: new Map([['b.sock', of('second')]]) });
  assert.equal((await ask(port, '/metrics')).status, 200);
  const asked = names.length;
  assert.equal((await ask(port, '/metrics?target=b.sock')).status, 200);
  assert.deepEqual(new Set(names.slice(asked)), new Set(['second']));
  assert.equal((await ask(port, '/metrics?target=c.sock')).status, 404);
});

test('which names and addresses are of this machine', () => {
  for (const name of ['localhost', 'localhost:80', '127.0.0.1:9100', '127.8.9.1', '[::1]:80', '[::1]'])
    assert.ok(isLocalName(name), name);
  for (const name of [
    undefined,
    '',
    'evil.example',
    'localhost.evil.example:80',
    '127.0.0.1.evil.example',
    '10.0.0.1',
  ])
    assert.ok(!isLocalName(name), String(name));
  assert.ok(isLoopback({ type: 'inet', host: '127.0.0.1', port: 1 }));
  assert.ok(!isLoopback({ type: 'inet', host: '0.0.0.0', port: 1 }));
  assert.ok(!isLoopback({ type: 'inet', host: '', port: 1 }));
});
