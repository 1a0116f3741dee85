import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { KiB, MiB } from '../../base/limits.js';
import type { Host, HostSocket, SocketAddress } from '../../host/host.js';
import { createSimulatedHost, type Simulation } from '../../host/simulated.js';
import { ScriptedServer } from '../../../test/kit/nbd-script.js';
import { errorOf, MemoryTarget } from '../../../test/kit/nbd-target.js';
import { encodeSimpleReply } from './codec.js';
import { Command, CommandFlag, Option, SIMPLE_REPLY_BYTES, TransmissionFlag } from './constants.js';
import { NbdServer } from './server.js';
import { NbdSession, type NbdSessionOptions } from './session.js';
import { Flag, type IoRequest } from '../../base/io-request.js';

const ADDRESS: SocketAddress = { type: 'unix', path: '/tmp/nbd' };
const SECOND_MS = 1000;

interface Bed {
  simulation: Simulation;
  host: Host;
  target: MemoryTarget;
  server: NbdServer;
  serve: () => Promise<NbdServer>;
  open: (more?: Partial<NbdSessionOptions>) => Promise<NbdSession>;
}

function onServer(body: (bed: Bed) => Promise<void>, seed = 3): () => Promise<void> {
  return async () => {
    const simulation = createSimulatedHost({ seed });
    const { host } = simulation;
    await simulation.run(async () => {
      const target = new MemoryTarget(MiB);
      target.isLate = true;
      const servers: NbdServer[] = [];
      const serve = async (): Promise<NbdServer> => {
        const server = await NbdServer.listen(host, ADDRESS);
        server.addExport({ name: '', target, readOnly: false, multiConn: true });
        servers.push(server);
        return server;
      };
      const open = (more: Partial<NbdSessionOptions> = {}): Promise<NbdSession> =>
        NbdSession.open({ host, address: ADDRESS, exportName: '', ...more });
      await body({ simulation, host, target, server: await serve(), serve, open });
      for (const server of servers) await server.close();
    });
  };
}

/** Requests of the target wait until the answer is called. */
function hold(target: MemoryTarget): () => void {
  const gate = deferred();
  target.delay = () => gate.promise;
  return () => {
    target.delay = () => Promise.resolve();
    gate.resolve();
  };
}

test(
  'with a delay, what was in flight when the connection was cut is sent again',
  onServer(async ({ simulation, host, target, server, open }) => {
    const session = await open({ reconnectDelayMs: 10 * SECOND_MS });
    const release = hold(target);
    const requests = [
      session.write(0, Buffer.alloc(4096, 1), 0),
      session.read(8192, Buffer.alloc(512)),
      session.writeZeroes(65536, 4096, 0),
      session.trim(131072, 4096),
      session.flush(),
      session.blockStatus(0, 4096),
    ];
    while (server.inFlightOf('') < requests.length) await host.clock.sleep(1);
    simulation.cutConnections();
    await host.clock.sleep(SECOND_MS);
    release();
    await Promise.all(requests);
    assert.equal(target.bytes[4095], 1);
    assert.equal(target.log.filter((line) => line.startsWith('zero')).length, 2, 'sent twice');
    await session.close();
  }),
);

test(
  'requests wait for a server that comes back, and no longer than the delay; later ones connect again',
  onServer(async ({ host, server, serve, open }) => {
    const session = await open({ reconnectDelayMs: 5 * SECOND_MS });
    await server.close();
    await host.clock.sleep(2 * SECOND_MS);
    const early = session.write(0, Buffer.alloc(512, 1), 0);
    await host.clock.sleep(SECOND_MS);
    const second = await serve();
    await early;
    await second.close();
    const startedMs = host.clock.nowMs();
    await host.clock.sleep(10);
    const late = await errorOf(session.write(0, Buffer.alloc(512, 2), 0));
    assert.equal(late.errno, 'EIO');
    assert.equal(Math.round((host.clock.nowMs() - startedMs) / SECOND_MS), 5);
    // Nobody waits any more: what comes now fails with the next try.
    const nowMs = host.clock.nowMs();
    assert.equal((await errorOf(session.flush())).errno, 'EIO');
    assert.ok(host.clock.nowMs() - nowMs < SECOND_MS);
    await serve();
    await session.write(0, Buffer.alloc(512, 3), 0);
    await session.close();
  }),
);

