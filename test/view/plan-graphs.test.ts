import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { EngineBed, MiB } from '../engine/engine-bed.js';
import { imagesLeftOpen, leftOpenAbove } from '../../src/view/left-open.js';
import { buildView } from '../../src/view/build.js';
import { imageOf, type View } from '../../src/view/model.js';
import { planAction } from '../../src/view/plan/plan.js';
import { planDeletion } from '../../src/view/plan/points.js';
import type { Action } from '../../src/view/plan/types.js';
import type { JsonObject } from '../../src/schema/types.js';
import { deviceChain, perform, viewOf } from './plan-bed.js';
import { recorded, recordedView } from './recorded.js';

/** Plans of graphs that are no plain chains. */

const FILTERS: Readonly<Record<string, JsonObject>> = {
  throttle: { driver: 'throttle', 'throttle-group': 'g' },
  'copy-on-read': { driver: 'copy-on-read' },
};

/** [A] <-- [B] <-- (T), which the guest uses. */
async function filtered(t: TestContext, filter: string): Promise<EngineBed> {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('B', { backing: 'A' });
  await bed.execute('object-add', { 'qom-type': 'throttle-group', id: 'g', limits: { 'iops-total': 1000 } });
  await bed.execute('blockdev-add', { ...FILTERS[filter], 'node-name': 'T', file: 'B' });
  await bed.device('T');
  await bed.guest('write -P 1 0 1M');
  return bed;
}

for (const filter of Object.keys(FILTERS))
  for (const [what, action, chain] of [
    ['a commit', () => ({ kind: 'commit', image: 'B', base: 'A' }), ['A']],
    ['deleting a point', () => ({ kind: 'delete', image: 'A' }), undefined],
    ['a mirror', (bed) => ({ kind: 'mirror', image: 'B', file: bed.path('M.qcow2'), node: 'M' }), ['M']],
    [
      'a snapshot',
      (bed) => ({ kind: 'snapshot', image: 'B', file: bed.path('C.qcow2'), node: 'C' }),
      ['A', 'B', 'C'],
    ],
    ['a longer disk', () => ({ kind: 'resize', image: 'B', bytes: 16 * MiB }), ['A', 'B']],
  ] as ReadonlyArray<readonly [string, (bed: EngineBed) => Action, string[] | undefined]>)
    test(`${what} leaves the ${filter} filter above the disk where it is`, async (t) => {
      const bed = await filtered(t, filter);
      const { plan, after } = await perform(bed, action(bed));
      const user = after.users.find(({ kind }) => kind === 'device');
      assert.equal(user?.imageId, 'T');
      assert.deepEqual(deviceChain(after), chain ?? deviceChain(plan.after));
      assert.deepEqual(deviceChain(after), deviceChain(plan.after));
      for (const id of ['T', ...deviceChain(after)])
        assert.equal(imageOf(after, id)?.virtualBytes, imageOf(plan.after, id)?.virtualBytes, id);
      await bed.guest('read -P 1 0 1M');
    });

test('what was left open above a disk is found below its filter, and closed first', async (t) => {
  const bed = await filtered(t, 'throttle');
  const { after } = await perform(bed, { kind: 'commit', image: 'B', base: 'A' });
  assert.deepEqual([...imagesLeftOpen(after)], ['B']);
  assert.deepEqual(
    leftOpenAbove(after, 'A', imagesLeftOpen(after)).map(({ id }) => id),
    ['B'],
  );
  const action = { kind: 'snapshot', image: 'A', file: bed.path('C.qcow2'), node: 'C' } as const;
  assert.deepEqual(deviceChain((await perform(bed, action)).after), ['A', 'C']);
});

test('a disk whose filter is exported over NBD keeps its length', async (t) => {
  const bed = await filtered(t, 'throttle');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'T' });
  const view = await viewOf(bed);
  assert.throws(
    () => planAction(view, { kind: 'resize', image: 'B', bytes: 16 * MiB }),
    /export e keeps the disk at its length/,
  );
});

/** A quorum of [b] and [a0] <-- [a], and of what is told of it. */
async function quorum(t: TestContext): Promise<{ bed: EngineBed; view: View }> {
  const bed = new EngineBed(t);
  for (const name of ['a0', 'b']) await bed.image(name);
  await bed.image('a', { backing: 'a0' });
  await bed.execute('blockdev-add', {
    ...{ driver: 'quorum', 'node-name': 'Q', 'vote-threshold': 2 },
    children: ['a', 'b'],
  });
  await bed.device('Q');
  return { bed, view: await viewOf(bed) };
}

test('what servers do with whole disks only is refused for a part of a group, and the rest done', async (t) => {
  const { bed, view } = await quorum(t);
  for (const action of [
    { kind: 'commit', image: 'a', base: 'a0' },
    { kind: 'mirror', image: 'a', file: bed.path('M.qcow2'), node: 'M' },
    { kind: 'resize', image: 'a', bytes: 16 * MiB },
  ] as const)
    assert.throws(
      () => planAction(view, action),
      (error: Error) => error.message.startsWith('[a] is a part of {Q}') || assert.fail(error.message),
    );
  const { ways, refused } = planDeletion(view, 'a0');
  assert.deepEqual(
    [ways, refused].map((some) => some.map(({ kind }) => kind)),
    [['stream'], ['commit']],
  );
  const { after } = await perform(bed, {
    kind: 'snapshot',
    image: 'a',
    file: bed.path('c.qcow2'),
    node: 'c',
  });
  assert.deepEqual(
    after.chains.map(({ images }) => images),
    [['Q'], ['a0', 'a', 'c'], ['b']],
  );
  await perform(bed, { kind: 'delete', image: 'a' });
  await bed.guest('read -P 0 0 1M');
});

test('a copy of what a group shows is no more than its children hold, and no more than the disk', async (t) => {
  const { bed } = await quorum(t);
  await bed.guest('write -P 1 0 1M');
  await bed.image('o');
  await bed.execute('blockdev-snapshot', { node: 'Q', overlay: 'o' });
  const view = await viewOf(bed);
  const held = ['a0', 'a', 'b'].reduce((sum, id) => sum + (imageOf(view, id)?.allocatedBytes ?? 0), 0);
  const own = imageOf(view, 'o')?.allocatedBytes ?? 0;
  const file = bed.path('M.qcow2');
  const most = (action: Action): number => planAction(view, action).bytesAtMost;
  assert.equal(most({ kind: 'stream', image: 'o' }), held);
  assert.equal(most({ kind: 'mirror', image: 'o', file, node: 'M' }), held + own);
  assert.equal(most({ kind: 'backup', image: 'o', file }), held + own);
  const full = view.images.map((image) => ({ ...image, allocatedBytes: image.virtualBytes }));
  const { bytesAtMost } = planAction({ ...view, images: full }, { kind: 'stream', image: 'o' });
  assert.equal(bytesAtMost, imageOf(view, 'Q')?.virtualBytes);
});

test('the children of a group stand in their order, however a server tells them', () => {
  const answers = recorded('qemu-quorum');
  const graph = answers['x-debug-query-block-graph'] as { nodes: JsonObject[]; edges: JsonObject[] };
  const turned = { ...graph, edges: [...graph.edges].reverse() };
  const groups = [answers, { ...answers, 'x-debug-query-block-graph': turned }].map((told) =>
    buildView(told).chains.filter(({ group }) => group !== undefined),
  );
  assert.deepEqual(groups[1], groups[0]);
  assert.equal(groups[0]?.length, 3);
  assert.deepEqual(recordedView('qemu-quorum').chains, buildView(answers).chains);
});
