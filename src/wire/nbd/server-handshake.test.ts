import assert from 'node:assert/strict';
import { test } from 'node:test';
import { KiB, MAX_NBD_REQUEST_BYTES } from '../../base/limits.js';
import { NbdPeer } from '../../../test/kit/nbd-peer.js';
import { ADDRESS, onServer, SIZE } from '../../../test/kit/nbd-bed.js';
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from './codec.js';
import { Command, Info, NbdError, Option, OptionReply } from './constants.js';

const types = (answers: ReadonlyArray<{ type: number }>): number[] => answers.map(({ type }) => type);

test(
  'GO and INFO tell size, flags, block sizes and description; INFO does not end the handshake',
  onServer(async ({ host }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    const request = encodeInfoRequest({ name: 'disk', infos: [Info.name] });
    for (const option of [Option.info, Option.go]) {
      const answers = await peer.option(option, request);
      const infos = new Map(answers.slice(0, -1).map(({ payload }) => [payload.readUInt16BE(0), payload]));
      assert.equal(answers.at(-1)?.type, OptionReply.ack);
      assert.equal(infos.get(Info.export)?.readBigUInt64BE(2), BigInt(SIZE));
      assert.equal(infos.get(Info.name)?.toString('utf8', 2), 'disk');
      assert.equal(infos.get(Info.description)?.toString('utf8', 2), 'a disk');
      assert.equal(infos.get(Info.blockSize)?.readUInt32BE(10), MAX_NBD_REQUEST_BYTES);
    }
    assert.equal((await peer.ask(Command.flush, 0, 0)).failure, 0);
  }),
);

test(
  'LIST names all exports; unknown names and options are refused and the haggling goes on',
  onServer(async ({ host }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    const names = (await peer.option(Option.list)).slice(0, -1).map(({ payload }) => {
      return payload.toString('utf8', 4, 4 + payload.readUInt32BE(0));
    });
    assert.deepEqual(names, ['disk', 'ro']);
    assert.deepEqual(types(await peer.option(Option.list, Buffer.alloc(3))), [OptionReply.errInvalid]);
    assert.deepEqual(types(await peer.option(4711, Buffer.alloc(9))), [OptionReply.errUnsup]);
    assert.deepEqual(types(await peer.option(Option.startTls)), [OptionReply.errPolicy]);
    assert.deepEqual(types(await peer.option(Option.go, Buffer.alloc(5))), [OptionReply.errInvalid]);
    assert.deepEqual(types(await peer.option(4711, Buffer.alloc(100 * KiB))), [OptionReply.errTooBig]);
    const unknown = await peer.go('nothing', { structured: false });
    assert.deepEqual(types(unknown), [OptionReply.errUnknown]);
    for (const [name, told] of [
      ['x'.repeat(79), 'x'.repeat(79)],
      ['x'.repeat(80), `${'x'.repeat(80)}...`],
      ['\u00e9'.repeat(2048), `${'\u00e9'.repeat(40)}...`],
    ] as const) {
      const [answer] = await peer.go(name, { structured: false });
      assert.equal(answer?.payload.toString(), `export '${told}' not present`);
    }
    assert.equal((await peer.go('disk')).at(-1)?.type, OptionReply.ack);
  }),
);