test(
  'with a delay a server that answers that it shuts down is waited for, as one that is lost',
  onServer(async ({ host, target, server, serve, open }) => {
    const session = await open({ reconnectDelayMs: 10 * SECOND_MS });
    const release = hold(target);
    target.fault = 'ESHUTDOWN';
    const requests = [
      session.write(0, Buffer.alloc(4096, 1), 0),
      session.write(65536, Buffer.alloc(512 * KiB, 2), 0),
      session.flush(),
      session.blockStatus(0, 4096),
    ];
    while (server.inFlightOf('') < requests.length) await host.clock.sleep(1);
    release();
    while (server.connectionCount > 0) await host.clock.sleep(1);
    await server.close();
    await host.clock.sleep(SECOND_MS);
    target.fault = undefined;
    await serve();
    await Promise.all(requests);
    assert.equal(target.bytes[4095], 1);
    assert.equal(target.bytes[65536 + 512 * KiB - 1], 2);
    await session.close();
  }),
);

test(
  'without a delay a server that shuts down is heard, and one that never ends shutting down in any case',
  onServer(async ({ target, open }) => {
    target.fault = 'ESHUTDOWN';
    const session = await open();
    assert.equal((await errorOf(session.flush())).errno, 'ESHUTDOWN');
    await session.close();
    const patient = await open({ reconnectDelayMs: 10 * SECOND_MS });
    assert.equal((await errorOf(patient.flush())).errno, 'ESHUTDOWN');
    await patient.close();
  }),
);

test(
  'without a delay what is in flight fails, and the next request connects again',
  onServer(async ({ simulation, target, host, server, open }) => {
    const session = await open();
    const release = hold(target);
    const pending = errorOf(session.read(0, Buffer.alloc(512)));
    while (server.inFlightOf('') === 0) await host.clock.sleep(1);
    simulation.cutConnections();
    assert.equal((await pending).errno, 'EIO');
    release();
    await session.read(0, Buffer.alloc(512));
    await session.close();
    assert.equal((await errorOf(session.flush())).errno, 'EIO');
  }),
);

test(
  'a change that is sent again comes before newer ones of the same bytes; others do not wait for it',
  onServer(async ({ simulation, host, target, server, open }) => {
    const session = await open({ reconnectDelayMs: 10 * SECOND_MS });
    const order: string[] = [];
    const release = hold(target);
    const first = session.write(4096, Buffer.alloc(4096, 1), 0).then(() => order.push('first'));
    while (server.inFlightOf('') === 0) await host.clock.sleep(1);
    simulation.cutConnections();
    // Until it is noticed, what is made is in flight, too.
    while (server.connectionCount > 0) await host.clock.sleep(1);
    const newer = session.write(6144, Buffer.alloc(4096, 2), 0).then(() => order.push('newer'));
    const aside = session.write(65536, Buffer.alloc(512, 3), 0).then(() => order.push('aside'));
    await host.clock.sleep(SECOND_MS);
    assert.equal(server.inFlightOf(''), 2, 'the first, sent again, and the one aside');
    release();
    await Promise.all([first, newer, aside]);
    assert.ok(order.indexOf('first') < order.indexOf('newer'));
    assert.ok(target.bytes.subarray(6144, 10240).every((byte) => byte === 2));
    await session.close();
  }),
);

/** A server by hand whose connections stay open until they are told to close. */
async function stubborn(host: Host, sockets: HostSocket[]): Promise<{ close(): Promise<void> }> {
  return ScriptedServer.listen(host, ADDRESS, async (server) => {
    sockets.push(server.peer.socket);
    const flags = TransmissionFlag.hasFlags | TransmissionFlag.sendFlush;
    await server.handshake({ sizeBytes: MiB, flags, options: new Set([Option.go]), handshakeFlags: 3 });
    for (;;) {
      const request = await server.request();
      // The first connection answers nothing, and does not read on.
      if (sockets.length === 1) server.peer.socket.pause();
      else
        server.simple(request, 0, Buffer.alloc(request.command === Command.read ? request.lengthBytes : 0));
    }
  });
}

