import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { errnoError } from '../../src/base/error.js';
import { tlsEnd } from '../../src/block/objects/tls-end.js';
import type { HostSocket } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import { StateKeeper } from '../../src/monitor/state/keeper.js';
import { StateStore } from '../../src/monitor/state/store.js';
import { SocketStream } from '../../src/wire/migration/byte-stream.js';
import { MoveChannel } from '../../src/wire/migration/channel.js';
import type { EngineState } from '../../src/schema/state.js';
import { EngineBed } from './engine-bed.js';
import { FaultyHost, type HostFault } from '../kit/faulty-host.js';
import { Relay } from '../kit/relay.js';
import { MigrationBed, statusOf, untilEvent } from './migration-bed.js';

/** What is kept of a machine that moves: a start after a crash goes by it. */

/** The type of a message: src/wire/migration/messages.ts. */
const GO = 11;

type Status = EngineState['status'];

async function keptStatus(
  t: TestContext,
  bed: EngineBed,
  host = createRealHost(),
): Promise<() => Promise<Status | undefined>> {
  // Nothing is told of the move itself.
  const capabilities = [{ capability: 'events', state: false }];
  await bed.execute('migrate-set-capabilities', { capabilities });
  const store = await StateStore.open(host, bed.path('state'));
  t.after(() => store.close());
  const program = { askedDigest: '', monitors: [], isMultiplexed: false };
  await StateKeeper.begin(store, bed.engine, program, false);
  return async () => (await store.read())?.status;
}

