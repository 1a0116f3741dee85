import assert from 'node:assert/strict';
import { test } from 'node:test';
import { defined } from '../../base/assert.js';
import { deferred } from '../../base/async.js';
import { KiB, MAX_NBD_REQUEST_BYTES } from '../../base/limits.js';
import { NbdPeer } from '../../../test/kit/nbd-peer.js';
import { ADDRESS, onServer, SIZE } from '../../../test/kit/nbd-bed.js';
import type { Host, HostSocket } from '../../host/host.js';
import { BufferPool } from './buffer-pool.js';
import { decodeExtents, uint32 } from './codec.js';
import {
  Command,
  CommandFlag,
  Info,
  NbdError,
  OptionReply,
  ReplyType,
  TransmissionFlag,
} from './constants.js';
import { serveNbdConnection } from './server-connection.js';
import { NbdServer } from './server.js';

for (const structured of [false, true]) {
  const how = structured ? 'structured' : 'simple';
  for (const isLate of [false, true]) {
    test(
      `what is written is read back, ${how} replies, ${isLate ? 'later' : 'at once'}`,
      onServer(async ({ host, target }) => {
        target.isLate = isLate;
        const peer = await NbdPeer.greet(host, ADDRESS);
        await peer.go('disk', { structured });
        for (const lengthBytes of [512, 4096, 100 * KiB, SIZE - 512]) {
          const payload = Buffer.alloc(lengthBytes, lengthBytes % 251);
          const cookie = lengthBytes;
          const written = await peer.ask(Command.write, 512, lengthBytes, { payload, cookie });
          assert.deepEqual([written.failure, written.cookieLow], [0, cookie]);
          assert.ok(target.bytes.subarray(512, 512 + lengthBytes).equals(payload));
          const read = await peer.ask(Command.read, 512, lengthBytes, { cookie });
          assert.equal(read.style, how);
          assert.equal(read.cookieLow, cookie);
          if (structured) {
            assert.equal(read.type, ReplyType.offsetData);
            assert.equal(read.payload.readBigUInt64BE(0), 512n);
          }
          assert.ok(read.payload.subarray(structured ? 8 : 0).equals(payload));
        }
      }),
    );
  }
}

test(
  'block status joins extents that are alike and keeps to one when asked',
  onServer(async ({ host, target }) => {
    target.bytes.fill(1, 1024, 4096);
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk');
    const all = decodeExtents((await peer.ask(Command.blockStatus, 0, 8192)).payload, 'structured');
    assert.deepEqual(all.extents, [
      { lengthBytes: 1024, state: 3 },
      { lengthBytes: 3072, state: 0 },
      { lengthBytes: 4096, state: 3 },
    ]);
    const one = await peer.ask(Command.blockStatus, 0, 8192, { flags: CommandFlag.reqOne });
    assert.deepEqual(decodeExtents(one.payload, 'structured').extents, [{ lengthBytes: 1024, state: 3 }]);
    assert.equal((await peer.ask(Command.blockStatus, 0, 0)).failure, NbdError.EINVAL);
  }),
);

test(
  'zeroes, trims, flushes and FUA reach the target with their flags',
  onServer(async ({ host, target }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk');
    const { fua, noHole, fastZero } = CommandFlag;
    const steps: Array<[command: number, flags: number, log: string[]]> = [
      [Command.writeZeroes, 0, ['zero 512+1024 flags 2']],
      [Command.writeZeroes, noHole, ['zero 512+1024 flags 0']],
      [Command.writeZeroes, noHole + fua + fastZero, ['zero 512+1024 flags 5']],
      [Command.trim, 0, ['discard 512+1024']],
      [Command.trim, fua, ['discard 512+1024', 'flush']],
      [Command.cache, 0, []],
      [Command.read, fua, ['flush']],
    ];
    for (const [command, flags, log] of steps) {
      target.log.length = 0;
      assert.equal((await peer.ask(command, 512, 1024, { flags })).failure, 0);
      assert.deepEqual(target.log, log);
    }
    target.log.length = 0;
    assert.equal((await peer.ask(Command.flush, 0, 0)).failure, 0);
    const payload = Buffer.alloc(512, 5);
    assert.equal((await peer.ask(Command.write, 0, 512, { flags: fua, payload })).failure, 0);
    assert.deepEqual(target.log, ['flush', 'write flags 1']);
    target.zeroesSlowly = true;
    const slow = await peer.ask(Command.writeZeroes, 0, 512, { flags: fastZero });
    assert.equal(slow.failure, NbdError.ENOTSUP);
  }),
);

