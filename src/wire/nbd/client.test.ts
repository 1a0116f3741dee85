import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { KiB, MiB } from '../../base/limits.js';
import { ScriptedServer } from '../../../test/kit/nbd-script.js';
import { errorOf, MemoryTarget } from '../../../test/kit/nbd-target.js';
import { decodeRequest, newRequest, uint32 } from './codec.js';
import { Command, CommandFlag, Option, ReplyType, REQUEST_BYTES } from './constants.js';
import { NbdServer } from './server.js';

import {
  ADDRESS,
  WRITABLE,
  entry,
  simulated,
  connect,
  scripted,
  data,
  hole,
  failure,
} from '../../../test/kit/nbd-client-bed.js';

test(
  'requests of all kinds against the own server, more than it has room for at once',
  simulated(async (_simulation, host) => {
    const server = await NbdServer.listen(host, ADDRESS);
    const target = new MemoryTarget(12 * MiB);
    target.isLate = true;
    server.addExport({ name: 'x', target, readOnly: false, multiConn: true });
    const client = await connect(host, { exportName: 'x' });
    const disk = Buffer.alloc(12 * MiB);
    for (let i = 0; i < disk.length; i += 4096) disk.writeUInt32BE(i + 1, i);
    await client.write(0, disk, 0);
    assert.ok(target.bytes.equals(disk));
    const back = Buffer.alloc(disk.length);
    await client.read(0, back);
    assert.ok(back.equals(disk));
    target.mostRunning = 0;
    const sectors = Array.from({ length: 500 }, () => Buffer.alloc(512));
    await Promise.all(sectors.map((buffer, i) => client.read(i * 4096, buffer)));
    sectors.forEach((buffer, i) => assert.equal(buffer.readUInt32BE(0), i * 4096 + 1));
    assert.ok(target.mostRunning > 1 && target.mostRunning <= 64, `${target.mostRunning} at once`);
    target.log.length = 0;
    await client.writeZeroes(0, 8192, CommandFlag.noHole | CommandFlag.fua);
    await client.trim(8192, 4096);
    await client.flush();
    assert.deepEqual(target.log, ['zero 0+8192 flags 1', 'discard 8192+4096', 'flush']);
    assert.deepEqual(await client.blockStatus(0, MiB), { lengthBytes: 12288, state: 3 });
    await client.read(0, Buffer.alloc(0));
    await client.close();
    await client.close();
    assert.equal((await errorOf(client.flush())).kind, 'io');
    await server.close();
  }),
);

test(
  'errors of the server are those of the request, and the connection goes on',
  simulated(async (_simulation, host) => {
    const server = await NbdServer.listen(host, ADDRESS);
    const target = new MemoryTarget(MiB);
    server.addExport({ name: '', target, readOnly: false, multiConn: true });
    const client = await connect(host);
    target.fault = 'ENOSPC';
    assert.equal((await errorOf(client.write(0, Buffer.alloc(512), 0))).kind, 'no-space');
    target.fault = 'EIO';
    assert.equal((await errorOf(client.read(0, Buffer.alloc(512)))).errno, 'EIO');
    assert.equal((await errorOf(client.flush())).errno, 'EIO');
    assert.equal((await errorOf(client.blockStatus(0, 512))).errno, 'EIO');
    target.fault = undefined;
    await client.read(0, Buffer.alloc(512));
    const denied = await errorOf(connect(host, { exportName: 'nope' }));
    assert.equal(denied.message, 'Requested export not available');
    assert.equal(denied.hint, "server reported: export 'nope' not present");
    await client.close();
    await server.close();
  }),
);

