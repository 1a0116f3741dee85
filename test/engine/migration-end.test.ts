import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred, type Deferred } from '../../src/base/async.js';
import type { JsonObject } from '../../src/schema/types.js';
import type { EngineBed } from './engine-bed.js';
import { holdKeeping, MigrationBed, setCapabilities, statusOf, untilEvent } from './migration-bed.js';

const WHY = 'The destination has been told to end: no machine comes';

/** A destination that has heard the word takes the machine no sooner than `goOn`. */
function holdTaking({ engine }: EngineBed): { begun: Promise<void>; goOn: Deferred<void> } {
  const [begun, goOn] = [deferred(), deferred()];
  engine.exports.endNamed = async () => {
    begun.resolve();
    await goOn.promise;
  };
  return { begun: begun.promise, goOn };
}

test('a destination that ends takes no machine, and its guest is not stopped for it', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await bed.listen();
  await destination.execute('quit');
  await source.execute('migrate', { uri: bed.uri });
  await source.engine.moves.source.ended;
  assert.deepEqual(await source.execute('query-migrate'), { status: 'failed', 'error-desc': WHY });
  assert.ok(!source.events.some(({ event }) => event === 'STOP'));
});

test('one that was told to end while a machine comes gives it back', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await bed.listen();
  await setCapabilities(source, 'pause-before-switchover');
  await source.execute('migrate', { uri: bed.uri });
  await untilEvent(source, 'MIGRATION', ({ status }) => status === 'pre-switchover');
  await destination.execute('quit');
  await source.execute('migrate-continue', { state: 'pre-switchover' });
  await source.engine.moves.source.ended;
  assert.deepEqual(await source.execute('query-migrate'), { status: 'failed', 'error-desc': WHY });
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['running', 'inmigrate']);
  await source.guest('write -P 9 0 64k');
});

test('one that was told to end while it takes a machine does not have it unless a restart finds it', async (t) => {
  for (const isKept of [false, true]) {
    const bed = await MigrationBed.shared(t);
    const { source, destination } = bed;
    const { begun, goOn } = isKept ? holdKeeping(destination) : holdTaking(destination);
    await bed.listen();
    await source.execute('migrate', { uri: bed.uri });
    await begun;
    await destination.execute('quit');
    goOn.resolve();
    if (isKept) await source.engine.moves.source.ended;
    else await untilEvent(source, 'X_MOVE', ({ owner }) => owner === 'unknown');
    const { owner } = (await source.execute('x-query-move')) as JsonObject;
    assert.equal(owner, isKept ? 'there' : 'unknown');
    assert.equal(await statusOf(destination), isKept ? 'running' : 'inmigrate');
    if (isKept) continue;
    await destination.engine.close();
    await source.execute('x-move-claim', { force: true });
    await source.guest('write -P 9 0 64k');
  }
});