for (const structured of [false, true]) {
  test(
    `wrong requests get their errors and the connection goes on, ${structured ? 'structured' : 'simple'} replies`,
    onServer(async ({ host, target }) => {
      const peer = await NbdPeer.greet(host, ADDRESS);
      await peer.go('disk', { structured });
      const failure = async (...ask: Parameters<NbdPeer['ask']>): Promise<number> =>
        (await peer.ask(...ask)).failure;
      assert.equal(await failure(Command.read, SIZE - 512, 1024), NbdError.EINVAL);
      assert.equal(await failure(Command.read, 2 ** 53, 512), NbdError.EINVAL);
      const payload = Buffer.alloc(1024);
      assert.equal(await failure(Command.write, SIZE - 512, 1024, { payload }), NbdError.ENOSPC);
      assert.equal(await failure(Command.writeZeroes, SIZE, 1), NbdError.ENOSPC);
      assert.equal(await failure(Command.trim, SIZE, 1), NbdError.EINVAL);
      assert.equal(await failure(Command.read, 0, MAX_NBD_REQUEST_BYTES + 1), NbdError.EINVAL);
      assert.equal(await failure(Command.trim, 0, 512, { flags: CommandFlag.fastZero }), NbdError.EINVAL);
      assert.equal(await failure(99, 0, 512), NbdError.EINVAL);
      for (const isLate of [false, true]) {
        target.isLate = isLate;
        target.fault = 'ENOSPC';
        assert.equal(await failure(Command.write, 0, 1024, { payload }), NbdError.ENOSPC);
        target.fault = 'EIO';
        assert.equal(await failure(Command.read, 0, 512), NbdError.EIO);
        assert.equal(await failure(Command.flush, 0, 0), NbdError.EIO);
        target.fault = undefined;
      }
      assert.equal((await peer.ask(Command.read, 0, 512)).failure, 0);
    }),
  );
}

test(
  'a read-only export refuses what changes it with EPERM',
  onServer(async ({ host, target }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('ro');
    for (const command of [Command.write, Command.writeZeroes, Command.trim]) {
      const payload = command === Command.write ? Buffer.alloc(512, 1) : Buffer.alloc(0);
      assert.equal((await peer.ask(command, 0, 512, { payload })).failure, NbdError.EPERM);
    }
    assert.equal((await peer.ask(Command.read, 0, 512)).failure, 0);
    assert.deepEqual(target.log, []);
  }),
);

test(
  'replies come as their requests end, each to its cookie',
  onServer(async ({ host, target }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk');
    const gate = deferred();
    target.delay = () => gate.promise;
    peer.request(Command.flush, 0, 0, { cookie: 7 });
    assert.equal((await peer.ask(Command.read, 0, 512, { cookie: 8 })).cookieLow, 8);
    gate.resolve();
    assert.equal((await peer.reply()).cookieLow, 7);
  }),
);

