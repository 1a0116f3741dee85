import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import type { EngineBed } from './engine-bed.js';
import { MigrationBed, setCapabilities, statusOf } from './migration-bed.js';

async function sha256Of(bed: EngineBed, node: string, name: string): Promise<unknown> {
  return bed.execute('x-debug-block-dirty-bitmap-sha256', { node, name });
}

test('postcopy is of dirty bitmaps, which have come by then', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  for (const end of [source, destination]) await setCapabilities(end, 'dirty-bitmaps', 'events');
  await source.execute('block-dirty-bitmap-add', { node: 'A', name: 'b0' });
  await source.guest('write -P 5 1M 64k');
  const hash = await sha256Of(source, 'A', 'b0');
  assert.equal(
    await source.refusal('migrate-start-postcopy'),
    'Postcopy must be started after migration has been started',
  );
  await bed.listen();
  await source.execute('migrate', { uri: bed.uri });
  await source.execute('migrate-start-postcopy');
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(destination), 'running');
  assert.deepEqual(
    source.events.filter(({ event }) => event === 'MIGRATION').map(({ data }) => data),
    ['setup', 'active', 'postcopy-active', 'completed'].map((status) => ({ status })),
  );
  assert.deepEqual(await sha256Of(destination, 'A', 'b0'), hash);
});

test('a bitmap whose name is too long for the stream goes by an alias, or stops the move', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  const name = 'b'.repeat(1023);
  for (const end of [source, destination]) await setCapabilities(end, 'dirty-bitmaps');
  await source.execute('block-dirty-bitmap-add', { node: 'A', name });
  await bed.move();
  const info = (await source.execute('query-migrate')) as JsonObject;
  assert.equal(
    info['error-desc'],
    `Cannot migrate bitmap '${name}' on node 'A': Name is longer than 255 bytes`,
  );
  const mapping = (bitmap: string): JsonObject => ({
    'block-bitmap-mapping': [
      {
        'node-name': 'A',
        alias: 'A',
        bitmaps: [{ name: bitmap, alias: 'b', transform: { persistent: true } }],
      },
    ],
  });
  assert.match(
    await source.refusal('migrate-set-parameters', mapping(`${name}b`)),
    /is longer than 1023 bytes$/,
  );
  for (const end of [source, destination]) await end.execute('migrate-set-parameters', mapping(name));
  await source.execute('migrate', { uri: bed.uri });
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(destination), 'running');
  const arrived = destination.engine.graph.node('A').dirtyBitmaps;
  assert.deepEqual(
    arrived.map((bitmap) => [bitmap.name, bitmap.persistent]),
    [[name, true]],
  );
});
