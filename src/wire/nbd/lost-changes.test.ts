import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { KiB, MiB } from '../../base/limits.js';
import type { Host, SocketAddress } from '../../host/host.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { NbdPeer } from '../../../test/kit/nbd-peer.js';
import { MemoryTarget } from '../../../test/kit/nbd-target.js';
import { Command, CommandFlag } from './constants.js';
import type { IoRequest } from '../../base/io-request.js';
import { NbdServer } from './server.js';

const ADDRESS: SocketAddress = { type: 'unix', path: '/tmp/nbd' };

/** Writes wait until they are let go, in the order in which they came; the first byte tells them apart. */
class SlowTarget extends MemoryTarget {
  readonly begun: number[] = [];
  readonly #held: Array<() => void> = [];

  override tryRun(request: IoRequest): boolean {
    return request.kind !== 'write' && super.tryRun(request);
  }

  override async run(request: IoRequest): Promise<void> {
    if (request.kind !== 'write') return super.run(request);
    const { offset, lengthBytes } = request;
    const copy = Buffer.from(request.gather(0, lengthBytes));
    this.begun.push(copy[0] ?? 0);
    const gate = deferred();
    this.#held.push(() => gate.resolve());
    await gate.promise;
    this.bytes.set(copy, offset);
  }

  /** Lets the oldest write go on. */
  release(): void {
    this.#held.shift()?.();
  }
}

function onServer(
  body: (bed: { host: Host; server: NbdServer; target: SlowTarget }) => Promise<void>,
): () => Promise<void> {
  return async () => {
    const simulation = createSimulatedHost({ seed: 4 });
    const { host } = simulation;
    await simulation.run(async () => {
      const server = await NbdServer.listen(host, ADDRESS);
      const target = new SlowTarget(MiB);
      server.addExport({ name: 'one', target, readOnly: false, multiConn: true });
      server.addExport({ name: 'two', target, readOnly: false, multiConn: true });
      await body({ host, server, target });
      for (let i = 0; i < 400; i++) target.release();
      await server.close();
    });
  };
}

async function connected(host: Host, name: string): Promise<NbdPeer> {
  const peer = await NbdPeer.greet(host, ADDRESS);
  await peer.go(name);
  return peer;
}

function write(peer: NbdPeer, offset: number, value: number, lengthBytes = 4096): void {
  peer.request(Command.write, offset, lengthBytes, {
    cookie: value,
    payload: Buffer.alloc(lengthBytes, value),
  });
}

for (const name of ['one', 'two'])
  test(
    `a write of a client that is gone is done before an overlapping newer one begins, through ${name} of two exports`,
    onServer(async ({ host, server, target }) => {
      const old = await connected(host, 'one');
      write(old, 8192, 1);
      while (target.begun.length === 0) await host.clock.sleep(1);
      old.socket.destroy();
      const newer = await connected(host, name);
      while (server.connectionCount > 1) await host.clock.sleep(1);
      write(newer, 10240, 2);
      write(newer, 65536, 3);
      // What does not overlap need not wait, and answers while the old one is held.
      while (!target.begun.includes(3)) await host.clock.sleep(1);
      await host.clock.sleep(1000);
      assert.deepEqual(target.begun, [1, 3]);
      target.release();
      while (!target.begun.includes(2)) await host.clock.sleep(1);
      target.release();
      target.release();
      for (let i = 0; i < 2; i++) assert.equal((await newer.reply()).failure, 0);
      assert.equal(target.bytes[10239], 1);
      assert.ok(target.bytes.subarray(10240, 14336).every((byte) => byte === 2));
    }),
  );

test(
  'zeroes and trims of a client that is gone are waited for, too',
  onServer(async ({ host, server, target }) => {
    const gate = deferred();
    target.delay = () => gate.promise;
    for (const [command, offset] of [
      [Command.writeZeroes, 0],
      [Command.trim, 65536],
    ] as const) {
      const old = await connected(host, 'one');
      old.request(command, offset, 65536);
      while (server.inFlightOf('one') === 0) await host.clock.sleep(1);
      old.socket.destroy();
      while (server.connectionsOf('one') > 0) await host.clock.sleep(1);
    }
    const newer = await connected(host, 'two');
    write(newer, 4096, 5);
    newer.request(Command.trim, 65536, 512, { cookie: 6 });
    await host.clock.sleep(1000);
    assert.deepEqual(target.begun, []);
    assert.equal(target.log.length, 2);
    gate.resolve();
    while (target.begun.length === 0) await host.clock.sleep(1);
    assert.equal((await newer.reply()).cookieLow, 6);
  }),
);