test('no connection is made before the server has closed the one that was given up', async () => {
  const simulation = createSimulatedHost({ seed: 8 });
  const { host } = simulation;
  await simulation.run(async () => {
    const sockets: HostSocket[] = [];
    const listener = await stubborn(host, sockets);
    const options = { host, address: ADDRESS, exportName: '', requestTimeoutMs: SECOND_MS };
    const session = await NbdSession.open({ ...options, reconnectDelayMs: 60 * SECOND_MS });
    const read = session.read(0, Buffer.alloc(512));
    await host.clock.sleep(20 * SECOND_MS);
    assert.equal(sockets.length, 1);
    assert.ok(sockets[0]?.isPeerGone(), 'it was shut down');
    sockets[0]?.destroy();
    await read;
    assert.equal(sockets.length, 2);
    await session.close();
    await listener.close();
  });
});

test('without a delay a server that does not close is waited for a moment, and then not at all', async () => {
  const simulation = createSimulatedHost({ seed: 9 });
  const { host } = simulation;
  await simulation.run(async () => {
    const sockets: HostSocket[] = [];
    const listener = await stubborn(host, sockets);
    const options = { host, address: ADDRESS, exportName: '', requestTimeoutMs: SECOND_MS };
    const session = await NbdSession.open(options);
    assert.equal((await errorOf(session.read(0, Buffer.alloc(512)))).kind, 'timeout');
    const startedMs = host.clock.nowMs();
    for (let i = 0; i < 3; i++)
      assert.equal((await errorOf(session.read(0, Buffer.alloc(512)))).errno, 'EIO');
    assert.ok(host.clock.nowMs() - startedMs < 7 * SECOND_MS);
    assert.equal(sockets.length, 1);
    sockets[0]?.destroy();
    await host.clock.sleep(SECOND_MS);
    await session.read(0, Buffer.alloc(512));
    await session.close();
    await listener.close();
  });
});

test(
  'at the start it is tried for as long as it is said, and once without',
  onServer(async ({ host, server, serve, open }) => {
    await server.close();
    let startedMs = host.clock.nowMs();
    assert.match((await errorOf(open())).message, /^Failed to connect to '\/tmp\/nbd'/);
    assert.ok(host.clock.nowMs() - startedMs < SECOND_MS);
    startedMs = host.clock.nowMs();
    assert.match((await errorOf(open({ openTimeoutMs: 3 * SECOND_MS }))).message, /^Failed to connect/);
    assert.ok(host.clock.nowMs() - startedMs <= 3 * SECOND_MS);
    const opening = open({ openTimeoutMs: 5 * SECOND_MS });
    await host.clock.sleep(2 * SECOND_MS);
    await serve();
    await (await opening).close();
  }),
);

test(
  'a busy session makes several connections to a server for several; a lost one takes the others with it',
  onServer(async ({ simulation, host, target, server, open }) => {
    const session = await open({ reconnectDelayMs: 10 * SECOND_MS });
    await session.read(0, Buffer.alloc(512));
    assert.equal(server.connectionCount, 1);
    const release = hold(target);
    const writes: Array<Promise<void>> = [];
    for (let i = 0; i < 200; i++) {
      writes.push(session.write(512 * i, Buffer.alloc(512, 1 + (i % 250)), 0));
      if (i % 20 === 0) await host.clock.sleep(5);
    }
    while (server.connectionCount < 4) await host.clock.sleep(1);
    await host.clock.sleep(100);
    assert.equal(server.connectionCount, 4);
    simulation.cutConnections();
    await host.clock.sleep(100);
    release();
    await Promise.all(writes);
    for (let i = 0; i < 200; i++) assert.equal(target.bytes[512 * i], 1 + (i % 250));
    await session.close();
    while (server.connectionCount > 0) await host.clock.sleep(1);
  }),
);

test(
  'a disk that has grown meanwhile is gone on with',
  onServer(async ({ host, server, open }) => {
    const session = await open();
    await server.close();
    await host.clock.sleep(SECOND_MS);
    const grown = await NbdServer.listen(host, ADDRESS);
    grown.addExport({ name: '', target: new MemoryTarget(64 * MiB), readOnly: false, multiConn: true });
    await session.read(0, Buffer.alloc(512));
    await session.close();
    await grown.close();
  }),
);

