import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { deferred } from '../../base/async.js';
import type { HostSocket } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { TakeoverChannel } from './channel.js';

async function pair(t: TestContext): Promise<{ folder: string; from: TakeoverChannel; to: TakeoverChannel }> {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-channel-'));
  const host = createRealHost();
  const address = { type: 'unix', path: join(folder, 'socket') } as const;
  const came = deferred<HostSocket>();
  const listener = await host.net.listen(address, (socket) => came.resolve(socket), { receiveFds: true });
  const from = new TakeoverChannel(await host.net.connect(address, { receiveFds: true }), host.clock);
  const to = new TakeoverChannel(await came.promise, host.clock);
  t.after(() => {
    for (const channel of [from, to]) channel.close();
    listener.close();
    rmSync(folder, { recursive: true, force: true });
  });
  return { folder, from, to };
}

test('messages that are sent at once arrive in order, each with its descriptors', async (t) => {
  const { folder, from, to } = await pair(t);
  const names = Array.from({ length: 20 }, (_, i) => join(folder, `file-${i}`));
  for (const name of names) writeFileSync(name, '');
  const fds = names.map((name) => openSync(name, 'r'));
  // Texts that a socket does not take at once, and messages without descriptors between.
  const filling = 'x'.repeat(100_000);
  const sent = Promise.all(
    names.map((name, i) => from.send({ name, filling }, i % 3 === 0 ? [] : [fds[i] ?? -1])),
  );
  for (const [i, name] of names.entries()) {
    const message = await to.receive(10_000);
    assert.equal(message?.value['name'], name);
    assert.equal(message.fds.length, i % 3 === 0 ? 0 : 1);
    for (const fd of message.fds) {
      assert.equal(readlinkSync(`/proc/self/fd/${fd}`), name);
      closeSync(fd);
    }
  }
  await sent;
  for (const fd of fds) closeSync(fd);
});

test('what came while this process was stopped for longer than it would wait is no silence', async (t) => {
  const { from, to } = await pair(t);
  const receiving = to.receive(50);
  const sent = from.send({ type: 'owned' });
  // It is written before the event loop goes on.
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
  const endMs = Date.now() + 200;
  while (Date.now() < endMs);
  assert.deepEqual((await receiving)?.value, { type: 'owned' });
  await sent;
  await assert.rejects(to.receive(50), /did not answer within 50 ms/);
});

test('a message that is not taken in time is an error, and nothing comes after it', async (t) => {
  const host = createRealHost();
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-channel-'));
  const address = { type: 'unix', path: join(folder, 'socket') } as const;
  const came = deferred<HostSocket>();
  const listener = await host.net.listen(address, (socket) => came.resolve(socket), { receiveFds: true });
  const from = new TakeoverChannel(await host.net.connect(address, { receiveFds: true }), host.clock);
  // It reads nothing.
  const socket = await came.promise;
  t.after(() => {
    from.close();
    socket.destroy();
    listener.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const filling = 'x'.repeat(8_000_000);
  await assert.rejects(from.send({ filling }, [], 50), /did not take a message within 50 ms/);
  await assert.rejects(from.send({ type: 'abort' }), { kind: 'closed' });
});
