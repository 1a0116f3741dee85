import assert from 'node:assert/strict';
import { test } from 'node:test';
import { life, MigrationBed, setCapabilities, statusOf } from './migration-bed.js';

/** What a move that cannot be is refused with, and who hears it. */

test('a service that nobody knows is told of by who connects, and by migrate-incoming at once', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  const why = 'address resolution failed for 127.0.0.1:no: Servname not supported for ai_socktype';
  const uri = 'tcp:127.0.0.1:no';
  await source.execute('migrate', { uri });
  await source.engine.moves.source.ended;
  assert.deepEqual(await source.execute('query-migrate'), { status: 'failed', 'error-desc': why });
  const events = [{ capability: 'events', state: false }];
  await destination.execute('migrate-set-capabilities', { capabilities: events });
  assert.equal(await destination.refusal('migrate-incoming', { uri }), why);
  // That it begins to listen is told in any case, as in QEMU.
  assert.deepEqual(life(destination), ['setup']);
});

test('what a destination refuses while much is sent to it is told at the source', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  for (const end of [source, destination]) await setCapabilities(end, 'dirty-bitmaps');
  await destination.execute('block-dirty-bitmap-add', { node: 'A', name: 'b0' });
  for (let i = 0; i < 100; i++)
    await source.execute('block-dirty-bitmap-add', { node: 'A', name: `b${i}`, granularity: 512 });
  await source.guest('write -P 1 0 1M');
  const why = "Bitmap with the same name ('b0') already exists on destination";
  for (let again = 0; again < 10; again++) {
    if (again > 0) await source.execute('migrate', { uri: bed.uri });
    else await bed.move();
    await source.engine.moves.source.ended;
    assert.deepEqual(await source.execute('query-migrate'), { status: 'failed', 'error-desc': why });
    assert.equal(await statusOf(source), 'running');
  }
  await destination.execute('block-dirty-bitmap-remove', { node: 'A', name: 'b0' });
  await source.execute('migrate', { uri: bed.uri });
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(destination), 'running');
});
