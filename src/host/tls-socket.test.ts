import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { deferred } from '../base/async.js';
import { MiB } from '../base/limits.js';
import type { Cleanup, HostUnderTest } from '../../test/kit/host-conformance.js';
import { socketConformance } from '../../test/kit/socket-conformance.js';
import type { Host, HostSocket, TlsEnd } from './host.js';
import { createRealHost } from './real.js';

const sharedKeys = new Map([
  ['somebody', Buffer.from('00112233445566778899aabbccddeeff', 'hex')],
  ['somebody else', Buffer.from('ffeeddccbbaa99887766554433221100', 'hex')],
]);
const SERVER: TlsEnd = { isServer: true, verifiesPeer: true, sharedKeys };
const CLIENT: TlsEnd = { isServer: false, verifiesPeer: true, sharedKeys, userName: 'somebody' };

function newFolder(context: Cleanup): string {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-tls-'));
  context.after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** A host all of whose connections are TLS. */
function secureHost(): Host {
  const host = createRealHost();
  return {
    ...host,
    net: {
      secure: (socket, end) => host.net.secure(socket, end),
      connect: async (address, options) => host.net.secure(await host.net.connect(address, options), CLIENT),
      listen: (address, onConnection, options) =>
        host.net.listen(
          address,
          (socket) => void host.net.secure(socket, SERVER).then(onConnection, () => undefined),
          options,
        ),
    },
  };
}

socketConformance((title, body) => {
  test(`TLS: ${title}`, async (context) => {
    const under: HostUnderTest = {
      host: secureHost(),
      folder: newFolder(context),
      addresses: [{ type: 'inet', host: '127.0.0.1', port: 0 }],
      failCompute: () => undefined,
      run: (run) => run(),
    };
    await body(under);
  });
});

interface Pair {
  client: HostSocket;
  server: HostSocket;
}

/** Both ends of a connection before TLS. */
async function plainPair(host: Host, context: Cleanup): Promise<Pair> {
  const accepted = deferred<HostSocket>();
  const path = join(newFolder(context), 'socket');
  const listener = await host.net.listen({ type: 'unix', path }, (socket) => accepted.resolve(socket));
  context.after(() => listener.close());
  const client = await host.net.connect({ type: 'unix', path });
  return { client, server: await accepted.promise };
}

test('a connection turns into one of TLS in its midst, behind all that was written before', async (t) => {
  const host = createRealHost();
  const { client, server } = await plainPair(host, t);
  let plainBytes = 0;
  const turned = deferred<HostSocket>();
  client.start({
    onData: (chunk) => {
      plainBytes += chunk.length;
      if (plainBytes === 8 * MiB)
        void host.net.secure(client, CLIENT).then(
          (secure) => turned.resolve(secure),
          (error: unknown) => turned.reject(error),
        );
    },
    onClose: () => assert.fail('nothing more is told of it'),
  });
  server.start({ onData: () => assert.fail('TLS came as data'), onClose: () => undefined });
  // More than the kernel takes at once.
  for (let i = 0; i < 8; i++) server.write(Buffer.alloc(MiB, i));
  const [one, other] = await Promise.all([host.net.secure(server, SERVER), turned.promise]);
  assert.equal(plainBytes, 8 * MiB);
  const got = deferred<string>();
  one.start({ onData: () => undefined, onClose: () => undefined });
  other.start({ onData: (chunk) => got.resolve(chunk.toString()), onClose: () => undefined });
  one.write(Buffer.from('secret'));
  assert.equal(await got.promise, 'secret');
  one.destroy();
});

test('who has another key does not come in', async (t) => {
  const host = createRealHost();
  for (const wrong of [
    { userName: 'somebody', sharedKeys: new Map([['somebody', Buffer.alloc(16)]]) },
    { userName: 'nobody', sharedKeys: new Map([['nobody', Buffer.alloc(16)]]) },
  ]) {
    const { client, server } = await plainPair(host, t);
    const ends = [host.net.secure(server, SERVER), host.net.secure(client, { ...CLIENT, ...wrong })];
    for (const { status } of await Promise.allSettled(ends)) assert.equal(status, 'rejected');
    assert.ok(server.isPeerGone() && client.isPeerGone());
  }
});

test('a client that renegotiates in the midst loses nothing', async (t) => {
  const host = createRealHost();
  const path = join(newFolder(t), 'socket');
  const listener = await host.net.listen({ type: 'unix', path }, (plain) => {
    void host.net.secure(plain, SERVER).then((socket) =>
      socket.start({
        onData: (chunk) => void socket.write(Buffer.from(chunk)),
        onClose: () => undefined,
      }),
    );
  });
  t.after(() => listener.close());
  const psk = sharedKeys.get('somebody') ?? assert.fail('no key');
  const client = connectTls({
    ...{ path, ciphers: 'PSK', maxVersion: 'TLSv1.2', checkServerIdentity: () => undefined },
    pskCallback: () => ({ psk, identity: 'somebody' }),
  });
  t.after(() => client.destroy());
  const sent: Buffer[] = [];
  const got: Buffer[] = [];
  let wake = (): void => undefined;
  client.on('data', (chunk: Buffer) => {
    got.push(chunk);
    wake();
  });
  const echoed = async (): Promise<void> => {
    while (Buffer.concat(got).length < Buffer.concat(sent).length)
      await new Promise<void>((resolve) => (wake = resolve));
  };
  await new Promise<void>((resolve) => client.once('secureConnect', resolve));
  for (let i = 1; i <= 2; i++) {
    sent.push(Buffer.alloc(100_000, i));
    client.write(sent.at(-1) ?? '');
    await echoed();
    await new Promise<void>((resolve, reject) =>
      client.renegotiate({ rejectUnauthorized: false }, (error) => (error ? reject(error) : resolve())),
    );
  }
  sent.push(Buffer.from('the end'));
  client.write('the end');
  await echoed();
  assert.ok(Buffer.concat(got).equals(Buffer.concat(sent)));
});

test('a client that says something else, or hangs up, ends the handshake', async (t) => {
  const host = createRealHost();
  const path = join(newFolder(t), 'socket');
  const results: Array<Promise<unknown>> = [];
  const came = [deferred(), deferred()];
  const listener = await host.net.listen({ type: 'unix', path }, (socket) => {
    came[results.length]?.resolve();
    results.push(host.net.secure(socket, SERVER));
  });
  const [plain, short] = [connect(path), connect(path)];
  for (const socket of [plain, short]) socket.on('error', () => undefined);
  plain.write('GET / HTTP/1.0\r\n\r\n');
  short.write(Buffer.from([22, 3, 1]));
  await Promise.all(came.map(({ promise }) => promise));
  short.destroy();
  for (const result of results)
    await assert.rejects(result, { kind: 'permission', message: /^TLS handshake failed: / });
  plain.destroy();
  await listener.close();
});

test('a socket that is destroyed in the handshake ends it', async (t) => {
  const host = createRealHost();
  const { client, server } = await plainPair(host, t);
  const ended = assert.rejects(host.net.secure(server, SERVER), /TLS handshake failed/);
  setTimeout(() => server.destroy(), 5);
  await ended;
  await assert.rejects(host.net.secure(client, CLIENT), /TLS handshake failed/);
});

test('who is let in is asked for by the name of a certificate, and nobody has one here', async (t) => {
  const host = createRealHost();
  const { client, server } = await plainPair(host, t);
  const asks = { ...SERVER, isAllowed: () => true };
  const theirs = host.net.secure(client, CLIENT);
  await assert.rejects(host.net.secure(server, asks), /Cannot get client distinguished name/);
  const socket = await theirs;
  const closed = deferred();
  socket.start({ onData: () => assert.fail('data'), onClose: () => closed.resolve() });
  await closed.promise;
});
