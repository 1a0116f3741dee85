import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import type { Relay } from '../kit/relay.js';
import type { EngineBed } from './engine-bed.js';
import { holdKeeping, type MigrationBed, moveThrough, statusOf, untilEvent } from './migration-bed.js';

/** A move whose link breaks when the source has said its word: `heard`, and the destination has the machine. */
async function moveInDoubt(t: TestContext, heard: boolean): Promise<{ bed: MigrationBed; relay: Relay }> {
  const { bed, relay } = await moveThrough(
    t,
    heard ? { towards: 'client', type: 12 } : { towards: 'server', type: 11 },
  );
  const { source, destination } = bed;
  await untilEvent(source, 'X_MOVE', ({ owner }) => owner === 'unknown');
  if (!heard) await untilEvent(destination, 'X_MOVE', ({ owner }) => owner === 'unknown');
  return { bed, relay };
}

test('while nobody knows who has the machine each end says so, and neither runs it', async (t) => {
  const { bed, relay } = await moveInDoubt(t, false);
  const { source, destination } = bed;
  const told = async (end: EngineBed): Promise<JsonObject> =>
    (await end.execute('x-query-move')) as JsonObject;
  assert.match((await told(source))['reason'] as string, /^The destination was told to take the machine/);
  assert.match(
    (await told(destination))['reason'] as string,
    /^All of the machine is here, but the source's word/,
  );
  assert.equal(await source.refusal('cont'), 'Nobody knows yet whether the destination has the machine');
  assert.match(await source.refusal('migrate_cancel'), /^Nobody knows/);
  assert.equal(await source.refusal('x-move-claim'), 'The destination may have the machine');
  assert.equal(
    await source.refusal('x-move-claim', { word: '00' }),
    'This is not the word of the destination of this move',
  );
  assert.equal(await destination.refusal('x-move-claim'), 'The source may have the machine');
  assert.equal(
    await destination.refusal('x-move-claim', { word: '00' }),
    'This is not the word of the source of this move',
  );
  relay.setDown(false);
  await source.engine.moves.source.ended;
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['postmigrate', 'running']);
  assert.equal((await told(source))['owner'], 'there');
});

test('a word that was heard, though nobody knows of it, counts when the link is back', async (t) => {
  const { bed, relay } = await moveInDoubt(t, true);
  assert.equal(await statusOf(bed.destination), 'running');
  relay.setDown(false);
  await bed.source.engine.moves.source.ended;
  assert.equal(await statusOf(bed.source), 'postmigrate');
});

for (const winner of ['source', 'destination'] as const)
  test(`by hand, the ${winner} has the machine with the word of the other end, which refuses it for good`, async (t) => {
    const { bed, relay } = await moveInDoubt(t, false);
    const [won, lost] = winner === 'source' ? [bed.source, bed.destination] : [bed.destination, bed.source];
    const answer = (await lost.execute('x-move-release')) as JsonObject;
    await won.execute('x-move-claim', answer);
    assert.equal(await statusOf(won), 'running');
    await won.guest('write -P 9 0 64k');
    await assert.rejects(lost.execute('x-move-claim', winner === 'source' ? {} : { word: '11' }));
    relay.setDown(false);
    await bed.source.engine.moves.source.ended;
    assert.equal(await statusOf(won), 'running');
    assert.notEqual(await statusOf(lost), 'running');
    await assert.rejects(lost.guest('write -P 9 0 64k'));
  });

test('a link that comes back and breaks while the machine is taken by hand takes nothing from it', async (t) => {
  const { bed, relay } = await moveInDoubt(t, false);
  const { source, destination } = bed;
  const { word } = (await source.execute('x-move-release')) as { word: string };
  const { begun, goOn } = holdKeeping(destination);
  const claiming = destination.execute('x-move-claim', { word });
  await begun;
  // The source asks, and is cut off before it says its word once more.
  const seen = destination.events.length;
  relay.cutBefore({ towards: 'server', type: 11 });
  relay.setDown(false);
  while (!relay.isDown) await new Promise((resolve) => setTimeout(resolve, 5));
  await new Promise((resolve) => setTimeout(resolve, 100));
  goOn.resolve();
  await claiming;
  destination.engine.graph.keeper = undefined;
  assert.deepEqual(
    destination.events
      .slice(seen)
      .map(({ event }) => event)
      .filter((name) => name !== 'X_MOVE'),
    ['RESUME', 'MIGRATION'],
  );
  await destination.guest('write -P 9 0 64k');
  relay.setDown(false);
  await source.engine.moves.source.ended;
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['postmigrate', 'running']);
});

test('by hand, the end that lives has the machine when the other one is dead', async (t) => {
  const { bed } = await moveInDoubt(t, false);
  await bed.destination.engine.close();
  await bed.source.execute('x-move-claim', { force: true });
  assert.equal(await statusOf(bed.source), 'running');
  await bed.source.guest('write -P 9 0 64k');
});
