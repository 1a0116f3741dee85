import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { EngineBed } from './engine-bed.js';
import { statusOf } from './migration-bed.js';

/** A machine that was saved into a file, so that its images are nobody's until it goes on: what a snapshot of all is made of. */
async function savedMachine(t: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(t, { warn: () => undefined });
  await bed.image('A');
  await bed.device('A');
  await bed.guest('write -P 0x11 0 1M');
  await bed.execute('migrate', { uri: `file:${bed.path('state')}` });
  await bed.engine.moves.source.ended;
  assert.equal(await statusOf(bed), 'postmigrate');
  return bed;
}

test('a saved machine gets overlays before it goes on, and writes into them', async (t) => {
  const bed = await savedMachine(t);
  await bed.image('top');
  const first = { node: 'A', overlay: 'top' };
  const told = (await bed.execute('blockdev-snapshot', { ...first, 'x-dry-run': true })) as {
    'x-dry-run': { refused: string[] };
  };
  assert.deepEqual(told['x-dry-run'].refused, []);
  await bed.execute('blockdev-snapshot', first);
  await bed.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'top', 'snapshot-node-name': 'newest' },
    'snapshot-file': bed.path('newest.qcow2'),
  });
  await bed.execute('cont');
  await bed.guest('write -P 0x22 0 64k');
  await bed.guest('read -P 0x11 64k 64k');
  await bed.execute('block-commit', { 'job-id': 'j', device: 'newest' });
  await bed.event('BLOCK_JOB_READY', 'j');
  await bed.execute('job-complete', { id: 'j' });
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  await bed.guest('read -P 0x22 0 64k');
});

test('overlays of a saved machine come for all disks or for none', async (t) => {
  const bed = await savedMachine(t);
  await bed.image('top');
  const actions = [
    { type: 'blockdev-snapshot', data: { node: 'A', overlay: 'top' } },
    { type: 'abort', data: {} },
  ];
  assert.match(await bed.refusal('transaction', { actions }), /Transaction aborted/);
  // It is as it was: ours, and written to.
  const top = bed.engine.graph.node('top');
  assert.deepEqual([top.activity, top.children.has('backing')], ['active', false]);
  await bed.execute('cont');
  await bed.guest('write -P 0x22 0 64k');
});

test('an overlay that something writes into is not taken away from it', async (t) => {
  const bed = await savedMachine(t);
  await bed.image('top');
  await bed.image('other');
  await bed.execute('blockdev-mirror', { 'job-id': 'j', device: 'other', target: 'top', sync: 'none' });
  assert.equal(
    await bed.refusal('blockdev-snapshot', { node: 'A', overlay: 'top' }),
    'Failed to inactivate node: Operation not permitted',
  );
});