test(
  'several connections are offered where the export has them, and see one another’s writes',
  onServer(async ({ host }) => {
    const flags = async (name: string): Promise<number> => {
      const peer = await NbdPeer.greet(host, ADDRESS);
      const infos = (await peer.go(name)).filter(({ type }) => type === OptionReply.info);
      const found = infos.find(({ payload }) => payload.readUInt16BE(0) === Info.export);
      return defined(found, 'export info').payload.readUInt16BE(10);
    };
    assert.equal((await flags('disk')) & TransmissionFlag.canMultiConn, TransmissionFlag.canMultiConn);
    assert.equal((await flags('ro')) & TransmissionFlag.canMultiConn, 0);
    const [one, two] = [await NbdPeer.greet(host, ADDRESS), await NbdPeer.greet(host, ADDRESS)];
    for (const peer of [one, two]) await peer.go('disk', { structured: false });
    await one.ask(Command.write, 0, 512, { payload: Buffer.alloc(512, 6) });
    assert.equal((await two.ask(Command.read, 0, 512)).payload[511], 6);
  }),
);

test(
  'a status of many small pieces is answered in part',
  onServer(async ({ host, target }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk');
    let steps = 0;
    target.status = async () => ({ lengthBytes: 1, zero: ++steps < 0, data: true });
    const { extents } = decodeExtents((await peer.ask(Command.blockStatus, 0, SIZE)).payload, 'structured');
    assert.ok(steps <= 8192, `${steps} steps`);
    assert.deepEqual(extents, [{ lengthBytes: steps, state: 0 }]);
  }),
);

test(
  'connections beyond the limit wait for a place',
  onServer(
    async ({ host, server }) => {
      const first = await NbdPeer.greet(host, ADDRESS);
      await first.go('disk');
      const second = await NbdPeer.connect(host, ADDRESS);
      let greeted = false;
      const greeting = second.take(18).then(() => (greeted = true));
      await first.ask(Command.read, 0, 512);
      await host.clock.sleep(100);
      assert.deepEqual([greeted, server.connectionCount], [false, 1]);
      first.request(Command.disconnect, 0, 0);
      await greeting;
    },
    { maxConnections: 1 },
  ),
);

test(
  'a client that says DISC gets its outstanding replies first; one that vanishes leaves nothing behind',
  onServer(async ({ host, server, target }) => {
    const gate = deferred();
    target.delay = () => gate.promise;
    const polite = await NbdPeer.greet(host, ADDRESS);
    const rude = await NbdPeer.greet(host, ADDRESS);
    for (const peer of [polite, rude]) await peer.go('disk');
    polite.request(Command.flush, 0, 0, { cookie: 3 });
    polite.request(Command.disconnect, 0, 0);
    rude.request(Command.flush, 0, 0);
    rude.request(Command.write, 0, 100 * KiB, { payload: Buffer.alloc(10 * KiB) });
    await host.clock.sleep(100);
    rude.socket.destroy();
    await host.clock.sleep(100);
    assert.equal(server.connectionsOf('disk'), 1);
    gate.resolve();
    assert.equal((await polite.reply()).cookieLow, 3);
    assert.equal((await polite.untilClosed()).length, 0);
    await host.clock.sleep(100);
    assert.equal(server.connectionCount, 0);
    assert.ok(target.bytes.every((byte) => byte === 0));
  }),
);

test(
  'an export in use is removed only when forced, after its requests have ended',
  onServer(async ({ host, server, target }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk');
    await assert.rejects(server.removeExport('disk', 'safe'), { kind: 'busy' });
    const gate = deferred();
    target.delay = () => gate.promise;
    peer.request(Command.flush, 0, 0);
    await host.clock.sleep(100);
    let removed = false;
    const removal = server.removeExport('disk', 'hard').then(() => (removed = true));
    await host.clock.sleep(100);
    assert.deepEqual([removed, peer.isClosed], [false, true]);
    gate.resolve();
    await removal;
    await assert.rejects(server.removeExport('disk', 'safe'), { kind: 'not-found' });
  }),
);

test(
  'a client that never chooses, or sends no request but garbage, is dropped',
  onServer(
    async ({ host, server }) => {
      const silent = await NbdPeer.connect(host, ADDRESS);
      const garbled = await NbdPeer.greet(host, ADDRESS);
      await garbled.go('disk');
      garbled.send(Buffer.alloc(28, 0x55));
      await Promise.all([silent.untilClosed(), garbled.untilClosed()]);
      await host.clock.sleep(100);
      assert.equal(server.connectionCount, 0);
    },
    { handshakeTimeoutMs: 1000 },
  ),
);

