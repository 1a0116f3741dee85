import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { StateKeeper } from '../../src/monitor/state/keeper.js';
import { StateStore } from '../../src/monitor/state/store.js';
import type { EngineState } from '../../src/schema/state.js';
import type { EngineBed } from './engine-bed.js';
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