for (const [what, changes] of [
  ['without GO', { options: new Set<number>([Option.structuredReply]) }],
  ['with EXPORT_NAME only', { options: new Set<number>() }],
  ['of a handshake that is not fixed', { options: new Set<number>(), handshakeFlags: 0 }],
  ['that sends zeroes', { options: new Set<number>(), handshakeFlags: 1 }],
] as const) {
  test(
    `a server ${what} is spoken to in its way`,
    scripted(
      async (server) => {
        const read = await server.request();
        const data = Buffer.alloc(512, 3);
        if (changes.options.size === 0) server.simple(read, 0, data);
        else server.chunk(read, 1, ReplyType.offsetData, Buffer.concat([uint32(0), uint32(1024), data]));
        assert.equal((await server.request()).command, Command.disconnect);
      },
      async (client) => {
        assert.deepEqual([client.info.lengthBytes, client.info.flags], [MiB, WRITABLE]);
        const buffer = Buffer.alloc(512);
        await client.read(1024, buffer);
        assert.equal(buffer[511], 3);
      },
      changes,
    ),
  );
}

test(
  'an oldstyle server serves its only export',
  simulated(async (_simulation, host) => {
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      const hello = Buffer.alloc(152);
      hello.write('NBDMAGIC', 0, 'latin1');
      hello.writeUInt32BE(0x00004202, 8);
      hello.writeUInt32BE(0x81861253, 12);
      hello.writeUInt32BE(MiB, 20);
      hello.writeUInt32BE(WRITABLE, 24);
      server.peer.send(hello);
      server.simple(await server.request());
    });
    const client = await connect(host);
    assert.deepEqual([client.info.lengthBytes, client.info.flags], [MiB, WRITABLE]);
    await client.flush();
    await client.close();
    assert.equal((await errorOf(connect(host, { exportName: 'x' }))).kind, 'unsupported');
    await listener.close();
  }),
);

test(
  'pieces keep to the largest and smallest block of the server',
  scripted(
    async (server) => {
      for (;;) {
        const request = await server.request();
        assert.ok(request.lengthBytes <= 12288 && request.lengthBytes % 4096 === 0);
        server.simple(request);
      }
    },
    async (client) => {
      assert.equal(client.maxRequestBytes, 12288);
      await client.write(4096, Buffer.alloc(40960), 0);
      await client.writeZeroes(4096, 40960, 0);
    },
    { blockSize: [4096, 4096, 13000], options: new Set<number>([Option.go]) },
  ),
);

test('a long request in tiny pieces is begun little by little, and not gone on with after an error', async () => {
  let seen = 0;
  await scripted(
    async (server) => {
      for (;;) server.simple(await server.request(), seen++ === 100 ? 5 : 0);
    },
    async (client) => {
      assert.equal((await errorOf(client.write(0, Buffer.alloc(100_000), 0))).errno, 'EIO');
    },
    { blockSize: [1, 4096, 1], options: new Set<number>([Option.go]) },
  )();
  assert.ok(seen > 100 && seen < 300, `${seen} requests`);
});

for (const stage of ['greeting', 'option', 'request'] as const) {
  test(
    `a peer that falls silent before the ${stage} is given up`,
    simulated(async (_simulation, host) => {
      const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
        if (stage === 'greeting') return;
        if (stage === 'option') return server.peer.send(Buffer.from('NBDMAGICIHAVEOPT\0\x03', 'latin1'));
        await server.handshake(entry());
      });
      const started = host.clock.nowMs();
      if (stage === 'request') {
        const client = await connect(host, { requestTimeoutMs: 5000 });
        const buffers = Array.from({ length: 200 }, () => Buffer.alloc(512));
        const errors = await Promise.all(buffers.map((buffer) => errorOf(client.read(0, buffer))));
        assert.ok(errors.every(({ kind, errno }) => kind === 'timeout' && errno === 'ETIMEDOUT'));
        assert.equal((await errorOf(client.flush())).errno, 'EIO');
        await client.close();
      } else assert.equal((await errorOf(connect(host, { handshakeTimeoutMs: 5000 }))).kind, 'timeout');
      const tookMs = host.clock.nowMs() - started;
      assert.ok(tookMs >= 5000 && tookMs < 6000, `${tookMs} ms`);
      await listener.close();
    }),
  );
}

