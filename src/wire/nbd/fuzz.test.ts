import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BlockError } from '../../base/error.js';
import { KiB, MiB } from '../../base/limits.js';
import type { Host, HostSocket, SocketAddress } from '../../host/host.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { NbdPeer } from '../../../test/kit/nbd-peer.js';
import { MemoryTarget } from '../../../test/kit/nbd-target.js';
import { NbdClient } from './client.js';
import { encodeMetaContextRequest, type HeaderStyle, uint32 } from './codec.js';
import { Command, Option } from './constants.js';
import { NbdServer } from './server.js';
import type { MetaContext } from './target.js';

const ADDRESS: SocketAddress = { type: 'unix', path: '/tmp/nbd' };
const RUNS = 150;
const EXPORTED = { name: 'disk', readOnly: false, multiConn: true } as const;

/** What one side of a conversation sent, as one string of bytes. */
interface Recording {
  fromClient: Buffer;
  fromServer: Buffer;
}

/** What a run of a client does once it is connected; each may fail in its own way. Answers how many do not. */
async function useClient(client: NbdClient): Promise<number> {
  const buffer = Buffer.alloc(64 * KiB, 0xee);
  const requests = [
    client.read(0, buffer),
    client.write(4096, Buffer.alloc(8192, 1), 0),
    client.read(512, Buffer.alloc(512)),
    client.writeZeroes(0, 4096, 0),
    client.trim(8192, 512),
    client.flush(),
    ...(client.info.context === undefined ? [] : [client.blockStatus(0, MiB)]),
  ];
  const results = await Promise.allSettled(requests);
  for (const result of results)
    if (result.status === 'rejected') assert.ok(result.reason instanceof BlockError, String(result.reason));
  await client.close();
  return results.filter(({ status }) => status === 'fulfilled').length;
}

const dirty: MetaContext = {
  name: 'qemu:dirty-bitmap:b',
  extentAt: (_offset, lengthBytes) => ({ lengthBytes: Math.min(lengthBytes, 4096), state: 1 }),
};

/** What only a peer of hand-made bytes asks for: several contexts, told apart in one reply, and some of them. */
async function askForContexts(host: Host): Promise<number> {
  const peer = await NbdPeer.greet(host, ADDRESS);
  await peer.option(Option.listMetaContext, encodeMetaContextRequest({ name: 'disk', queries: ['qemu:'] }));
  await peer.go('disk', { extended: true, contexts: ['base:allocation', dirty.name] });
  peer.request(Command.blockStatus, 0, MiB);
  await peer.reply();
  await peer.reply();
  const payload = Buffer.concat([uint32(0), uint32(8192), uint32(1)]);
  const answer = await peer.ask(Command.blockStatus, 0, payload.length, { payload, flags: 32 });
  assert.equal(answer.failure, 0);
  peer.request(Command.disconnect, 0, 0);
  await peer.untilClosed();
  return REQUESTS;
}

const REQUESTS = 7;

function asStyle(style: HeaderStyle): (host: Host) => Promise<number> {
  return async (host) =>
    useClient(await NbdClient.connect({ host, address: ADDRESS, exportName: 'disk', style }));
}

const CONVERSATIONS = {
  simple: asStyle('simple'),
  structured: asStyle('structured'),
  extended: asStyle('extended'),
  contexts: askForContexts,
} as const;

/** Where the transmission begins: magic numbers of the first request, and of the first reply. */
const MAGICS = {
  simple: [0x25609513, 0x67446698],
  structured: [0x25609513, 0x668e33ef],
  extended: [0x21e41c71, 0x6e8a278c],
  contexts: [0x21e41c71, 0x6e8a278c],
} as const;

type Kind = keyof typeof CONVERSATIONS;
const KINDS = Object.keys(CONVERSATIONS) as Kind[];

/** One honest conversation, tapped in the middle. */
async function record(kind: Kind): Promise<Recording> {
  const simulation = createSimulatedHost({ seed: 3 });
  const { host } = simulation;
  const parts: { client: Buffer[]; server: Buffer[] } = { client: [], server: [] };
  await simulation.run(async () => {
    const hidden: SocketAddress = { type: 'unix', path: '/tmp/hidden' };
    const server = await NbdServer.listen(host, hidden);
    server.addExport({ ...EXPORTED, target: new MemoryTarget(MiB), contexts: [dirty] });
    const listener = await host.net.listen(ADDRESS, (socket) => void tap(host, hidden, socket, parts));
    assert.equal(await CONVERSATIONS[kind](host), kind === 'simple' ? REQUESTS - 1 : REQUESTS);
    await listener.close();
    await server.close();
  });
  return { fromClient: Buffer.concat(parts.client), fromServer: Buffer.concat(parts.server) };
}

async function tap(
  host: Host,
  address: SocketAddress,
  near: HostSocket,
  parts: { client: Buffer[]; server: Buffer[] },
): Promise<void> {
  const far = await host.net.connect(address);
  const pass = (from: HostSocket, to: HostSocket, into: Buffer[]): void =>
    from.start({
      onData: (chunk) => {
        const copy = Buffer.from(chunk);
        into.push(copy);
        to.write(copy);
      },
      onClose: () => to.destroy(),
    });
  pass(near, far, parts.client);
  pass(far, near, parts.server);
}

