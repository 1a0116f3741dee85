import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MiB } from '../../base/limits.js';
import type { Host, SocketAddress } from '../../host/host.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { NbdPeer, type OptionAnswer } from '../../../test/kit/nbd-peer.js';
import { errorOf, MemoryTarget } from '../../../test/kit/nbd-target.js';
import { NbdClient } from './client.js';
import {
  decodeExtents,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  type Extent,
  uint32,
  writeUint64,
} from './codec.js';
import {
  Command,
  CommandFlag,
  Info,
  NbdError,
  Option,
  OptionReply,
  ReplyType,
  TransmissionFlag,
} from './constants.js';
import type { IoRequest } from '../../base/io-request.js';
import { NbdServer } from './server.js';
import type { MetaContext } from './target.js';

const ADDRESS: SocketAddress = { type: 'unix', path: '/tmp/nbd' };
const SIZE = 256 * KiB;

/** Dirty where `isDirty` says so, by units of 4 KiB. */
function bitmap(name: string, isDirty: (unit: number) => boolean): MetaContext {
  return {
    name: `qemu:dirty-bitmap:${name}`,
    extentAt: (offset, lengthBytes) => {
      const unit = Math.floor(offset / 4096);
      return { lengthBytes: Math.min(lengthBytes, 4096 * (unit + 1) - offset), state: isDirty(unit) ? 1 : 0 };
    },
  };
}

const depth: MetaContext = {
  name: 'qemu:allocation-depth',
  extentAt: async (_offset, lengthBytes) => ({ lengthBytes, state: 3 }),
};

const CONTEXTS = [depth, bitmap('b0', (unit) => unit === 1), bitmap('b1', () => true)];

function onServer(body: (host: Host, target: MemoryTarget) => Promise<void>): () => Promise<void> {
  return async () => {
    const simulation = createSimulatedHost({ seed: 1 });
    const { host } = simulation;
    await simulation.run(async () => {
      const server = await NbdServer.listen(host, ADDRESS);
      const target = new MemoryTarget(SIZE);
      const shared = { target, readOnly: false, multiConn: true };
      server.addExport({ ...shared, name: 'disk', contexts: CONTEXTS });
      server.addExport({ ...shared, name: 'plain' });
      await body(host, target);
      await server.close();
    });
  };
}

const names = (answers: readonly OptionAnswer[]): string[] =>
  answers.slice(0, -1).map(({ payload }) => payload.toString('utf8', 4));

test(
  'contexts are listed by name and by family, and agreed by their names only, in the order of their ids',
  onServer(async (host) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    const list = async (...queries: string[]): Promise<string[]> =>
      names(await peer.option(Option.listMetaContext, encodeMetaContextRequest({ name: 'disk', queries })));
    const [b0, b1] = ['qemu:dirty-bitmap:b0', 'qemu:dirty-bitmap:b1'];
    const all = ['base:allocation', 'qemu:allocation-depth', b0, b1];
    assert.deepEqual(await list(), all);
    assert.deepEqual(await list('base:'), ['base:allocation']);
    assert.deepEqual(await list('qemu:'), all.slice(1));
    assert.deepEqual(await list('qemu:dirty-bitmap:'), [b0, b1]);
    assert.deepEqual(await list(b1, 'base:allocation'), ['base:allocation', b1]);
    assert.deepEqual(await list('qemu:dirty-bitmap:nope', 'qemu:x', 'foo:', 'base:x', ''), []);
    await peer.option(Option.structuredReply);
    const set = (name: string, ...queries: string[]): Promise<OptionAnswer[]> =>
      peer.option(Option.setMetaContext, encodeMetaContextRequest({ name, queries }));
    assert.deepEqual(names(await set('disk', 'qemu:', 'base:', 'qemu:dirty-bitmap:')), []);
    assert.deepEqual(names(await set('plain', 'base:allocation', b1)), ['base:allocation']);
    const agreed = await set('disk', b1, 'base:allocation');
    assert.deepEqual(names(agreed), ['base:allocation', b1]);
    assert.deepEqual(
      agreed.slice(0, -1).map(({ payload }) => payload.readUInt32BE(0)),
      [0, 3],
    );
  }),
);