test(
  'another export under the same name is no way to go on',
  onServer(async ({ host, server, open }) => {
    const session = await open();
    await server.close();
    await host.clock.sleep(SECOND_MS);
    const other = await NbdServer.listen(host, ADDRESS);
    other.addExport({ name: '', target: new MemoryTarget(MiB / 2), readOnly: false, multiConn: true });
    const error = await errorOf(session.read(0, Buffer.alloc(512)));
    assert.equal(error.errno, 'EIO');
    assert.match(String((error.cause as Error).message), /another export/);
    await session.close();
    await other.close();
  }),
);

test('a request that breaks one connection after the other is not sent for ever', async () => {
  const simulation = createSimulatedHost({ seed: 8 });
  const { host } = simulation;
  await simulation.run(async () => {
    let connections = 0;
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      connections++;
      const flags = TransmissionFlag.hasFlags;
      await server.handshake({ sizeBytes: MiB, flags, options: new Set([Option.go]), handshakeFlags: 3 });
      await server.request();
      server.peer.socket.destroy();
    });
    const options = { host, address: ADDRESS, exportName: '', reconnectDelayMs: 3600 * SECOND_MS };
    const session = await NbdSession.open(options);
    assert.equal((await errorOf(session.read(0, Buffer.alloc(512)))).errno, 'EIO');
    assert.equal(connections, 8);
    await session.close();
    await listener.close();
  });
});

test(
  'whoever abandons or closes a session does not wait for a server that is away',
  onServer(async ({ host, server, serve, open }) => {
    const session = await open({ reconnectDelayMs: 3600 * SECOND_MS });
    await server.close();
    const waiting = errorOf(session.read(0, Buffer.alloc(512)));
    await host.clock.sleep(SECOND_MS);
    const startedMs = host.clock.nowMs();
    session.abandon();
    assert.equal((await waiting).errno, 'EIO');
    assert.ok(host.clock.nowMs() - startedMs < 1);
    await serve();
    await host.clock.sleep(2 * SECOND_MS);
    await session.read(0, Buffer.alloc(512));
    await session.close();
  }),
);

/** Writes take random times and end in any order, whoever asked for them. */
class RandomTarget extends MemoryTarget {
  readonly #host: Host;

  constructor(host: Host) {
    super(64 * KiB);
    this.#host = host;
    this.isLate = true;
  }

  override async run(request: IoRequest): Promise<void> {
    if (request.kind !== 'write') return super.run(request);
    const { offset, lengthBytes, flags } = request;
    assert.equal(flags, Flag.none);
    const copy = Buffer.from(request.gather(0, lengthBytes));
    const { random, clock } = this.#host;
    await clock.sleep(random.below(4) === 0 ? random.below(3000) : random.below(5));
    this.bytes.set(copy, offset);
  }
}

/**
 * A guest that overwrites sectors one after the other while connections are cut: what was answered last must be there at
 * the end, however long older writes were held in the target. A write that failed may show until the next one.
 */
async function cutAndOverwrite(seed: number): Promise<void> {
  const simulation = createSimulatedHost({ seed });
  const { host } = simulation;
  await simulation.run(async () => {
    const target = new RandomTarget(host);
    const server = await NbdServer.listen(host, ADDRESS);
    for (const name of ['one', 'two']) server.addExport({ name, target, readOnly: false, multiConn: true });
    const sessions = await Promise.all(
      ['one', 'two'].map((exportName, i) =>
        NbdSession.open({ host, address: ADDRESS, exportName, reconnectDelayMs: i * 10 * SECOND_MS }),
      ),
    );
    let isOver = false;
    const cutter = (async () => {
      for (let i = 0; i < 12; i++) {
        await host.clock.sleep(host.random.below(400));
        simulation.cutConnections();
      }
      isOver = true;
    })();
    let value = 0;
    const guest = async (start: number): Promise<void> => {
      const session = sessions[host.random.below(2)];
      while (!isOver && session) {
        value = (value % 250) + 1;
        const mine = value;
        const lengthBytes = 512 * (1 + host.random.below(4));
        const from = start + 512 * host.random.below(4);
        const written = await session.write(from, Buffer.alloc(lengthBytes, mine), 0).then(
          () => true,
          (error: unknown) => {
            assert.ok(error instanceof BlockError, String(error));
            return false;
          },
        );
        const lookAt = target.bytes.subarray(from, from + lengthBytes);
        if (written) {
          // Long enough for whatever is held to come out.
          if (host.random.below(3) === 0) await host.clock.sleep(4000);
          assert.ok(
            lookAt.every((byte) => byte === mine),
            `${mine} was overwritten by something older`,
          );
        }
      }
    };
    await Promise.all([cutter, ...Array.from({ length: 6 }, (_, i) => guest(8192 * i))]);
    for (const session of sessions) await session.close();
    await server.close();
  });
}

