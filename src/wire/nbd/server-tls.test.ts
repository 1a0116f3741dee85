import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { BlockError } from '../../base/error.js';
import { KiB } from '../../base/limits.js';
import type { SocketAddress, TlsEnd } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { NbdPeer } from '../../../test/kit/nbd-peer.js';
import { MemoryTarget } from '../../../test/kit/nbd-target.js';
import { NbdClient } from './client.js';
import { encodeOption } from './codec.js';
import { Command, Option, OptionReply } from './constants.js';
import { listExports } from './list.js';
import { NbdServer } from './server.js';

const sharedKeys = new Map([['me', Buffer.alloc(16, 1)]]);
const SERVER: TlsEnd = { isServer: true, verifiesPeer: true, sharedKeys };
const CLIENT: TlsEnd = { isServer: false, verifiesPeer: true, sharedKeys, userName: 'me' };
const STRANGER: TlsEnd = { ...CLIENT, sharedKeys: new Map([['me', Buffer.alloc(16, 2)]]) };
const host = createRealHost();

interface Bed {
  server: NbdServer;
  address: SocketAddress;
  refused: string[];
}

/** A server that wants TLS, with one export. */
async function serve(t: TestContext, handshakeTimeoutMs?: number): Promise<Bed> {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-nbd-tls-'));
  const refused: string[] = [];
  const address: SocketAddress = { type: 'unix', path: join(folder, 'socket') };
  const server = await NbdServer.listen(host, address, {
    tls: () => SERVER,
    onRefused: (why) => refused.push(why),
    ...(handshakeTimeoutMs !== undefined && { handshakeTimeoutMs }),
  });
  server.addExport({ name: 'disk', target: new MemoryTarget(64 * KiB), readOnly: false, multiConn: false });
  t.after(async () => {
    await server.close();
    assert.equal(server.connectionCount, 0);
    rmSync(folder, { recursive: true });
  });
  return { server, address, refused };
}

const types = (answers: ReadonlyArray<{ type: number }>): number[] => answers.map(({ type }) => type);

test('before TLS everything is refused but STARTTLS and ABORT, and after it all is as without', async (t) => {
  const { address } = await serve(t);
  const peer = await NbdPeer.greet(host, address);
  for (const option of [Option.list, Option.structuredReply, Option.extendedHeaders, Option.go, 4711])
    assert.deepEqual(types(await peer.option(option)), [OptionReply.errTlsRequired], String(option));
  assert.deepEqual(types(await peer.option(Option.startTls, Buffer.alloc(1))), [OptionReply.errInvalid]);
  assert.deepEqual(types(await peer.option(Option.startTls)), [OptionReply.ack]);
  const secure = new NbdPeer(await host.net.secure(peer.socket, CLIENT));
  assert.deepEqual(types(await secure.option(Option.startTls)), [OptionReply.errInvalid]);
  assert.deepEqual(types(await secure.option(Option.list)), [OptionReply.server, OptionReply.ack]);
  assert.equal((await secure.go('disk')).at(-1)?.type, OptionReply.ack);
  assert.equal((await secure.ask(Command.flush, 0, 0)).failure, 0);
  secure.socket.destroy();

  const leaving = await NbdPeer.greet(host, address);
  assert.deepEqual(types(await leaving.option(Option.abort)), [OptionReply.ack]);
  assert.equal((await leaving.untilClosed()).length, 0);
});

test('what was agreed upon, or said, in plain text does not count behind TLS', async (t) => {
  const { address, server } = await serve(t);
  const early = await NbdPeer.greet(host, address);
  early.send(encodeOption(Option.exportName, Buffer.from('disk')));
  assert.equal((await early.untilClosed()).length, 0);

  const hasty = await NbdPeer.greet(host, address);
  const go = encodeOption(Option.list, Buffer.alloc(0));
  hasty.send(Buffer.concat([encodeOption(Option.startTls, Buffer.alloc(0)), go]));
  // The answer to STARTTLS at most: the list is not given.
  assert.ok((await hasty.untilClosed()).length <= 20);
  assert.equal(server.connectionCount, 0);
});

test('our client comes in with the key, and lists; without, or with another, it is told', async (t) => {
  const { address, refused, server } = await serve(t);
  const options = { host, address, exportName: 'disk' };
  const client = await NbdClient.connect({ ...options, tls: CLIENT });
  const data = Buffer.alloc(3 * KiB, 7);
  await client.write(KiB, data, 0);
  const got = Buffer.alloc(3 * KiB);
  await client.read(KiB, got);
  assert.deepEqual(got, data);
  await client.close();
  assert.deepEqual(
    (await listExports(host, address, CLIENT)).map(({ name }) => name),
    ['disk'],
  );
  assert.deepEqual(refused, []);
  await assert.rejects(NbdClient.connect({ ...options, tls: STRANGER }), /TLS handshake failed/);
  await assert.rejects(NbdClient.connect(options), /TLS negotiation required before option/);
  // The last one has said goodbye.
  while (server.connectionCount > 0) await host.clock.sleep(1);
  assert.equal(refused.length, 1);
  assert.match(refused.join(), /^TLS handshake failed: /);
});

test('a client that does not go on with TLS is dropped in time, and so is a server by a client', async (t) => {
  const { address, server } = await serve(t, 50);
  const peer = await NbdPeer.greet(host, address);
  await peer.option(Option.startTls);
  peer.send(Buffer.from([22, 3, 1]));
  await peer.untilClosed();
  while (server.connectionCount > 0) await host.clock.sleep(1);

  const silent: SocketAddress = { type: 'unix', path: `${(address as { path: string }).path}.silent` };
  const listener = await host.net.listen(silent, (socket) => {
    let seenBytes = 0;
    socket.start({
      onClose: () => undefined,
      onData: (chunk) => {
        seenBytes += chunk.length;
        // Its flags and STARTTLS.
        if (seenBytes === 20) socket.write(Buffer.from('0003e889045565a9000000050000000100000000', 'hex'));
      },
    });
    socket.write(Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]));
  });
  const connecting = NbdClient.connect({
    host,
    address: silent,
    exportName: '',
    tls: CLIENT,
    handshakeTimeoutMs: 50,
  });
  await assert.rejects(connecting, (error) => error instanceof BlockError && error.errno === 'ETIMEDOUT');
  await listener.close();
});
