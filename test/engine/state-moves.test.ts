import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { tlsEnd } from '../../src/block/objects/tls-end.js';
import type { HostSocket } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import { StateKeeper } from '../../src/monitor/state/keeper.js';
import { StateStore } from '../../src/monitor/state/store.js';
import { SocketStream } from '../../src/wire/migration/byte-stream.js';
import { MoveChannel } from '../../src/wire/migration/channel.js';
import type { EngineState } from '../../src/schema/state.js';
import { EngineBed } from './engine-bed.js';
import { MigrationBed, statusOf } from './migration-bed.js';

/** What is kept of a machine that moves: a start after a crash goes by it. */

type Status = EngineState['status'];

async function keptStatus(t: TestContext, bed: EngineBed): Promise<() => Promise<Status | undefined>> {
  // Nothing is told of the move itself.
  const capabilities = [{ capability: 'events', state: false }];
  await bed.execute('migrate-set-capabilities', { capabilities });
  const store = await StateStore.open(createRealHost(), bed.path('state'));
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