test(
  'a flush may take longer than a read, but not for ever; a read sent after it is not forgotten',
  simulated(async (_simulation, host) => {
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      await server.handshake(entry());
      const flush = await server.request();
      await host.clock.sleep(3000);
      server.simple(flush);
    });
    const client = await connect(host, { requestTimeoutMs: 1000 });
    await client.flush();
    const startedMs = host.clock.nowMs();
    const flush = errorOf(client.flush());
    await host.clock.sleep(500);
    const read = errorOf(client.read(0, Buffer.alloc(512)));
    assert.equal((await read).kind, 'timeout');
    assert.equal((await flush).kind, 'timeout');
    const tookMs = host.clock.nowMs() - startedMs;
    assert.ok(tookMs >= 1500 && tookMs < 1600, `${tookMs} ms`);
    const lonely = await connect(host, { requestTimeoutMs: 100 });
    await errorOf(lonely.flush());
    assert.ok(host.clock.nowMs() - startedMs < 1500 + 600);
    for (const each of [client, lonely]) await each.close();
    await listener.close();
  }),
);

test(
  'a connection that is lost fails what is in flight, and what comes later at once',
  scripted(
    async (server) => void (await server.request()),
    async (client, simulation) => {
      const pending = [errorOf(client.read(0, Buffer.alloc(512))), errorOf(client.flush())];
      await simulation.host.clock.sleep(100);
      simulation.cutConnections();
      for (const error of await Promise.all(pending))
        assert.deepEqual([error.errno, error.message], ['EIO', 'Input/output error']);
      const startedMs = simulation.host.clock.nowMs();
      assert.equal((await errorOf(client.write(0, Buffer.alloc(512), 0))).errno, 'EIO');
      assert.ok(simulation.host.clock.nowMs() - startedMs < 1);
    },
  ),
);

test(
  'closing ends although the peer takes nothing',
  scripted(
    () => Promise.resolve(),
    async (client, simulation) => {
      simulation.setSilent(true);
      const startedMs = simulation.host.clock.nowMs();
      await client.close();
      assert.ok(simulation.host.clock.nowMs() - startedMs < 2000);
    },
  ),
);

test(
  'a server that answers before it read the payload gets what the buffer held',
  simulated(async (_simulation, host) => {
    const received = deferred<Buffer>();
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      const { peer } = server;
      await server.handshake(entry());
      const header = newRequest();
      decodeRequest(await peer.take(REQUEST_BYTES), 0, header, 'simple');
      peer.socket.pause();
      server.simple(header);
      await host.clock.sleep(100);
      peer.socket.resume();
      received.resolve(Buffer.from(await peer.take(header.lengthBytes)));
    });
    const client = await connect(host);
    const buffer = Buffer.alloc(512 * KiB, 1);
    await client.write(0, buffer, 0);
    buffer.fill(2);
    assert.ok((await received.promise).every((byte) => byte === 1));
    await client.close();
    await listener.close();
  }),
);

test(
  'chunks of a read come in any order, holes among them',
  scripted(
    async (server) => {
      const read = await server.request();
      server.chunk(read, 0, ReplyType.offsetData, data(2048, 512));
      server.chunk(read, 0, ReplyType.offsetHole, hole(0, 1024));
      server.chunk(read, 0, ReplyType.offsetData, data(2560, 1536));
      server.chunk(read, 0, ReplyType.offsetHole, hole(1024, 1024));
      server.chunk(read, 1, ReplyType.none, Buffer.alloc(0));
      const second = await server.request();
      server.chunk(second, 0, ReplyType.offsetData, data(0, 512));
      server.chunk(
        second,
        0,
        ReplyType.errorOffset,
        Buffer.concat([failure(28, 'full'), hole(0, 0).subarray(4)]),
      );
      server.chunk(second, 1, ReplyType.error, failure(5, 'late'));
    },
    async (client) => {
      const buffer = Buffer.alloc(4096, 1);
      await client.read(0, buffer);
      assert.ok(buffer.equals(Buffer.concat([Buffer.alloc(2048), Buffer.alloc(2048, 9)])));
      assert.equal((await errorOf(client.read(0, buffer))).errno, 'ENOSPC');
    },
  ),
);