/** What one BLOCK_STATUS tells, by context. */
async function statusOf(
  peer: NbdPeer,
  chunks: number,
  ask: () => void,
): Promise<Map<number, readonly Extent[]>> {
  ask();
  const found = new Map<number, readonly Extent[]>();
  for (let i = 0; i < chunks; i++) {
    const reply = await peer.reply();
    assert.equal(reply.failure, 0);
    assert.equal(reply.flags, i === chunks - 1 ? 1 : 0, 'only the last chunk is the last');
    const { contextId, extents } = decodeExtents(reply.payload, peer.style);
    found.set(contextId, extents);
  }
  return found;
}

const WANTED = ['base:allocation', ...CONTEXTS.map(({ name }) => name)];

for (const extended of [false, true])
  test(
    `one status tells of all contexts that were agreed upon, ${extended ? 'extended' : 'structured'}`,
    onServer(async (host, target) => {
      target.bytes.fill(1, 0, 8192);
      const peer = await NbdPeer.greet(host, ADDRESS);
      await peer.go('disk', { extended, contexts: WANTED });
      const all = await statusOf(peer, 4, () => peer.request(Command.blockStatus, 0, 16384));
      assert.deepEqual(
        [...all],
        [
          [
            0,
            [
              { lengthBytes: 8192, state: 0 },
              { lengthBytes: 8192, state: 3 },
            ],
          ],
          [1, [{ lengthBytes: 16384, state: 3 }]],
          [
            2,
            [
              { lengthBytes: 4096, state: 0 },
              { lengthBytes: 4096, state: 1 },
              { lengthBytes: 8192, state: 0 },
            ],
          ],
          [3, [{ lengthBytes: 16384, state: 1 }]],
        ],
      );
      const one = await statusOf(peer, 4, () =>
        peer.request(Command.blockStatus, 4096, 8192, { flags: CommandFlag.reqOne }),
      );
      assert.deepEqual(
        [...one.values()],
        [
          [{ lengthBytes: 4096, state: 0 }],
          [{ lengthBytes: 8192, state: 3 }],
          [{ lengthBytes: 4096, state: 1 }],
          [{ lengthBytes: 8192, state: 1 }],
        ],
      );
    }),
  );

test(
  'with extended headers a status may be asked of some contexts; what is no such list is refused and read over',
  onServer(async (host) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    const answers = await peer.go('disk', { extended: true, contexts: WANTED });
    const infos = answers.find(
      ({ type, payload }) => type === OptionReply.info && payload.readUInt16BE(0) === Info.export,
    );
    assert.ok(((infos?.payload.readUInt16BE(10) ?? 0) & TransmissionFlag.blockStatusPayload) !== 0);
    const flags = CommandFlag.payloadLength;
    const payload = (...ids: number[]): Buffer => {
      const length = Buffer.alloc(8);
      writeUint64(length, 0, 8192);
      return Buffer.concat([length, ...ids.map(uint32)]);
    };
    const ask = (bytes: Buffer): void =>
      peer.request(Command.blockStatus, 0, bytes.length, { flags, payload: bytes });
    const some = await statusOf(peer, 2, () => ask(payload(3, 1)));
    assert.deepEqual(
      [...some],
      [
        [3, [{ lengthBytes: 8192, state: 1 }]],
        [1, [{ lengthBytes: 8192, state: 3 }]],
      ],
    );
    for (const bad of [payload(), payload(7), payload(1, 1), Buffer.alloc(3), payload(0, 1, 2, 3, 4, 5)]) {
      ask(bad);
      assert.equal((await peer.reply()).failure, NbdError.EINVAL);
    }
    const beyond = payload(1);
    writeUint64(beyond, 0, 2 * SIZE);
    ask(beyond);
    assert.equal((await peer.reply()).failure, NbdError.EINVAL);
    assert.equal((await peer.ask(Command.flush, 0, 0)).failure, 0);
  }),
);