test(
  'a client that does not read its replies stops being served until it does',
  onServer(async ({ host, target }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk', { structured: false });
    target.isLate = true;
    peer.socket.pause();
    const requests = 1000;
    for (let cookie = 0; cookie < requests; cookie++) peer.request(Command.read, 0, 64 * KiB, { cookie });
    await host.clock.sleep(1000);
    assert.ok(target.mostRunning <= 256, `${target.mostRunning} at once`);
    peer.socket.resume();
    const cookies = new Set<number>();
    for (let i = 0; i < requests; i++) cookies.add((await peer.reply(64 * KiB)).cookieLow);
    assert.equal(cookies.size, requests);
  }),
);

/** All chunks of the reply to a read. */
async function readChunks(peer: NbdPeer, offset: number, lengthBytes: number, flags = 0): Promise<string[]> {
  peer.request(Command.read, offset, lengthBytes, { flags });
  const chunks: string[] = [];
  for (;;) {
    const { type, payload, flags: replyFlags } = await peer.reply();
    const at = Number(payload.readBigUInt64BE(0)) / KiB;
    const isHole = type === ReplyType.offsetHole;
    const length = (isHole ? payload.readUInt32BE(8) : payload.length - 8) / KiB;
    const content = isHole ? 'hole' : [...new Set(payload.subarray(8))].join(',');
    chunks.push(`${at}+${length} ${content}`);
    if (replyFlags === 1) return chunks;
  }
}

test(
  'zeroes of a large read travel as holes, unless the client wants no chunks',
  onServer(async ({ host, target }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk');
    target.bytes.fill(1, 64 * KiB, 128 * KiB);
    target.bytes.fill(2, 192 * KiB);
    for (const late of [false, true]) {
      target.isLate = late;
      const all = ['0+64 hole', '128+64 hole', '64+64 1', '192+64 2'];
      assert.deepEqual(await readChunks(peer, 0, SIZE), all);
      assert.deepEqual(await readChunks(peer, 64 * KiB, 128 * KiB), ['128+64 hole', '64+64 1']);
      assert.deepEqual(await readChunks(peer, 128 * KiB, 64 * KiB), ['128+64 hole']);
      assert.deepEqual(await readChunks(peer, 132 * KiB, 60 * KiB), ['132+60 hole']);
      assert.deepEqual(await readChunks(peer, 192 * KiB, 64 * KiB), ['192+64 2']);
      // One piece holds both: it is data.
      assert.deepEqual(await readChunks(peer, 32 * KiB, 64 * KiB), ['32+64 0,1']);
      assert.deepEqual(await readChunks(peer, 0, SIZE, CommandFlag.df), ['0+256 0,1,2']);
    }
    // The next read finds its buffer whole.
    assert.deepEqual(await readChunks(peer, 192 * KiB, 64 * KiB), ['192+64 2']);
  }),
);

/** What each request keeps of memory. */
const KEPT: Array<[what: string, command: number, flags: number, keptBytes: number]> = [
  ['reads', Command.read, CommandFlag.df, SIZE],
  ['prefetches', Command.cache, 0, SIZE],
  ['status', Command.blockStatus, 0, 512 * KiB],
];

for (const [what, command, flags, keptBytes] of KEPT)
  test(
    `clients share what may be in flight, and each has a request: ${what}`,
    onServer(async ({ host, target }) => {
      const peers = [];
      for (let i = 0; i < 40; i++) peers.push(await NbdPeer.greet(host, ADDRESS));
      for (const peer of peers) await peer.go('disk');
      const gate = deferred();
      target.isLate = true;
      target.delay = () => gate.promise;
      for (const peer of peers)
        for (let i = 0; i < 200; i++) peer.request(command, 0, SIZE, { cookie: i, flags });
      await host.clock.sleep(1000);
      const mostBytes = 512 * KiB * KiB + 40 * keptBytes;
      assert.ok(target.mostRunning * keptBytes <= mostBytes, `${target.mostRunning} at once`);
      assert.ok(target.mostRunning >= 40);
      for (const { socket } of peers) socket.destroy();
      gate.resolve();
    }),
  );

