import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MiB } from '../../base/limits.js';
import { ScriptedServer } from '../../../test/kit/nbd-script.js';
import { errorOf } from '../../../test/kit/nbd-target.js';
import { encodeSimpleReply, uint32 } from './codec.js';
import { Option, OptionReply, ReplyType, SIMPLE_REPLY_BYTES } from './constants.js';

import {
  ADDRESS,
  entry,
  simulated,
  connect,
  scripted,
  data,
  hole,
} from '../../../test/kit/nbd-client-bed.js';

type Misbehave = (server: ScriptedServer, request: Awaited<ReturnType<ScriptedServer['request']>>) => void;
const MALFORMED: Record<string, Misbehave> = {
  'no magic': (server) => server.peer.send(Buffer.alloc(64, 1)),
  'a reply to nothing': (server, request) => server.simple({ ...request, cookieLow: 77 }),
  'a foreign cookie': (server, request) => server.simple({ ...request, cookieHigh: 1 }),
  'a simple reply to a read': (server, request) => server.simple(request, 0, Buffer.alloc(4096)),
  'bytes before the range': (server, request) => server.chunk(request, 1, ReplyType.offsetData, data(0, 512)),
  'bytes beyond the range': (server, request) =>
    server.chunk(request, 1, ReplyType.offsetData, data(8192, 4097)),
  'an empty piece': (server, request) => server.chunk(request, 1, ReplyType.offsetData, data(8192, 0)),
  'an empty hole': (server, request) => server.chunk(request, 1, ReplyType.offsetHole, hole(8192, 0)),
  'the same bytes twice': (server, request) => {
    server.chunk(request, 0, ReplyType.offsetData, data(8192, 4096));
    server.chunk(request, 1, ReplyType.offsetHole, hole(9000, 10));
  },
  'too few bytes': (server, request) => server.chunk(request, 1, ReplyType.offsetData, data(8192, 4095)),
  'nothing, and an end': (server, request) => server.chunk(request, 1, ReplyType.none, Buffer.alloc(0)),
  'nothing, and no end': (server, request) => server.chunk(request, 0, ReplyType.none, Buffer.alloc(0)),
  'a status': (server, request) =>
    server.chunk(request, 1, ReplyType.blockStatus, Buffer.concat([uint32(9), uint32(1), uint32(0)])),
  'an unknown chunk': (server, request) => server.chunk(request, 1, 77, Buffer.alloc(12)),
  'an error without number': (server, request) => server.chunk(request, 1, ReplyType.error, Buffer.alloc(6)),
  'an error text that is longer than its chunk': (server, request) =>
    server.chunk(request, 1, ReplyType.error, Buffer.from([0, 0, 0, 5, 9, 9])),
};

for (const [what, misbehave] of Object.entries(MALFORMED)) {
  test(
    `${what} in answer to a read ends the connection with an error`,
    scripted(
      async (server) => misbehave(server, await server.request()),
      async (client) => {
        const error = await errorOf(client.read(8192, Buffer.alloc(4096)));
        assert.deepEqual([error.kind, /^Protocol error/.test(error.message)], ['corrupt', true]);
        assert.equal((await errorOf(client.flush())).errno, 'EIO');
      },
    ),
  );
}

for (const [what, changes] of [
  ['minimum that is no power of two', { blockSize: [3, 4096, MiB] }],
  ['maximum below the minimum', { blockSize: [4096, 4096, 512] }],
  ['size that is no multiple of the minimum', { blockSize: [4096, 4096, MiB], sizeBytes: MiB + 512 }],
  ['size beyond all images', { sizeBytes: 2 ** 53 - 1 }],
] as const) {
  test(
    `a server's ${what} is refused`,
    simulated(async (_simulation, host) => {
      const listener = await ScriptedServer.listen(host, ADDRESS, (server) =>
        server.handshake(entry(changes)),
      );
      assert.match((await errorOf(connect(host))).kind, /^(corrupt|limit)$/);
      await listener.close();
    }),
  );
}

test(
  'what is no NBD server, or talks without end, is refused',
  simulated(async (_simulation, host) => {
    let greeting = Buffer.from('HTTP/1.1 400 Bad Request\r\n');
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      for (let sent = 0; sent < 4 * MiB && !server.peer.isClosed; sent += greeting.length) {
        server.peer.send(greeting);
        if (sent % (64 * KiB) === 0) await host.clock.sleep(1);
      }
    });
    assert.equal((await errorOf(connect(host))).message, 'Bad initial magic received: 0x485454502f312e31');
    greeting = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT\0\x03', 'latin1'), Buffer.alloc(64 * KiB)]);
    assert.equal((await errorOf(connect(host))).kind, 'corrupt');
    await listener.close();
  }),
);