test(
  'a client that waits for another one that is gone, and goes itself, changes nothing any more',
  onServer(async ({ host, server, target }) => {
    const first = await connected(host, 'one');
    write(first, 0, 1);
    while (target.begun.length === 0) await host.clock.sleep(1);
    first.socket.destroy();
    const second = await connected(host, 'one');
    while (server.connectionCount > 1) await host.clock.sleep(1);
    write(second, 0, 2);
    while (server.inFlightOf('one') === 0) await host.clock.sleep(1);
    second.socket.destroy();
    while (server.connectionCount > 0) await host.clock.sleep(1);
    const third = await connected(host, 'one');
    write(third, 0, 3);
    await host.clock.sleep(100);
    target.release();
    while (!target.begun.includes(3)) await host.clock.sleep(1);
    target.release();
    assert.equal((await third.reply()).failure, 0);
    assert.deepEqual(target.begun, [1, 3]);
    assert.equal(target.bytes[0], 3);
  }),
);

test(
  'of a client that has hung up while it was ahead of its disk, nothing begins any more',
  onServer(async ({ host, server, target }) => {
    const old = await connected(host, 'one');
    // More than may be in flight, so that the rest is not even read.
    for (let i = 0; i < 300; i++) write(old, 512 * i, 1, 512);
    while (target.begun.length < 256) await host.clock.sleep(1);
    void old.socket.shutDown();
    const newer = await connected(host, 'two');
    assert.equal(server.connectionsOf('one'), 0, 'the newcomer finds it gone');
    write(newer, 512 * 290, 9, 512);
    while (!target.begun.includes(9)) await host.clock.sleep(1);
    for (let i = 0; i < 400; i++) target.release();
    assert.equal((await newer.reply()).failure, 0);
    await host.clock.sleep(1000);
    assert.equal(target.begun.length, 257);
    assert.equal(target.bytes[512 * 290], 9);
  }),
);

for (const [way, find] of [
  ['by a newcomer', ({ host }) => connected(host, 'two')],
  ['in time', ({ host }) => host.clock.sleep(5000)],
  ['when it might be read on', ({ target }) => target.release()],
] as Array<[string, (bed: { host: Host; target: SlowTarget }) => unknown]>)
  test(
    `a client that says that it goes, and is found gone before that is read, hears no error: ${way}`,
    onServer(async ({ host, server, target }) => {
      const old = await connected(host, 'one');
      for (let i = 0; i < 300; i++) write(old, 512 * i, 1, 512);
      while (target.begun.length < 256) await host.clock.sleep(1);
      old.request(Command.disconnect, 0, 0);
      old.socket.end();
      await host.clock.sleep(10);
      await find({ host, target });
      while (!old.isClosed) await host.clock.sleep(1);
      assert.equal(old.closeError, undefined);
      assert.equal(server.connectionsOf('one'), 0);
    }),
  );

test(
  'a client that is not read, since it is ahead of its disk, is found out when it hangs up',
  onServer(async ({ host, server, target }) => {
    const old = await connected(host, 'one');
    for (let i = 0; i < 300; i++) write(old, 512 * i, 1, 512);
    while (target.begun.length < 256) await host.clock.sleep(1);
    await old.socket.shutDown();
    assert.equal(server.connectionCount, 0);
    assert.equal(target.begun.length, 256);
  }),
);

test('what clients make the server keep is bounded in sum, and those who hoard it are dropped', async () => {
  const simulation = createSimulatedHost({ seed: 5 });
  const { host } = simulation;
  let allocatedBytes = 0;
  await simulation.run(async () => {
    const counting = Object.create(host, {
      files: {
        value: Object.create(host.files, {
          buffer: {
            value: (lengthBytes: number) => {
              allocatedBytes += lengthBytes;
              return Buffer.allocUnsafeSlow(lengthBytes);
            },
          },
        }) as Host['files'],
      },
    }) as Host;
    const server = await NbdServer.listen(counting, ADDRESS);
    server.addExport({ name: 'one', target: new MemoryTarget(64 * MiB), readOnly: false, multiConn: true });
    const hoarders = await hoard(host, 40);
    await host.clock.sleep(1000);
    assert.ok(allocatedBytes < 900 * MiB, `${allocatedBytes / MiB} MiB`);
    // Small requests, and those without data, are served at once all the same.
    const honest = await connected(host, 'one');
    const beganMs = host.clock.nowMs();
    assert.equal((await honest.ask(Command.read, 0, 512)).failure, 0);
    assert.equal(
      (await honest.ask(Command.write, 0, 64 * KiB, { payload: Buffer.alloc(64 * KiB, 7) })).failure,
      0,
    );
    assert.equal((await honest.ask(Command.flush, 0, 0)).failure, 0);
    for (let i = 0; i < 8; i++) honest.request(Command.read, 64 * KiB * i, 64 * KiB);
    for (let i = 0; i < 8; i++) assert.equal((await honest.reply(64 * KiB)).failure, 0);
    assert.ok(host.clock.nowMs() - beganMs < 1000, `${host.clock.nowMs() - beganMs} ms`);
    assert.ok(hoarders.every(({ isClosed }) => !isClosed));
    // A large one waits for its turn, but not for ever.
    assert.equal((await honest.ask(Command.read, 0, 32 * MiB)).failure, 0);
    assert.ok(hoarders.some(({ isClosed }) => isClosed));
    await server.close();
  });
});

