import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { IoVector } from '../../base/io-vector.js';
import { KiB, MiB } from '../../base/limits.js';
import type { Host, HostFile } from '../../host/host.js';
import { ScriptedServer } from '../../../test/kit/nbd-script.js';
import { errorOf, MemoryTarget } from '../../../test/kit/nbd-target.js';
import { ADDRESS, connect, entry, simulated } from '../../../test/kit/nbd-client-bed.js';
import { decodeRequest, newRequest } from './codec.js';
import { Command, NbdError, REQUEST_BYTES } from './constants.js';
import { NbdServer } from './server.js';

const LENGTH = 512 * KiB;

/** A file of random bytes, always in the page cache. */
async function fileOf(host: Host): Promise<{ file: HostFile; bytes: Buffer }> {
  const file = await host.files.open('/tmp/file', { write: true, create: true });
  const bytes = Buffer.alloc(MiB);
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(host.random.below(2 ** 32), at);
  await file.write(0, IoVector.of(bytes), 0, bytes.length);
  Object.assign(file, { isAtHand: () => true });
  return { file, bytes };
}

test(
  'what is written of a file is what lies there, and what is no file at hand is not written',
  simulated(async (_simulation, host) => {
    const server = await NbdServer.listen(host, ADDRESS);
    const target = new MemoryTarget(MiB);
    server.addExport({ name: '', target, readOnly: false, multiConn: true });
    const client = await connect(host);
    const { file, bytes } = await fileOf(host);
    assert.equal(client.sendsFiles, true);
    assert.equal(await client.writeFile(4 * KiB, { file, position: 8 * KiB }, LENGTH, 0), true);
    assert.ok(
      target.bytes.subarray(4 * KiB, 4 * KiB + LENGTH).equals(bytes.subarray(8 * KiB, 8 * KiB + LENGTH)),
    );
    const before = Buffer.from(target.bytes);
    assert.equal(await client.writeFile(0, { file: {}, position: 0 }, LENGTH, 0), false);
    Object.assign(file, { isAtHand: () => false });
    assert.equal(await client.writeFile(0, { file, position: 0 }, LENGTH, 0), false);
    assert.ok(target.bytes.equals(before));
    await client.flush();
    await client.close();
    await server.close();
  }),
);

/** A server that answers a write with an error before it has read the bytes, which it does when `goOn` is resolved. */
async function hasty(host: Host, goOn: Promise<void>, answers = 1) {
  const received = deferred<Buffer>();
  const listener = await ScriptedServer.listen(host, ADDRESS, async (server) => {
    const { peer } = server;
    await server.handshake(entry());
    const header = newRequest();
    decodeRequest(await peer.take(REQUEST_BYTES), 0, header, 'simple');
    assert.equal(header.command, Command.write);
    peer.socket.pause();
    for (let i = 0; i < answers; i++) server.simple(header, NbdError.ENOSPC);
    await goOn;
    peer.socket.resume();
    received.resolve(Buffer.from(await peer.take(header.lengthBytes)));
    server.simple(await server.request());
  });
  return { listener, received: received.promise };
}

test(
  'a write of a file that is refused at once ends when its bytes are gone, and the connection goes on',
  simulated(async (_simulation, host) => {
    const goOn = deferred();
    const { listener, received } = await hasty(host, goOn.promise);
    const client = await connect(host);
    const { file, bytes } = await fileOf(host);
    let isOver = false;
    const written = errorOf(client.writeFile(0, { file, position: 0 }, LENGTH, 0));
    void written.then(() => (isOver = true));
    await host.clock.sleep(1000);
    assert.equal(isOver, false, 'bytes of the file are still to be sent');
    goOn.resolve();
    assert.equal((await written).errno, 'ENOSPC');
    assert.ok((await received).equals(bytes.subarray(0, LENGTH)));
    await client.flush();
    await client.close();
    await listener.close();
  }),
);

for (const [what, answers, kind] of [
  [
    'a server that refuses a write of a file and then reads nothing is waited for as one that is silent',
    1,
    'timeout',
  ],
  ['a second answer to a write of a file whose bytes are still to be sent ends the connection', 2, 'corrupt'],
] as const)
  test(
    what,
    simulated(async (_simulation, host) => {
      const { listener } = await hasty(host, new Promise(() => undefined), answers);
      const client = await connect(host, { requestTimeoutMs: 1000 });
      const { file } = await fileOf(host);
      assert.equal((await errorOf(client.writeFile(0, { file, position: 0 }, LENGTH, 0))).kind, kind);
      await client.close();
      await listener.close();
    }),
  );

test(
  'a connection that is lost fails writes of files, those that wait for their turn, too',
  simulated(async (simulation, host) => {
    const { listener } = await hasty(host, new Promise(() => undefined), 0);
    const client = await connect(host);
    const { file } = await fileOf(host);
    const failed = Array.from({ length: 80 }, () =>
      errorOf(client.writeFile(0, { file, position: 0 }, LENGTH, 0)),
    );
    await host.clock.sleep(100);
    simulation.cutConnections();
    for (const error of await Promise.all(failed)) assert.equal(error.errno, 'EIO');
    await client.close();
    await listener.close();
  }),
);