/** The error numbers that a server may refuse an option with, and one that nobody knows. */
const REFUSALS = [...Object.values(OptionReply).filter((type) => type > 2 ** 31), 2 ** 31 + 99];

test(
  'an option that the client can do without may be refused for any reason',
  simulated(async (_simulation, host) => {
    for (const refusal of REFUSALS) {
      for (const option of [Option.structuredReply, Option.setMetaContext]) {
        const refusals = new Map<number, number>([[option, refusal]]);
        const listener = await ScriptedServer.listen(host, ADDRESS, (server) =>
          server.handshake(entry({ refusals })),
        );
        const client = await connect(host);
        const { style, context, lengthBytes } = client.info;
        const expected = option === Option.setMetaContext ? 'structured' : 'simple';
        assert.deepEqual([style, context, lengthBytes], [expected, undefined, MiB]);
        await client.close();
        await listener.close();
      }
    }
  }),
);

test(
  'a refused GO is an error in QEMU’s words',
  simulated(async (_simulation, host) => {
    const cases: Array<[number, string]> = [
      [OptionReply.errPolicy, 'Denied by server for option 7 (go)'],
      [OptionReply.errInvalid, 'Invalid parameters for option 7 (go)'],
      [OptionReply.errPlatform, 'Server lacks support for option 7 (go)'],
      [OptionReply.errTlsRequired, 'TLS negotiation required before option 7 (go)'],
      [OptionReply.errUnknown, 'Requested export not available'],
      [OptionReply.errShutdown, 'Server shutting down before option 7 (go)'],
      [OptionReply.errBlockSizeRequired, 'Server requires INFO_BLOCK_SIZE for option 7 (go)'],
      [2 ** 31 + 99, 'Unknown error code when asking for option 7 (go)'],
    ];
    for (const [refusal, message] of cases) {
      const refusals = new Map<number, number>([[Option.go, refusal]]);
      const listener = await ScriptedServer.listen(host, ADDRESS, (server) =>
        server.handshake(entry({ refusals })),
      );
      assert.equal((await errorOf(connect(host))).message, message);
      await listener.close();
    }
  }),
);

test(
  'a peer that trickles gains no time',
  simulated(async (_simulation, host) => {
    const trickle = async (server: ScriptedServer, bytes: Buffer): Promise<void> => {
      for (const byte of bytes) {
        server.peer.send(Buffer.of(byte));
        await host.clock.sleep(900);
      }
    };
    let inHandshake = true;
    const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
      if (inHandshake) return trickle(server, Buffer.from('NBDMAGICIHAVEOPT'));
      await server.handshake(entry({ options: new Set([Option.go]) }));
      const request = await server.request();
      const reply = Buffer.alloc(SIMPLE_REPLY_BYTES);
      encodeSimpleReply(reply, 0, 0, request);
      await trickle(server, reply);
    });
    const since = (startedMs: number): number => Math.round((host.clock.nowMs() - startedMs) / 100);
    let startedMs = host.clock.nowMs();
    assert.equal((await errorOf(connect(host, { handshakeTimeoutMs: 3000 }))).kind, 'timeout');
    assert.equal(since(startedMs), 30);
    inHandshake = false;
    const client = await connect(host, { requestTimeoutMs: 2000 });
    startedMs = host.clock.nowMs();
    assert.equal((await errorOf(client.read(0, Buffer.alloc(512)))).kind, 'timeout');
    assert.equal(since(startedMs), 20);
    await client.close();
    await listener.close();
  }),
);

test(
  'a server that ends in the middle of its greeting, or says another one, is told by what was to come',
  simulated(async (_simulation, host) => {
    const eof = 'Unexpected end-of-file before all data were read';
    for (const [said, message] of [
      ['', `Failed to read initial magic: ${eof}`],
      ['NBDM', `Failed to read initial magic: ${eof}`],
      ['xxxxxxxx', 'Bad initial magic received: 0x7878787878787878'],
      ['NBDMAGIC', `Failed to read server magic: ${eof}`],
      ['NBDMAGICyyyyyyyy', 'Bad server magic received: 0x7979797979797979'],
      ['NBDMAGICIHAVEOPT\0', `Failed to read server flags: ${eof}`],
    ] as const) {
      const listener = await ScriptedServer.listen(host, ADDRESS, (server) => {
        server.peer.send(Buffer.from(said, 'latin1'));
        server.peer.socket.end();
        return Promise.resolve();
      });
      assert.equal((await errorOf(connect(host))).message, message);
      await listener.close();
    }
  }),
);