test('why a client did not come in is told as QEMU tells it', async () => {
  const eof = 'Unexpected end-of-file before all data were read';
  const option = (number: number, lengthBytes: number, ...payload: number[]): string =>
    `IHAVEOPT\0\0\0${String.fromCharCode(number)}${String.fromCharCode(
      Math.floor(lengthBytes / 2 ** 24),
    )}\0\0${String.fromCharCode(lengthBytes % 256)}${String.fromCharCode(...payload)}`;
  const cases: ReadonlyArray<[said: string, why: string | undefined]> = [
    ['', `Failed to read flags: ${eof}`],
    ['\0\0', `Failed to read flags: ${eof}`],
    ['\0\0\0\x03', `Failed to read opts magic: ${eof}`],
    ['\0\0\0\x03IHAVE', `Failed to read opts magic: ${eof}`],
    ['\0\0\0\x03IHAVEOPT\0\0', `Failed to read option: ${eof}`],
    ['\0\0\0\x03IHAVEOPT\0\0\0\x07\0', `Failed to read option length: ${eof}`],
    [`\0\0\0\x03${option(7, 32, 0)}`, eof],
    ['\0\0\0\xff', 'Unknown client flags 0xfc received'],
    ['\0\0\0\x03IHAVEOPX\0\0\0\x07\0\0\0\0', 'Bad magic received'],
    [`\0\0\0\x03${option(7, 2 ** 28 + 32)}`, 'len (268435488) is larger than max len (33554432)'],
    [`\0\0\0\x03${option(1, 2, 97, 97)}`, 'export not found'],
    [`\0\0\0\0${option(7, 0)}`, 'Unsupported option 7 (go)'],
    [`\0\0\0\x03${option(2, 0)}`, undefined],
    [`\0\0\0\x03${option(1, 4, 100, 105, 115, 107)}`, undefined],
  ];
  const refused: string[] = [];
  await onServer(
    async ({ host, server }) => {
      for (const [said, why] of cases) {
        const peer = await NbdPeer.connect(host, ADDRESS);
        peer.send(Buffer.from(said, 'latin1'));
        while (server.connectionCount === 0) await host.clock.sleep(1);
        await host.clock.sleep(1);
        peer.socket.end();
        while (server.connectionCount > 0) await host.clock.sleep(1);
        assert.deepEqual(refused.splice(0), why === undefined ? [] : [why], JSON.stringify(said));
      }
    },
    { onRefused: (why) => refused.push(why) },
  )();
});

test(
  'ABORT is acknowledged and ends the connection',
  onServer(async ({ host }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    assert.deepEqual(types(await peer.option(Option.abort)), [OptionReply.ack]);
    assert.equal((await peer.untilClosed()).length, 0);
  }),
);

test(
  'EXPORT_NAME starts transmission, with 124 zeroes unless the client declined them, or hangs up',
  onServer(async ({ host }) => {
    for (const [flags, zeroes] of [
      [1, 124],
      [3, 0],
      [0, 124],
    ] as const) {
      const peer = await NbdPeer.greet(host, ADDRESS, flags);
      peer.send(encodeOption(Option.exportName, Buffer.from('disk')));
      const reply = await peer.take(10 + zeroes);
      assert.equal(reply.readBigUInt64BE(0), BigInt(SIZE));
      assert.equal((await peer.ask(Command.read, 0, 512)).payload.length, 512);
    }
    const peer = await NbdPeer.greet(host, ADDRESS);
    peer.send(encodeOption(Option.exportName, Buffer.from('nothing')));
    assert.equal((await peer.untilClosed()).length, 0);
  }),
);

test(
  'meta contexts need structured replies, are listed, and hold only for the export named',
  onServer(async ({ host }) => {
    const peer = await NbdPeer.greet(host, ADDRESS);
    const query = (name: string, ...queries: string[]): Buffer => encodeMetaContextRequest({ name, queries });
    const set = (payload: Buffer): Promise<Array<{ type: number }>> =>
      peer.option(Option.setMetaContext, payload);
    assert.deepEqual(types(await set(query('disk', 'base:allocation'))), [OptionReply.errInvalid]);
    await peer.option(Option.structuredReply);
    assert.deepEqual(types(await peer.option(Option.structuredReply)), [OptionReply.errInvalid]);
    assert.deepEqual(types(await set(query('nothing', 'base:allocation'))), [OptionReply.errUnknown]);
    assert.deepEqual(types(await set(query('disk', 'other:thing'))), [OptionReply.ack]);
    assert.deepEqual(types(await set(query('ro', 'base:allocation'))), [
      OptionReply.metaContext,
      OptionReply.ack,
    ]);
    const listed = await peer.option(Option.listMetaContext, query('disk'));
    assert.equal(listed[0]?.payload.toString('utf8', 4), 'base:allocation');
    await peer.option(Option.go, encodeInfoRequest({ name: 'disk', infos: [] }));
    assert.equal((await peer.ask(Command.blockStatus, 0, 512)).failure, NbdError.EINVAL);
  }),
);