/** What happens by itself is kept soon after. */
async function untilKept(kept: () => Promise<Status | undefined>, status: Status): Promise<void> {
  for (let looks = 0; looks < 500 && (await kept()) !== status; looks++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(await kept(), status);
}

test('a machine that has moved, and was reset since, has moved after a crash, too', async (t) => {
  const bed = await MigrationBed.shared(t);
  const kept = await keptStatus(t, bed.source);
  await bed.move();
  await untilKept(kept, 'postmigrate');
  await bed.source.execute('system_reset');
  assert.equal(await statusOf(bed.source), 'prelaunch');
  assert.equal(await kept(), 'postmigrate');
  await bed.destination.engine.close();
  await bed.source.execute('x-move-claim', { force: true });
  assert.equal(await kept(), 'prelaunch');
});

test('a stopped machine whose move has failed late is here after a crash', async (t) => {
  const bed = await MigrationBed.shared(t);
  const kept = await keptStatus(t, bed.source);
  await bed.source.execute('stop');
  await bed.source.execute('migrate-set-capabilities', {
    capabilities: [{ capability: 'pause-before-switchover', state: true }],
  });
  await bed.listen();
  await bed.source.execute('migrate', { uri: bed.uri });
  while (bed.source.engine.moves.source.status !== 'pre-switchover')
    await new Promise((resolve) => setTimeout(resolve, 5));
  // Any command that is done.
  await bed.source.execute('stop');
  assert.equal(await kept(), 'finish-migrate');
  await bed.source.execute('migrate_cancel');
  await bed.source.engine.moves.source.ended;
  await untilKept(kept, 'paused');
});

test('a stopped machine that has come is here after a crash', async (t) => {
  const bed = await MigrationBed.shared(t);
  const kept = await keptStatus(t, bed.destination);
  assert.equal(await kept(), 'inmigrate');
  await bed.source.execute('stop');
  await bed.move();
  await untilKept(kept, 'paused');
});

/** That the destination's images are open can be kept, and no more. */
function whenActive({ engine: { graph } }: EngineBed): HostFault {
  const when = (): boolean => graph.node('A').activity === 'active';
  return { op: 'write', file: 'state.new', errno: 'ENOSPC', when };
}

test('a destination says that it has the machine once a restart there finds it', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  const faulty = new FaultyHost(createRealHost());
  const kept = await keptStatus(t, destination, faulty.host);
  const { moves } = destination.engine;
  const fault = whenActive(destination);
  faulty.faults.add(fault);
  await bed.listen();
  await source.execute('migrate', { uri: bed.uri });
  await untilEvent(source, 'X_MOVE', ({ owner }) => owner === 'unknown');
  assert.equal(await statusOf(destination), 'inmigrate');
  assert.match(moves.moveInfo().reason ?? '', /is ours, but cannot be kept \(The state in .*No space left/);
  assert.equal(await kept(), 'inmigrate');
  faulty.faults.delete(fault);
  await untilEvent(source, 'X_MOVE', ({ owner }) => owner === 'there');
  assert.equal(await kept(), 'running');
  assert.equal(await statusOf(destination), 'running');
});

/**
 * The source's word is known to people, and the destination cannot keep that it has the machine, until `free` is called. The
 * link is gone.
 */
async function unkept(t: TestContext): Promise<{
  bed: MigrationBed;
  word: string;
  kept: () => Promise<unknown>;
  free: () => void;
}> {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  const faulty = new FaultyHost(createRealHost());
  const kept = await keptStatus(t, destination, faulty.host);
  const fault = whenActive(destination);
  faulty.faults.add(fault);
  await bed.listen();
  const [from, to] = [source.path('link'), destination.path('move')];
  const relay = new Relay(createRealHost(), { type: 'unix', path: from }, { type: 'unix', path: to });
  await relay.open();
  t.after(() => relay.close());
  relay.cutBefore({ towards: 'server', type: GO });
  await source.execute('migrate', { uri: `unix:${from}` });
  for (const end of [source, destination])
    await untilEvent(end, 'X_MOVE', ({ owner }) => owner === 'unknown');
  const { word } = (await source.execute('x-move-release')) as { word: string };
  await assert.rejects(destination.execute('x-move-claim', { word }), /No space left/);
  assert.equal(await statusOf(destination), 'inmigrate');
  return { bed, word, kept, free: () => void faulty.faults.delete(fault) };
}

test('a machine that is taken by hand is so once that is kept', async (t) => {
  const { bed, word, kept, free } = await unkept(t);
  const { destination } = bed;
  free();
  await destination.execute('x-move-claim', { word });
  assert.equal(await statusOf(destination), 'running');
  assert.equal(await kept(), 'running');
});

test('a machine that could not be kept is given back by hand, with its images', async (t) => {
  const { bed, free } = await unkept(t);
  const { source, destination } = bed;
  free();
  const { word } = (await destination.execute('x-move-release')) as { word: string };
  await source.execute('x-move-claim', { word });
  assert.equal(await statusOf(source), 'running');
  await source.guest('write -P 0x22 0 1M');
  await assert.rejects(destination.execute('x-move-claim', { force: true }), /never taken here/);
});

for (const how of ['heard', 'forced'] as const)
  test(`a machine that a restart may find is given back by hand once it would not: ${how}`, async (t) => {
    const bed = await MigrationBed.shared(t);
    const { source, destination } = bed;
    const faulty = new FaultyHost(createRealHost());
    const isReadOnly: HostFault = { op: 'write', file: 'state.new', errno: 'EROFS' };
    const { files } = faulty.host;
    let kept = async (): Promise<Status | undefined> => Promise.resolve(undefined);
    const syncDirectory = async (path: string): Promise<void> => {
      if (faulty.faults.has(isReadOnly) || (await kept()) !== 'running') return files.syncDirectory(path);
      faulty.faults.add(isReadOnly);
      throw errnoError('EIO', path);
    };
    kept = await keptStatus(t, destination, { ...faulty.host, files: { ...files, syncDirectory } });
    await bed.listen();
    const [from, to] = [source.path('link'), destination.path('move')];
    const relay = new Relay(createRealHost(), { type: 'unix', path: from }, { type: 'unix', path: to });
    await relay.open();
    t.after(() => relay.close());
    if (how === 'forced') relay.cutBefore({ towards: 'server', type: GO });
    await source.execute('migrate', { uri: `unix:${from}` });
    // What has failed there ends the connection, too.
    await untilEvent(source, 'X_MOVE', ({ owner }) => owner === 'unknown');
    relay.setDown(true);
    await untilEvent(destination, 'X_MOVE', ({ owner }) => owner === 'unknown');
    if (how === 'forced')
      await assert.rejects(destination.execute('x-move-claim', { force: true }), /EIO|Input/);
    assert.equal(await kept(), 'running');
    await assert.rejects(destination.execute('x-move-release'), /could not be written/);
    await assert.rejects(destination.execute('x-move-release'), /could not be written/);
    faulty.faults.delete(isReadOnly);
    const { word } = (await destination.execute('x-move-release')) as { word: string };
    assert.equal(await kept(), 'inmigrate');
    await source.execute('x-move-claim', { word });
    assert.equal(await statusOf(source), 'running');
  });

test('where a source asks after an update or a crash is as secure as before, whatever is set by then', async (t) => {
  const bed = new EngineBed(t);
  const { engine } = bed;
  writeFileSync(bed.path('keys.psk'), `qemu:${'ab'.repeat(16)}\n`);
  const address = { type: 'unix', path: bed.path('door') } as const;
  const door = { isOnce: false, address, tls: { credentials: 'server' } };
  for (const endpoint of ['server', 'client'])
    await bed.execute('object-add', {
      ...{ 'qom-type': 'tls-creds-psk', id: endpoint, dir: bed.folder, endpoint },
    });
  await engine.moves.adopt({ isIncoming: true, arrival: { session: 'ab', door } });
  assert.deepEqual(engine.moves.passed().arrival, { session: 'ab', door });
  const { host, graph } = engine;
  const ask = async (isSecure: boolean): Promise<unknown> => {
    const socket = await host.net.connect(address);
    const secure = (): Promise<HostSocket> => host.net.secure(socket, tlsEnd(graph.objects, 'client'));
    const channel = new MoveChannel(new SocketStream(isSecure ? await secure() : socket), host.clock);
    try {
      await channel.open();
      await channel.send('hello', { session: 'ab', word: '', again: true, machine: { type: '' } });
      const { body } = await channel.expect(['known']);
      await channel.send('bye', {});
      return body.state;
    } finally {
      channel.close();
    }
  };
  await assert.rejects(ask(false));
  assert.equal(await ask(true), 'owned');
});