for (const extended of [false, true])
  test(
    `what prefetches and status keep counts as the server's memory until they end, ${extended ? 'extended' : 'structured'}`,
    onServer(async ({ host, server, target }) => {
      const address = { type: 'unix', path: '/tmp/counted' } as const;
      const pool = new BufferPool((bytes) => Buffer.alloc(bytes));
      const listener = await host.net.listen(
        address,
        (socket) => void serveNbdConnection({ socket, host, exports: server, pool }),
      );
      const peer = await NbdPeer.greet(host, address);
      await peer.go('disk', { extended });
      const idleBytes = pool.takenBytes;
      const filter = Buffer.concat([uint32(0), uint32(SIZE), uint32(0)]);
      const filtered = { flags: CommandFlag.payloadLength, payload: filter };
      for (const fault of [undefined, 'EIO']) {
        const gate = deferred();
        target.delay = () => gate.promise;
        target.fault = fault;
        for (let i = 0; i < 8; i++) peer.request(Command.cache, 0, SIZE);
        for (let i = 0; i < 8; i++)
          if (extended) peer.request(Command.blockStatus, 0, filter.length, filtered);
          else peer.request(Command.blockStatus, 0, SIZE);
        await host.clock.sleep(100);
        assert.ok(pool.takenBytes >= idleBytes + 8 * (SIZE + 512 * KiB), `${pool.takenBytes} bytes`);
        gate.resolve();
        for (let i = 0; i < 16; i++) assert.equal((await peer.reply()).failure, fault ? NbdError.EIO : 0);
        await host.clock.sleep(100);
        assert.equal(pool.takenBytes, idleBytes);
      }
      peer.socket.destroy();
      await listener.close();
    }),
  );

test(
  'names are checked when exports are added',
  onServer(async ({ server, target }) => {
    const add = (name: string): void => server.addExport({ name, target, readOnly: true, multiConn: false });
    assert.throws(() => add('disk'), { kind: 'exists' });
    assert.throws(() => add('x'.repeat(4097)), { kind: 'invalid' });
    assert.equal(defined(server.find('ro'), 'export').readOnly, true);
  }),
);

test(
  'a client that has said that it goes uses its export no more, though its connection is not closed yet',
  onServer(async ({ host, target }) => {
    const address = { type: 'unix', path: '/tmp/slow' } as const;
    const ended = deferred<void>();
    /** What is to be sent last takes long. */
    const slow = (socket: HostSocket): HostSocket =>
      new Proxy(socket, {
        get(of, key) {
          if (key === 'end') return () => ended.resolve();
          const member: unknown = Reflect.get(of, key, of);
          return typeof member === 'function' ? (member as () => void).bind(of) : member;
        },
      });
    const listen: Host['net']['listen'] = (at, onSocket) =>
      host.net.listen(at, (socket) => onSocket(slow(socket)));
    const net = new Proxy(host.net, {
      get: (of, key) => (key === 'listen' ? listen : (Reflect.get(of, key, of) as unknown)),
    });
    const server = await NbdServer.listen({ ...host, net }, address);
    server.addExport({ name: 'disk', target, readOnly: false, multiConn: true });
    const peer = await NbdPeer.greet(host, address);
    await peer.go('disk');
    await assert.rejects(server.removeExport('disk', 'safe'), { kind: 'busy' });
    peer.request(Command.disconnect, 0, 0);
    await ended.promise;
    assert.equal(server.connectionsOf('disk'), 1);
    await server.removeExport('disk', 'safe');
    await server.close();
  }),
);