test('an acknowledged write is never overwritten by an older one, however connections are cut', async () => {
  const first = Number(process.env['NBD_SEED'] ?? 1);
  const seeds = Number(process.env['NBD_SEEDS'] ?? 40);
  for (let seed = first; seed < first + seeds; seed++)
    await cutAndOverwrite(seed).catch((error: unknown) => {
      throw new Error(`seed ${seed}`, { cause: error });
    });
});

test(
  'what was answered and not flushed when the server was lost is not read as if nothing were, and flushes tell of it',
  onServer(async ({ simulation, host, target, open }) => {
    const session = await open();
    await session.write(0, Buffer.alloc(4096, 1), 0);
    await session.flush();
    await session.write(4096, Buffer.alloc(4096, 2), 0);
    await session.writeZeroes(8192, 4096, 0);
    await session.write(16384, Buffer.alloc(4096, 3), CommandFlag.fua);
    simulation.cutConnections();
    target.bytes.fill(0, 4096, 12288);
    await host.clock.sleep(SECOND_MS);
    const buffer = Buffer.alloc(4096);
    await session.read(0, buffer);
    assert.equal(buffer[0], 1, 'that was flushed');
    await session.read(16384, buffer);
    assert.equal(buffer[0], 3, 'that was durable');
    for (const lost of [4096, 8192, 11776])
      assert.equal((await errorOf(session.read(lost, Buffer.alloc(512)))).errno, 'EIO');
    assert.equal((await errorOf(session.blockStatus(4096, 512))).errno, 'EIO');
    for (let i = 0; i < 2; i++) assert.match((await errorOf(session.flush())).message, /8192 bytes/);
    for (let i = 0; i < 2; i++)
      assert.deepEqual(
        [...session.takeDoubtful()],
        [{ offset: 4096, lengthBytes: 8192 }],
        'it is to be written anew',
      );
    await session.write(4096, Buffer.alloc(4096, 4), 0);
    await session.read(4096, buffer);
    assert.equal(buffer[0], 4);
    assert.match((await errorOf(session.flush())).message, /4096 bytes/);
    await session.writeZeroes(8192, 4096, 0);
    assert.deepEqual([...session.takeDoubtful()], []);
    await session.flush();
    await session.close();
  }),
);

test(
  'who says that a server comes back as it was, within a time, is believed, and no longer',
  onServer(async ({ host, server, serve, open }) => {
    const session = await open({ reconnectDelayMs: 2 * SECOND_MS });
    await session.write(0, Buffer.alloc(4096, 1), 0);
    await server.close();
    const second = await serve();
    await session.flush();
    await session.write(0, Buffer.alloc(4096, 2), 0);
    await second.close();
    await host.clock.sleep(3 * SECOND_MS);
    await serve();
    assert.equal((await errorOf(session.flush())).errno, 'EIO');
    await session.close();
  }),
);

test(
  'a flush that was under way when the server was lost has kept nothing',
  onServer(async ({ simulation, host, target, server, open }) => {
    const session = await open();
    await session.write(0, Buffer.alloc(4096, 1), 0);
    const release = hold(target);
    const flushing = errorOf(session.flush());
    while (server.inFlightOf('') < 1) await host.clock.sleep(1);
    simulation.cutConnections();
    await flushing;
    release();
    assert.match((await errorOf(session.flush())).message, /4096 bytes/);
    await session.close();
  }),
);