/** Small damage to a valid stream: bytes changed, cut out or put in, the end missing. */
function mutated(valid: Buffer): fc.Arbitrary<Buffer> {
  const spot = fc.nat(Math.min(valid.length, 2 * KiB) - 1);
  const edit = fc.oneof(
    fc.record({
      kind: fc.constant('set' as const),
      at: spot,
      bytes: fc.uint8Array({ minLength: 1, maxLength: 4 }),
    }),
    fc.record({ kind: fc.constant('insert' as const), at: spot, bytes: fc.uint8Array({ maxLength: 40 }) }),
    fc.record({ kind: fc.constant('remove' as const), at: spot, bytes: fc.uint8Array({ maxLength: 40 }) }),
    fc.record({ kind: fc.constant('cut' as const), at: spot, bytes: fc.constant(new Uint8Array()) }),
    fc.record({
      kind: fc.constant('set' as const),
      at: spot,
      bytes: fc.constantFrom(Buffer.alloc(4, 0xff), Buffer.alloc(4), Buffer.from([0x7f, 0xff, 0xff, 0xff])),
    }),
  );
  return fc.array(edit, { minLength: 1, maxLength: 3 }).map((edits) => {
    let out = Buffer.from(valid);
    for (const { kind, at, bytes } of edits) {
      if (kind === 'set') out.set(bytes.subarray(0, Math.max(0, out.length - at)), Math.min(at, out.length));
      else if (kind === 'cut') out = out.subarray(0, at);
      else {
        const after = out.subarray(kind === 'remove' ? at + bytes.length : at);
        out = Buffer.concat([out.subarray(0, at), kind === 'insert' ? bytes : Buffer.alloc(0), after]);
      }
    }
    return out;
  });
}

function stream(valid: Buffer, prefixes: readonly number[]): fc.Arbitrary<Buffer> {
  const random = fc
    .tuple(fc.constantFrom(...prefixes), fc.uint8Array({ maxLength: 300 }))
    .map(([keep, bytes]) => {
      return Buffer.concat([valid.subarray(0, keep), bytes]);
    });
  return fc.oneof(random, { arbitrary: mutated(valid), weight: 4 });
}

/** Ends of the handshake: where the bytes of the first request's magic, or of the first reply's, begin. */
function transmissionStart(bytes: Buffer, magic: number): number {
  const found = Buffer.alloc(4);
  found.writeUInt32BE(magic);
  const at = bytes.indexOf(found);
  assert.ok(at > 0, 'no transmission in the recording');
  return at;
}

for (const kind of KINDS) {
  test(`a server survives whatever a client sends (${kind}), and serves the next one`, async () => {
    const { fromClient } = await record(kind);
    const start = transmissionStart(fromClient, MAGICS[kind][0]);
    await fc.assert(
      fc.asyncProperty(stream(fromClient, [0, 4, start]), fc.nat(), async (bytes, seed) => {
        const simulation = createSimulatedHost({ seed });
        const { host } = simulation;
        await simulation.run(async () => {
          const server = await NbdServer.listen(host, ADDRESS, { handshakeTimeoutMs: 1000 });
          server.addExport({ ...EXPORTED, target: new MemoryTarget(MiB), contexts: [dirty] });
          const socket = await host.net.connect(ADDRESS);
          let received = 0;
          socket.start({ onData: (chunk) => (received += chunk.length), onClose: () => undefined });
          socket.write(bytes);
          await host.clock.sleep(2000);
          assert.ok(received <= 40 * MiB, `${received} bytes sent`);
          const next = await NbdClient.connect({ host, address: ADDRESS, exportName: 'disk' });
          await next.read(0, Buffer.alloc(4096));
          await next.close();
          socket.destroy();
          await server.close();
          assert.equal(server.connectionCount, 0);
        });
      }),
      { numRuns: RUNS, seed: 20 },
    );
  });
}

/** Lets a client meet a server that says `bytes`: the handshake's at once, the replies' when it has asked. */
async function meetServer(
  bytes: Buffer,
  handshakeBytes: number,
  seed: number,
  style: HeaderStyle,
): Promise<number> {
  const simulation = createSimulatedHost({ seed });
  const { host } = simulation;
  return simulation.run(async () => {
    const listener = await host.net.listen(ADDRESS, (socket) => {
      socket.start({ onData: () => undefined, onClose: () => undefined });
      socket.write(bytes.subarray(0, handshakeBytes));
      host.clock.setTimer(500, () => void socket.write(bytes.subarray(handshakeBytes)));
    });
    try {
      const options = { host, address: ADDRESS, exportName: 'disk', style };
      return await useClient(
        await NbdClient.connect({ ...options, handshakeTimeoutMs: 1000, requestTimeoutMs: 1000 }),
      );
    } catch (error) {
      assert.ok(error instanceof BlockError, String(error));
      return 0;
    } finally {
      await listener.close();
    }
  });
}

for (const style of ['simple', 'structured', 'extended'] as const) {
  test(`a client survives whatever a server sends (${style}): every request ends`, async () => {
    const { fromServer } = await record(style);
    const start = transmissionStart(fromServer, MAGICS[style][1]);
    const served = style === 'simple' ? REQUESTS - 1 : REQUESTS;
    assert.equal(await meetServer(fromServer, start, 1, style), served);
    await fc.assert(
      fc.asyncProperty(stream(fromServer, [0, 18, start]), fc.nat(), async (bytes, seed) => {
        await meetServer(bytes, start, seed, style);
      }),
      { numRuns: RUNS, seed: 21 },
    );
  });
}