/** Clients that have announced the largest writes there are, and sent a byte of each. There is memory for 24 of them. */
async function hoard(host: Host, clients: number): Promise<NbdPeer[]> {
  const hoarders: NbdPeer[] = [];
  for (let i = 0; i < clients; i++) {
    const peer = await connected(host, 'one');
    peer.request(Command.write, 0, 32 * MiB, { payload: Buffer.alloc(1) });
    hoarders.push(peer);
  }
  return hoarders;
}

/** A server with a large disk. */
function onLarge(body: (host: Host, target: MemoryTarget) => Promise<void>): () => Promise<void> {
  return async () => {
    const simulation = createSimulatedHost({ seed: 6 });
    const { host } = simulation;
    await simulation.run(async () => {
      const server = await NbdServer.listen(host, ADDRESS);
      const target = new MemoryTarget(64 * MiB);
      server.addExport({ name: 'one', target, readOnly: false, multiConn: true });
      await body(host, target);
      await server.close();
    });
  };
}

test(
  'who comes when memory has been hoarded for long does not wait for it',
  onLarge(async (host) => {
    await hoard(host, 24);
    await host.clock.sleep(30_000);
    const honest = await connected(host, 'one');
    const beganMs = host.clock.nowMs();
    assert.equal((await honest.ask(Command.read, 0, 32 * MiB)).failure, 0);
    assert.ok(host.clock.nowMs() - beganMs < 1000, `${host.clock.nowMs() - beganMs} ms`);
  }),
);

test(
  'of those who keep memory waiting who moves it is waited for, and who sends a byte now and then is not',
  onLarge(async (host) => {
    const slow = await connected(host, 'one');
    slow.request(Command.write, 0, 32 * MiB);
    const hoarders = await hoard(host, 40);
    let sentMiB = 0;
    const sending = (async () => {
      for (; sentMiB < 31; sentMiB++) {
        slow.send(Buffer.alloc(MiB));
        for (const { socket, isClosed } of hoarders) if (!isClosed) socket.write(Buffer.alloc(1));
        await host.clock.sleep(3000);
      }
    })();
    const honest = await connected(host, 'one');
    const beganMs = host.clock.nowMs();
    // By then those who waited for memory from the beginning have some, and hoard it.
    for (let i = 0; i < 4; i++) {
      assert.equal((await honest.ask(Command.read, 0, 32 * MiB)).failure, 0);
      await host.clock.sleep(1000);
    }
    assert.ok(host.clock.nowMs() - beganMs < 45_000, `${host.clock.nowMs() - beganMs} ms`);
    assert.ok(hoarders.some(({ isClosed }) => isClosed));
    await sending;
    slow.send(Buffer.alloc(MiB));
    assert.equal((await slow.reply()).failure, 0);
  }),
);

test(
  'who has waited long for memory has time to take what it asked for',
  onLarge(async (host) => {
    await hoard(host, 40);
    const waiting = await Promise.all([connected(host, 'one'), connected(host, 'one')]);
    for (const peer of waiting) {
      peer.socket.pause();
      peer.request(Command.read, 0, 32 * MiB, { flags: CommandFlag.df });
    }
    await host.clock.sleep(12_000);
    await hoard(host, 40);
    await host.clock.sleep(5000);
    for (const peer of waiting) {
      peer.socket.resume();
      assert.equal((await peer.reply(32 * MiB)).failure, 0);
    }
  }),
);

test(
  'who has waited long for the disk has time to take what it asked for',
  onLarge(async (host, target) => {
    target.isLate = true;
    target.delay = () => host.clock.sleep(20_000);
    const peer = await connected(host, 'one');
    peer.socket.pause();
    peer.request(Command.read, 0, 32 * MiB, { flags: CommandFlag.df });
    await host.clock.sleep(21_000);
    await hoard(host, 40);
    await host.clock.sleep(5000);
    peer.socket.resume();
    assert.equal((await peer.reply()).failure, 0);
  }),
);