test('what was answered in one piece with what broke the connection may be gone, too', async () => {
  const simulation = createSimulatedHost({ seed: 8 });
  const { host } = simulation;
  await simulation.run(async () => {
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      const flags = TransmissionFlag.hasFlags | TransmissionFlag.sendFlush;
      await server.handshake({ sizeBytes: MiB, flags, options: new Set([Option.go]), handshakeFlags: 3 });
      for (;;) {
        const request = await server.request();
        const reply = Buffer.alloc(SIMPLE_REPLY_BYTES);
        encodeSimpleReply(reply, 0, 0, request);
        // A write is answered twice.
        server.peer.send(reply, request.command === Command.write ? reply : Buffer.alloc(0));
      }
    });
    const session = await NbdSession.open({ host, address: ADDRESS, exportName: '' });
    await session.write(0, Buffer.alloc(4096, 1), 0);
    assert.match((await errorOf(session.flush())).message, /4096 bytes/);
    await session.close();
    await listener.close();
  });
});

test(
  'bytes of a file that were not sent do not replace what is lost',
  onServer(async ({ simulation, host, target, open }) => {
    const session = await open();
    await session.write(4096, Buffer.alloc(4096, 1), 0);
    simulation.cutConnections();
    target.bytes.fill(0);
    await host.clock.sleep(SECOND_MS);
    await errorOf(session.flush());
    assert.equal(await session.writeFile(4096, { file: {}, position: 0 }, 4096, 0), false);
    assert.equal((await errorOf(session.read(4096, Buffer.alloc(512)))).errno, 'EIO');
    assert.match((await errorOf(session.flush())).message, /4096 bytes/);
    await session.close();
  }),
);

/** A server that sends garbage in one piece with the end of its first handshakes; then it serves zeroes. */
async function garbling(host: Host, first: number, last: number): Promise<{ close(): Promise<void> }> {
  let connections = 0;
  return ScriptedServer.listen(host, ADDRESS, async (server) => {
    connections++;
    const isBad = connections >= first && connections <= last;
    const flags = TransmissionFlag.hasFlags | TransmissionFlag.sendFlush;
    const { socket } = server.peer;
    const write = socket.write.bind(socket);
    const held: Uint8Array[] = [];
    if (isBad) socket.write = (bytes) => (held.push(Buffer.from(bytes)), 'sent');
    const shaking = server.handshake({
      sizeBytes: MiB,
      flags,
      options: new Set([Option.go]),
      handshakeFlags: 3,
    });
    // Each round of the handshake goes out as one piece.
    let isOver = false;
    void shaking.then(() => (isOver = true));
    while (isBad) {
      await host.clock.sleep(1);
      const piece = Buffer.concat(held.splice(0));
      if (isOver) return void write(Buffer.concat([piece, Buffer.alloc(64, 1)]));
      if (piece.length > 0) write(piece);
    }
    await shaking;
    for (;;) {
      const request = await server.request();
      if (request.lengthBytes === 666) return socket.destroy();
      server.simple(request, 0, Buffer.alloc(request.command === Command.read ? request.lengthBytes : 0));
    }
  });
}

test('a connection that breaks as it is made is none, at the start and later', async () => {
  const simulation = createSimulatedHost({ seed: 8 });
  const { host } = simulation;
  await simulation.run(async () => {
    const listener = await garbling(host, 1, 1);
    const options = { host, address: ADDRESS, exportName: '' };
    const error = await errorOf(NbdSession.open(options));
    assert.deepEqual([error.kind, /^Protocol error/.test(error.message)], ['corrupt', true]);
    await listener.close();
    const patient = await garbling(host, 1, 1);
    const session = await NbdSession.open({ ...options, openTimeoutMs: 5 * SECOND_MS });
    await session.read(0, Buffer.alloc(512));
    await session.close();
    await patient.close();
    const later = await garbling(host, 2, 2);
    const losing = await NbdSession.open(options);
    await errorOf(losing.read(0, Buffer.alloc(666)));
    const { cause } = await errorOf(losing.read(0, Buffer.alloc(512)));
    assert.match(String((cause as Error).message), /^Protocol error/);
    await losing.read(0, Buffer.alloc(512));
    await losing.close();
    await later.close();
  });
});
