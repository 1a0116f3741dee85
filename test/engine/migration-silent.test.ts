import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import net from 'node:net';
import { test, type TestContext } from 'node:test';
import type { Host, HostNet } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import type { MigrationInfo } from '../../src/schema/migration.js';
import { HeldClock } from '../kit/held-clock.js';
import type { EngineBed } from './engine-bed.js';
import { MigrationBed, statusOf } from './migration-bed.js';

/** Other ends that are there, and say nothing. */

const SOON = { timeout: 20_000 };

function heldHost(): { host: Host; clock: HeldClock } {
  const host = createRealHost();
  const clock = new HeldClock(host.clock, 1000);
  return { host: { ...host, clock }, clock };
}

async function setTls(bed: EngineBed, endpoint: 'client' | 'server'): Promise<void> {
  writeFileSync(bed.path('keys.psk'), `qemu:${'ab'.repeat(32)}\n`);
  await bed.execute('object-add', { 'qom-type': 'tls-creds-psk', id: 'tls', dir: bed.path('.'), endpoint });
  await bed.execute('migrate-set-parameters', { 'tls-creds': 'tls' });
}

/** Takes connections, and what comes over them. */
async function silentServer(t: TestContext, path: string): Promise<net.Server> {
  const sockets: net.Socket[] = [];
  const server = net.createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => undefined).resume();
  });
  await once(server.listen(path), 'listening');
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return server;
}

async function infoOf(bed: EngineBed): Promise<MigrationInfo> {
  return (await bed.execute('query-migrate')) as MigrationInfo;
}

const SILENT = 'TLS handshake failed: the other end does not answer';

test(
  'a destination that says nothing to a handshake of TLS is waited for no longer than 30 s',
  SOON,
  async (t) => {
    const { host, clock } = heldHost();
    const { source } = await MigrationBed.shared(t, { source: { host } });
    await setTls(source, 'client');
    const uri = `unix:${source.path('silent')}`;
    const server = await silentServer(t, source.path('silent'));
    const passWhenHeard = async (): Promise<void> => {
      const [socket] = (await once(server, 'connection')) as [net.Socket];
      await once(socket, 'data');
      clock.pass(30_000);
    };
    const heard = passWhenHeard();
    await source.execute('migrate', { uri });
    await heard;
    await source.engine.moves.source.ended;
    assert.deepEqual(await infoOf(source), { status: 'failed', 'error-desc': SILENT });
    for (const isDry of [true, false]) {
      void passWhenHeard();
      assert.equal(await source.refusal('x-move', { uri, 'dry-run': isDry }), SILENT);
    }
    assert.equal(await statusOf(source), 'running');
  },
);

test('migrate_cancel, and the end of the engine, wait for no handshake of TLS', SOON, async (t) => {
  const { source } = await MigrationBed.shared(t);
  await setTls(source, 'client');
  const server = await silentServer(t, source.path('silent'));
  const begin = async (): Promise<void> => {
    const came = once(server, 'connection');
    await source.execute('migrate', { uri: `unix:${source.path('silent')}` });
    const [socket] = (await came) as [net.Socket];
    await once(socket, 'data');
  };
  await begin();
  await source.execute('migrate_cancel');
  await source.engine.moves.source.ended;
  assert.deepEqual(await infoOf(source), { status: 'cancelled' });
  await begin();
  await source.engine.moves.close();
});

test(
  'a host that is dead is waited for no longer than 30 s, and not at all after migrate_cancel',
  SOON,
  async (t) => {
    const real = createRealHost();
    const timeouts: Array<number | undefined> = [];
    const dead: Pick<HostNet, 'connect'> = {
      connect(_address, options) {
        timeouts.push(options?.timeoutMs);
        return new Promise(() => undefined);
      },
    };
    const host = { ...real, net: dead as HostNet };
    const { source } = await MigrationBed.shared(t, { source: { host } });
    await source.execute('migrate', { uri: 'tcp:dead:1' });
    await source.execute('migrate_cancel');
    await source.engine.moves.source.ended;
    assert.deepEqual(await infoOf(source), { status: 'cancelled' });
    assert.deepEqual(timeouts, [30_000]);
  },
);

test('a source that says nothing to a handshake of TLS is hung up on after 30 s', SOON, async (t) => {
  const { host, clock } = heldHost();
  const bed = await MigrationBed.shared(t, { destination: { host } });
  await setTls(bed.destination, 'server');
  await bed.listen();
  const socket = net.connect(bed.destination.path('move'));
  t.after(() => socket.destroy());
  await once(socket, 'connect');
  const closed = once(socket.resume(), 'close');
  const timer = setInterval(() => clock.pass(30_000), 50);
  await closed.finally(() => clearInterval(timer));
  while (bed.warnings.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(bed.warnings, [SILENT]);
});