test(
  'extended headers carry what is written and read, holes and errors, each with the offset of its request',
  onServer(async (host, target) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('disk', { extended: true });
    const payload = Buffer.alloc(70 * KiB, 7);
    const flags = CommandFlag.payloadLength;
    for (const isLate of [false, true]) {
      target.isLate = isLate;
      const written = await peer.ask(Command.write, 512, payload.length, { flags, payload });
      assert.deepEqual(
        [written.style, written.type, written.failure, written.offset],
        ['extended', ReplyType.none, 0, 512],
      );
      const read = await peer.ask(Command.read, 1024, 4096);
      assert.deepEqual([read.type, read.offset, read.payload.length], [ReplyType.offsetData, 1024, 4104]);
      assert.ok(read.payload.subarray(8).equals(payload.subarray(0, 4096)));
      peer.request(Command.read, 0, SIZE);
      const hole = await peer.reply();
      assert.deepEqual([hole.type, hole.offset, hole.flags], [ReplyType.offsetHole, 0, 0]);
      const data = await peer.reply();
      assert.deepEqual([data.type, data.offset, data.flags], [ReplyType.offsetData, 0, 1]);
    }
    const past = await peer.ask(Command.read, SIZE - 512, 1024);
    assert.deepEqual([past.failure, past.offset], [NbdError.EINVAL, SIZE - 512]);
    // A write has data, whether its flag says so or not. What other commands have is read over.
    assert.equal((await peer.ask(Command.write, 0, 512, { payload: Buffer.alloc(512) })).failure, 0);
    const odd = await peer.ask(Command.trim, 0, 512, { flags, payload: Buffer.alloc(512) });
    assert.equal(odd.failure, NbdError.EINVAL);
    assert.equal((await peer.ask(Command.flush, 0, 0)).failure, 0);
  }),
);

test(
  'extended headers come instead of structured replies, and rule EXPORT_NAME out',
  onServer(async (host) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    const type = async (option: number): Promise<number | undefined> =>
      (await peer.option(option)).at(-1)?.type;
    assert.equal(await type(Option.structuredReply), OptionReply.ack);
    assert.equal(await type(Option.extendedHeaders), OptionReply.ack);
    assert.equal(await type(Option.extendedHeaders), OptionReply.errInvalid);
    assert.equal(await type(Option.structuredReply), OptionReply.errExtendedHeadersRequired);
    peer.send(encodeOption(Option.exportName, Buffer.from('disk')));
    assert.equal((await peer.untilClosed()).length, 0);
  }),
);

test('one request may be about more than 4 GiB with extended headers', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  const { host } = simulation;
  await simulation.run(async () => {
    const server = await NbdServer.listen(host, ADDRESS);
    const target = new MemoryTarget(MiB);
    const hugeBytes = 5 * 1024 * MiB;
    const zeroed: number[] = [];
    const huge = Object.assign(target, {
      run: async ({ lengthBytes }: IoRequest) => void zeroed.push(lengthBytes),
      status: async (_offset: number, lengthBytes: number) => ({ lengthBytes, zero: true, data: false }),
    });
    Object.defineProperty(huge, 'lengthBytes', { value: hugeBytes });
    server.addExport({ name: 'huge', target: huge, readOnly: false, multiConn: true });
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.go('huge', { extended: true });
    assert.equal((await peer.ask(Command.writeZeroes, 0, hugeBytes)).failure, 0);
    assert.equal(
      zeroed.reduce((sum, bytes) => sum + bytes, 0),
      hugeBytes,
    );
    const status = await peer.ask(Command.blockStatus, 0, hugeBytes);
    assert.deepEqual(decodeExtents(status.payload, 'extended').extents, [
      { lengthBytes: hugeBytes, state: 3 },
    ]);
    await server.close();
  });
});

test(
  'our client asks for any context, in every style of headers that has any',
  onServer(async (host) => {
    const contextName = 'qemu:dirty-bitmap:b0';
    for (const style of ['structured', 'extended'] as const) {
      const client = await NbdClient.connect({
        host,
        address: ADDRESS,
        exportName: 'disk',
        contextName,
        style,
      });
      assert.equal(client.info.style, style);
      assert.deepEqual(await client.blockStatus(4096, 8192), { lengthBytes: 4096, state: 1 });
      await client.close();
    }
    const without = await NbdClient.connect({ host, address: ADDRESS, exportName: 'plain', contextName });
    assert.equal(without.info.context, undefined);
    await without.close();
    const none = NbdClient.connect({ host, address: ADDRESS, exportName: 'nope', contextName });
    assert.equal((await errorOf(none)).message, 'Requested export not available');
  }),
);

test(
  'contexts hold only for the export that they were agreed for',
  onServer(async (host) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    await peer.option(Option.extendedHeaders);
    peer.style = 'extended';
    await peer.option(
      Option.setMetaContext,
      encodeMetaContextRequest({ name: 'disk', queries: ['qemu:allocation-depth'] }),
    );
    await peer.option(Option.go, encodeInfoRequest({ name: 'plain', infos: [] }));
    assert.equal((await peer.ask(Command.blockStatus, 0, 512)).failure, NbdError.EINVAL);
  }),
);
