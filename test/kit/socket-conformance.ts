import assert from 'node:assert/strict';
import { deferred } from '../../src/base/async.js';
import { KiB, MiB } from '../../src/base/limits.js';
import type { Host, HostSocket, SocketAddress } from '../../src/host/host.js';
import type { Check, HostUnderTest } from './host-conformance.js';

/** What every host's sockets must do. */
export function socketConformance(check: Check): void {
  check('a socket carries much data both ways under back-pressure', async (under) => {
    for (const address of [unixAddress(under), ...under.addresses]) {
      const listener = await under.host.net.listen(address, (socket) => echo(under.host, socket));
      const socket = await under.host.net.connect(listener.address, { timeoutMs: 5000 });
      await exchange(socket, 3 * MiB);
      await listener.close();
      await assert.rejects(under.host.net.connect(listener.address), /^BlockError: Failed to connect to '/);
    }
  });

  check('what is written before end() arrives, then the end', async (under) => {
    const text = deferred<string>();
    const listener = await under.host.net.listen(unixAddress(under), (socket) => {
      let got = '';
      socket.start({
        onData: (chunk) => (got += chunk.toString('latin1')),
        onClose: (error) => (error ? text.reject(error) : text.resolve(got)),
      });
    });
    const socket = await under.host.net.connect(listener.address);
    const closed = deferred();
    socket.start({ onData: () => undefined, onClose: () => closed.resolve() });
    const sent = 'x'.repeat(MiB);
    socket.write(Buffer.from(sent));
    socket.write(Buffer.from('the end'));
    socket.end();
    assert.equal(await text.promise, `${sent}the end`);
    await closed.promise;
    assert.equal(socket.write(Buffer.from('late')), 'sent');
    await listener.close();
  });

  check('destroy() is seen by both sides, once', async (under) => {
    let closes = 0;
    const both = deferred();
    const onClose = (): void => {
      if (++closes === 2) both.resolve();
    };
    const listener = await under.host.net.listen(unixAddress(under), (socket) => {
      socket.start({ onData: () => undefined, onClose });
    });
    const socket = await under.host.net.connect(listener.address);
    socket.start({ onData: () => undefined, onClose });
    socket.destroy();
    await both.promise;
    await under.host.clock.sleep(5);
    assert.equal(closes, 2);
    await listener.close();
  });

  check('shutDown() sends nothing of the queue, and ends when the peer has hung up', async (under) => {
    for (const address of [unixAddress(under), ...under.addresses]) {
      const accepted = deferred<HostSocket>();
      let receivedBytes = 0;
      const closed = deferred();
      const listener = await under.host.net.listen(address, (socket) => {
        socket.start({
          onData: (chunk) => (receivedBytes += chunk.length),
          onClose: () => closed.resolve(),
        });
        accepted.resolve(socket);
      });
      const socket = await under.host.net.connect(listener.address);
      socket.start({ onData: () => undefined, onClose: () => undefined });
      const peer = await accepted.promise;
      await under.host.clock.sleep(1);
      peer.pause();
      assert.ok(!peer.isPeerGone());
      while (socket.write(Buffer.alloc(MiB)) === 'sent');
      socket.write(Buffer.alloc(16 * MiB));
      let isOver = false;
      const over = socket.shutDown().then(() => (isOver = true));
      // It is told though nothing of what came before was read; over TCP the end stands in line behind what has no room.
      while (address.type === 'unix' && !peer.isPeerGone()) await under.host.clock.sleep(1);
      await under.host.clock.sleep(10);
      assert.ok(!isOver, 'the peer has not hung up');
      peer.resume();
      await over;
      await closed.promise;
      assert.ok(receivedBytes < 16 * MiB, `${receivedBytes} bytes came`);
      assert.ok(socket.isPeerGone() && peer.isPeerGone());
      await socket.shutDown();
      await listener.close();
    }
  });

  check('data that came before start() is kept', async (under) => {
    const listener = await under.host.net.listen(unixAddress(under), (socket) => {
      socket.start({ onData: () => undefined, onClose: () => undefined });
      socket.write(Buffer.from('greeting'));
    });
    const socket = await under.host.net.connect(listener.address);
    await under.host.clock.sleep(10);
    const got = deferred<string>();
    socket.start({ onData: (chunk) => got.resolve(chunk.toString()), onClose: () => undefined });
    assert.match('greeting', new RegExp(`^${await got.promise}`));
    socket.destroy();
    await listener.close();
  });
}

function unixAddress({ folder }: HostUnderTest): SocketAddress {
  return { type: 'unix', path: `${folder}/socket` };
}

/** Sends back what comes, stops reading while the peer does not take it. */
function echo(host: Host, socket: HostSocket): void {
  socket.start({
    onData: (chunk) => {
      if (socket.write(Buffer.from(chunk)) === 'queued') socket.pause();
    },
    onDrain: () => host.clock.defer(() => socket.resume()),
    onClose: () => undefined,
  });
}

/** Sends `bytes` and checks that they come back. */
async function exchange(socket: HostSocket, bytes: number): Promise<void> {
  const done = deferred();
  let sent = 0;
  let received = 0;
  const send = (): void => {
    while (sent < bytes) {
      const block = Buffer.alloc(Math.min(48 * KiB + 1, bytes - sent));
      for (let i = 0; i < block.length; i++) block[i] = (sent + i) % 251;
      sent += block.length;
      if (socket.write(block) === 'queued') {
        assert.ok(socket.queuedBytes > 0);
        return;
      }
    }
  };
  socket.start({
    onData: (chunk) => {
      for (const byte of chunk) if (byte !== received++ % 251) done.reject(new Error('wrong byte came back'));
      if (received >= bytes) socket.end();
    },
    onDrain: send,
    onClose: (error) => (error ? done.reject(error) : done.resolve()),
  });
  send();
  await done.promise;
  assert.equal(received, bytes);
}
