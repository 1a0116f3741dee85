import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { LookPace } from '../../src/web/look-pace.js';
import type { ServerState } from '../../src/web/messages.js';
import { Push } from '../../src/web/push.js';
import { sendLines } from '../../src/web/responses.js';

test('who asks for the log and does not read has little kept for it, and is let go', async (t) => {
  const lines = Array.from({ length: 2000 }, () => 'l'.repeat(16 * 1024));
  const server = createServer();
  t.after(() => server.close());
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1').pause();
  t.after(() => socket.destroy());
  socket.on('error', () => undefined);
  const asked = once(server, 'request');
  socket.write('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n');
  const [, response] = (await asked) as [unknown, ServerResponse];
  let most = 0;
  const watch = setInterval(() => (most = Math.max(most, response.writableLength)), 1);
  sendLines(response, lines, 50);
  await once(response, 'close');
  clearInterval(watch);
  assert.ok(most < 1024 * 1024, `${most} bytes were kept`);
});

test('whoever reads the log gets all of it', async (t) => {
  const lines = Array.from({ length: 300 }, (_, i) => `${i} ${'l'.repeat(16 * 1024)}`);
  const server = createServer((_request, response) => sendLines(response, lines));
  t.after(() => server.close());
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const answer = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
  assert.equal(await answer.text(), lines.map((line) => `${line}\n`).join(''));
});

test('who takes states more slowly than they come gets the newest ones whole, and all entries, and is not let go', async (t) => {
  const { clock } = createRealHost();
  const push = new Push(clock, () => undefined);
  const server = createServer();
  t.after(() => server.close());
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const socket = connect((server.address() as AddressInfo).port, '127.0.0.1').pause();
  t.after(() => socket.destroy());
  const asked = once(server, 'request');
  socket.write('GET / HTTP/1.0\r\nHost: localhost\r\n\r\n');
  const [, response] = (await asked) as [unknown, ServerResponse];
  const log = (n: number): void =>
    push.entry({ timeMs: n, server: 's', kind: 'note', name: `entry ${n}`, text: 'e'.repeat(1000) });
  log(0);
  push.add(response, {});
  const STATES = 40;
  const text = 's'.repeat(2 * 1024 * 1024);
  for (let i = 1; i <= STATES; i++) {
    push.state({ name: 's', disks: {}, timeMs: i, error: text } satisfies ServerState);
    log(i);
    await clock.macrotask();
  }
  assert.ok(response.writableLength < 3 * text.length, `${response.writableLength} bytes were kept`);
  const states: number[] = [];
  const entries: number[] = [];
  let read = '';
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    read += chunk.toString();
    for (let end = read.indexOf('\n\n'); end >= 0; end = read.indexOf('\n\n')) {
      const [, event, data = ''] = /event: (\w+)\ndata: (.*)$/s.exec(read.slice(0, end)) ?? [];
      read = read.slice(end + 2);
      const value = JSON.parse(data) as ServerState & Array<{ timeMs: number }>;
      if (event === 'state') states.push(value.timeMs);
      if (event === 'log') entries.push(...value.map(({ timeMs }) => timeMs));
    }
    if (states.includes(STATES) && entries.length > STATES) break;
  }
  assert.ok(states.length < STATES / 2, `${states.length} states were sent`);
  assert.deepEqual(entries, [...Array(STATES + 1).keys()]);
});

test('looks take a fiftieth of the time at most, whoever asks for them, and are five seconds apart at most', () => {
  const pace = new LookPace();
  assert.equal(pace.dueMs(0, 0), 0);
  pace.ended(0, 2);
  assert.equal(Math.round(pace.dueMs(2, 100)), 102);
  pace.ended(100, 110);
  assert.equal(Math.round(pace.dueMs(110, 100)), 110 + 490);
  assert.equal(Math.round(pace.dueMs(300, 100)), 110 + 490);
  assert.equal(pace.dueMs(110, 1000), 1110);
  pace.ended(2000, 2100);
  assert.equal(Math.round(pace.dueMs(2100, 1000)), 2100 + 4900);
  pace.ended(5000, 6000);
  assert.equal(pace.dueMs(6000, 1000), 11_000);
});
