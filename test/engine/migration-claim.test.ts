import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { EngineBed } from './engine-bed.js';
import type { Relay } from '../kit/relay.js';
import {
  holdKeeping,
  MigrationBed,
  moveThrough,
  setCapabilities,
  statusOf,
  untilEvent,
} from './migration-bed.js';

const GO = 11;
const KNOWN = 14;

async function told(bed: EngineBed): Promise<JsonObject> {
  return (await bed.execute('x-query-move')) as JsonObject;
}

async function untilUnknown(bed: EngineBed): Promise<void> {
  while ((await told(bed))['owner'] !== 'unknown') await new Promise((resolve) => setTimeout(resolve, 5));
}

/** The source has said its word to a host that has no power any more, of which nothing tells it. */
async function moveToTheDead(t: TestContext): Promise<{ source: EngineBed; relay: Relay }> {
  const { bed, relay } = await moveThrough(t, { towards: 'server', type: GO, how: 'stall' });
  const { source, destination } = bed;
  while (!relay.isDown) await new Promise((resolve) => setTimeout(resolve, 5));
  await untilUnknown(source);
  await destination.engine.close();
  return { source, relay };
}

/** Begins the next move of a machine that was claimed, and answers what ends it. */
async function moveOn(t: TestContext, source: EngineBed): Promise<() => Promise<void>> {
  const next = new EngineBed(t, { incoming: true });
  const file = { driver: 'file', filename: source.path('A.qcow2') };
  await next.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
  await next.device('A');
  const uri = `unix:${next.path('move')}`;
  await next.execute('migrate-incoming', { uri });
  await setCapabilities(source, 'pause-before-switchover');
  await source.execute('migrate', { uri });
  await untilEvent(source, 'MIGRATION', ({ status }) => status === 'pre-switchover');
  return async () => {
    assert.deepEqual(await told(source).then(({ owner, role }) => ({ owner, role })), {
      owner: 'here',
      role: 'source',
    });
    assert.equal(((await source.execute('query-migrate')) as JsonObject)['error-desc'], undefined);
    await source.execute('migrate-continue', { state: 'pre-switchover' });
    await source.engine.moves.source.ended;
    assert.deepEqual([await statusOf(source), await statusOf(next)], ['postmigrate', 'running']);
  };
}

test('a machine that is claimed while its source still waits for the answer to its word goes on there', async (t) => {
  const { source, relay } = await moveToTheDead(t);
  await source.execute('x-move-claim', { force: true });
  assert.equal(await statusOf(source), 'running');
  // Only now the link is known to be gone.
  relay.setDown(true);
  await source.engine.moves.source.ended;
  const { status, 'error-desc': why } = (await source.execute('query-migrate')) as JsonObject;
  assert.deepEqual([status, why], ['failed', 'claimed by hand']);
  assert.deepEqual([await statusOf(source), (await told(source))['owner']], ['running', 'here']);
  await source.guest('write -P 9 0 64k');
});

test('what is left of a move that was decided by hand has no part in the next one', async (t) => {
  const { source, relay } = await moveToTheDead(t);
  await source.execute('x-move-claim', { force: true });
  const finish = await moveOn(t, source);
  relay.setDown(true);
  await new Promise((resolve) => setTimeout(resolve, 100));
  await finish();
});

test('nor has a question about it that was under way', async (t) => {
  const { bed, relay } = await moveThrough(t, { towards: 'server', type: GO });
  const { source, destination } = bed;
  await untilEvent(source, 'X_MOVE', ({ owner }) => owner === 'unknown');
  relay.cutBefore({ towards: 'client', type: KNOWN, how: 'stall' });
  relay.setDown(false);
  while (!relay.isDown) await new Promise((resolve) => setTimeout(resolve, 5));
  await destination.engine.close();
  await source.execute('x-move-claim', { force: true });
  const finish = await moveOn(t, source);
  relay.setDown(true);
  await new Promise((resolve) => setTimeout(resolve, 100));
  await finish();
});

test('an answer that comes after the machine was claimed changes nothing', async (t) => {
  const bed = await MigrationBed.shared(t, { destination: { startStopped: true } });
  const { source, destination } = bed;
  await setCapabilities(destination, 'late-block-activate');
  const { begun, goOn } = holdKeeping(destination);
  await bed.listen();
  await source.execute('migrate', { uri: bed.uri });
  await begun;
  await source.execute('x-move-claim', { force: true });
  goOn.resolve();
  await source.engine.moves.source.ended;
  await new Promise((resolve) => setTimeout(resolve, 100));
  destination.engine.graph.keeper = undefined;
  assert.deepEqual([await statusOf(source), (await told(source))['owner']], ['running', 'here']);
  await source.guest('write -P 9 0 64k');
});
