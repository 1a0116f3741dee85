import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { EngineBed, MiB } from '../engine/engine-bed.js';
import { imagesLeftOpen } from '../../src/view/left-open.js';
import { imageOf, type View } from '../../src/view/model.js';
import { planAction } from '../../src/view/plan/plan.js';
import { planDeletion, planReversal } from '../../src/view/plan/points.js';
import type { Action, Plan } from '../../src/view/plan/types.js';
import { contents, deviceChain, perform, viewOf } from './plan-bed.js';
import { recordedView } from './recorded.js';

async function fourLayers(t: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C', 'D');
  await bed.guest('flush');
  return bed;
}

const ACTIONS: Readonly<Record<string, (bed: EngineBed) => Action>> = {
  'a snapshot': (bed) => ({ kind: 'snapshot', image: 'D', file: bed.path('E.qcow2'), node: 'E' }),
  'a stream of all': () => ({ kind: 'stream', image: 'D' }),
  'a stream to a base': () => ({ kind: 'stream', image: 'D', base: 'A' }),
  'a stream below the top': () => ({ kind: 'stream', image: 'C', base: 'A' }),
  'a commit below the top': () => ({ kind: 'commit', image: 'C', base: 'A' }),
  'an active commit': () => ({ kind: 'commit', image: 'D', base: 'B' }),
  'a mirror': (bed) => ({ kind: 'mirror', image: 'D', file: bed.path('M.qcow2'), node: 'M' }),
  'deleting a point in time': () => ({ kind: 'delete', image: 'B' }),
  'deleting the first point in time': () => ({ kind: 'delete', image: 'A' }),
  'deleting the last point in time': () => ({ kind: 'delete', image: 'C' }),
  'a longer disk': () => ({ kind: 'resize', image: 'D', bytes: 16 * MiB }),
};

for (const [what, action] of Object.entries(ACTIONS))
  test(`${what} ends as its plan says`, async (t) => {
    const bed = await fourLayers(t);
    const { plan, before, after } = await perform(bed, action(bed));
    assert.deepEqual(deviceChain(after), deviceChain(plan.after), plan.words.join(' '));
    assert.notDeepEqual([deviceChain(plan.after), plan.after.images], [deviceChain(before), before.images]);
    for (const id of deviceChain(after))
      assert.equal(imageOf(after, id)?.virtualBytes, imageOf(plan.after, id)?.virtualBytes, id);
    const copied = bed.events.findLast(({ event }) => event === 'BLOCK_JOB_COMPLETED')?.data['offset'];
    if (plan.bytesAtMost > 0) assert.ok(Number(copied) > 0);
  });

for (const [what, action, invalid] of [
  ['a commit below the top', { kind: 'commit', image: 'C', base: 'A' }, ['B']],
  ['an active commit', { kind: 'commit', image: 'D', base: 'B' }, ['C', 'D']],
  ['a stream', { kind: 'stream', image: 'D', base: 'A' }, []],
] as const)
  test(`${what}: images that show something else are those that the plan names`, async (t) => {
    const bed = await fourLayers(t);
    const names = ['A', 'B', 'C', 'D'];
    const before = await contents(bed, names);
    const { plan } = await perform(bed, action);
    // The guest goes on.
    await bed.guest('write -P 0x77 0 8M');
    await bed.guest('flush');
    const after = await contents(bed, names);
    // That these change is the point.
    const own = [
      deviceChain(plan.after).at(-1),
      'base' in action && action.kind === 'commit' ? action.base : '',
    ];
    const changed = names.filter((name) => !own.includes(name) && before.get(name) !== after.get(name));
    assert.deepEqual(
      plan.invalid.map(({ id }) => id),
      invalid,
    );
    assert.deepEqual(changed, invalid);
  });

/** Four images that were opened by names of their own, and are left open when the guest goes down from them. */
async function ownNodes(t: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(t);
  await bed.image('A');
  for (const [name, backing] of ['BA', 'CB', 'DC'] as const)
    await bed.image(name ?? '', { backing: backing ?? '' });
  await bed.device('D');
  await bed.guest('write -P 1 0 1M');
  return bed;
}

test('what was left open above a disk is none of its layers: all that can be done with others can be with it', async (t) => {
  const bed = await ownNodes(t);
  await perform(bed, { kind: 'commit', image: 'D', base: 'B' });
  const view = await viewOf(bed);
  // As the server has it.
  assert.deepEqual(
    view.chains.map(({ images }) => images),
    [['A', 'B', 'C', 'D']],
  );
  assert.deepEqual([...imagesLeftOpen(view)].sort(), ['C', 'D']);
  const closing = ['D', 'C'].map((name) => `blockdev-del "${name}"`);
  for (const [action, first, chains] of [
    [{ kind: 'snapshot', image: 'B', file: bed.path('S.qcow2'), node: 'S' }, closing, ['A,B,S']],
    [{ kind: 'commit', image: 'B', base: 'A' }, closing, ['A']],
    [{ kind: 'mirror', image: 'B', file: bed.path('K.qcow2'), node: 'K' }, closing, ['K']],
    [{ kind: 'resize', image: 'B', bytes: 16 * MiB }, closing, ['A,B']],
    [{ kind: 'backup', image: 'B', file: bed.path('K.qcow2') }, [], ['A,B']],
    [{ kind: 'stream', image: 'B' }, [], ['B']],
    [{ kind: 'stream', image: 'D', base: 'B' }, [], ['A,B,D']],
  ] as ReadonlyArray<readonly [Action, string[], string[]]>) {
    const { commands, after, words } = planAction(view, action);
    const closed = commands.filter(({ execute }) => execute === 'blockdev-del');
    assert.deepEqual(
      closed.map(({ execute, arguments: args }) => `${execute} ${JSON.stringify(args['node-name'])}`),
      first,
    );
    assert.equal(
      words.some((text) => text.startsWith('[D] and [C], which nobody uses')),
      first.length > 0,
    );
    assert.deepEqual(
      after.chains.map(({ images }) => images.join()),
      chains,
    );
  }
  for (const [action, told] of [
    [{ kind: 'delete', image: 'B' }, '[B] is what the disk holds now'],
    [{ kind: 'snapshot', image: 'B', file: '/x', node: 'C' }, "there is a node 'C' already"],
  ] as ReadonlyArray<readonly [Action, string]>)
    assert.throws(
      () => planAction(view, action),
      (error: Error) => error.message.includes(told) || assert.fail(error.message),
    );
  const { after } = await perform(bed, {
    kind: 'snapshot',
    image: 'B',
    file: bed.path('S.qcow2'),
    node: 'S',
  });
  assert.deepEqual(
    after.chains.map(({ images }) => images),
    [['A', 'B', 'S']],
  );
});

test('a commit tells the length that the disk has afterwards', async (t) => {
  for (const [lengths, told] of [
    [{ B: 8, C: 4 }, /changes from 4\.0 MiB to 8\.0 MiB/],
    [{ B: 8, C: 16 }, undefined],
  ] as const) {
    const bed = await fourLayers(t);
    // The image that is there by then is no longer than its base.
    await bed.execute('block_resize', { 'node-name': 'D', size: lengths.C * MiB });
    const { plan, after } = await perform(bed, { kind: 'commit', image: 'D', base: 'B' });
    assert.equal(imageOf(after, 'B')?.virtualBytes, imageOf(plan.after, 'B')?.virtualBytes);
    assert.equal(imageOf(after, 'B')?.virtualBytes, Math.max(lengths.B, lengths.C) * MiB);
    const changes = plan.words.filter((words) => words.startsWith('The disk changes'));
    assert.equal(changes.length, told ? 1 : 0);
    if (told) assert.match(changes[0] ?? '', told);
  }
});

test('a base that is longer than what flows into it is not shown beyond its end, by a QEMU', () => {
  const ofLengths = (name: string, lengths: Readonly<Record<string, number>>): View => {
    const view = recordedView(name);
    const images = view.images.map((image) => ({
      ...image,
      virtualBytes: (lengths[image.id] ?? 8) * MiB,
    }));
    return { ...view, images };
  };
  const commit = { kind: 'commit', image: 'C', base: 'B' } as const;
  // QEMU writes no zeroes where [D] has read them.
  assert.throws(
    () => planAction(ofLengths('qemu-chain', { C: 4 }), commit),
    /\[D\] would show what is not theirs/,
  );
  assert.equal(planAction(ofLengths('livedisk-chain', { C: 4 }), commit).invalid.length, 0);
  assert.equal(planAction(ofLengths('qemu-chain', { C: 4, D: 4 }), commit).invalid.length, 0);
  // A point is deleted the other way then.
  const ways = planDeletion(ofLengths('qemu-chain', { C: 4 }), 'B').ways.map(({ kind }) => kind);
  assert.deepEqual(ways, ['stream']);
});

test('of a disk that nobody may write to, a snapshot is such a one', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A', { 'read-only': true });
  await bed.device('A');
  const { plan, after } = await perform(bed, {
    kind: 'snapshot',
    image: 'A',
    file: bed.path('B.qcow2'),
    node: 'B',
  });
  assert.equal(imageOf(after, 'B')?.isReadOnly, true);
  assert.equal(imageOf(plan.after, 'B')?.isReadOnly, true);
});

test('a disk that nobody may write to stays such a one when its guest goes over', async (t) => {
  for (const [action, top] of [
    [(bed: EngineBed) => ({ kind: 'mirror', image: 'B', file: bed.path('M.qcow2'), node: 'M' }), 'M'],
    [() => ({ kind: 'commit', image: 'B', base: 'A' }), 'A'],
  ] as ReadonlyArray<readonly [(bed: EngineBed) => Action, string]>) {
    const bed = new EngineBed(t);
    await bed.image('A', { 'read-only': true });
    await bed.image('B', { 'read-only': true, backing: 'A' });
    await bed.device('B');
    const { plan, after } = await perform(bed, action(bed));
    assert.equal(after.users.find(({ kind }) => kind === 'device')?.imageId, top);
    assert.equal(imageOf(after, top)?.isReadOnly, true);
    assert.equal(imageOf(plan.after, top)?.isReadOnly, true);
  }
});

test('a disk that nobody may write to is not resized', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A', { 'read-only': true });
  await bed.device('A');
  const view = await viewOf(bed);
  assert.match(await bed.refusal('block_resize', { 'node-name': 'A', size: 16 * MiB }), /read-only/);
  assert.throws(
    () => planAction(view, { kind: 'resize', image: 'A', bytes: 16 * MiB }),
    (error: Error) => error.message === 'nobody may write to [A]',
  );
});

test('a job that is cancelled leaves what its words say', () => {
  const cancel = (name: string, status: string): string => {
    const view = recordedView(name);
    const jobs = view.jobs.map((job) => ({ ...job, status, verbs: ['cancel'] }));
    const plan = planAction({ ...view, jobs }, { kind: 'job', job: jobs[0]?.id ?? '', verb: 'cancel' });
    return plan.words.join(' ');
  };
  assert.match(cancel('qemu-commit', 'running'), /what \[\w\] held alone is gone/);
  assert.match(cancel('qemu-commit', 'ready'), /\[\w\] holds the disk of this moment/);
  assert.match(cancel('qemu-stream', 'running'), /\[\w\] keeps what was copied/);
  assert.match(cancel('qemu-backup', 'running'), /is of no use/);
});

test('a base that other images need is not committed into', () => {
  const view = recordedView('livedisk-graph');
  assert.throws(() => planAction(view, { kind: 'commit', image: 'C', base: 'A' }), /\[E\]/);
  assert.throws(() => planAction(view, { kind: 'delete', image: 'A' }), /needed by 2 images/);
});

test('a plan says why something cannot be done', () => {
  const chain = recordedView('qemu-chain');
  const mirror = recordedView('qemu-mirror');
  // It has no exports.
  const daemon = recordedView('storage-daemon-chain');
  for (const [view, action, told] of [
    [chain, { kind: 'snapshot', image: 'B', file: '/x', node: 'E' }, 'is a point in time already'],
    [chain, { kind: 'snapshot', image: 'D', file: '/x', node: 'A' }, "there is a node 'A' already"],
    [chain, { kind: 'snapshot', image: 'D', file: 'A.qcow2', node: 'E' }, 'is an image of this server'],
    [chain, { kind: 'snapshot', image: 'D', file: '/x', node: '#block1' }, 'is no name for a node'],
    [chain, { kind: 'stream', image: 'A' }, 'there is nothing between'],
    [chain, { kind: 'stream', image: 'B', base: 'D' }, "'D' is not below [B]"],
    [chain, { kind: 'commit', image: 'B', base: 'C' }, '[C] is not below [B]'],
    [chain, { kind: 'delete', image: 'D' }, 'is what the disk holds now'],
    [chain, { kind: 'resize', image: 'D', bytes: 1000 }, 'a multiple of 512'],
    [chain, { kind: 'mirror', image: 'C', file: '/x', node: 'E' }, 'is not on top'],
    [chain, { kind: 'job', job: 'x', verb: 'pause' }, "there is no job 'x'"],
    [mirror, { kind: 'job', job: 'm', verb: 'complete' }, 'is running, and cannot complete'],
    [mirror, { kind: 'backup', image: 'D', file: '/x' }, 'job m works on [D]'],
    [recordedView('qemu-commit-below'), { kind: 'delete', image: 'C' }, 'job c works on [C]'],
    [daemon, { kind: 'snapshot', image: 'D', file: '/x', node: 'E' }, 'nobody uses [D]'],
    [daemon, { kind: 'mirror', image: 'D', file: '/x', node: 'E' }, 'nobody uses [D]'],
    [recordedView('qemu-graph'), { kind: 'resize', image: 'D', bytes: MiB }, 'export e2 keeps the disk'],
    [mirror, { kind: 'snapshot', image: 'E', file: '/x', node: 'F' }, 'job m works on [E]'],
  ] as ReadonlyArray<readonly [View, Action, string]>)
    assert.throws(
      () => planAction(view, action),
      (error: Error) => error.message.includes(told) || assert.fail(`${error.message}\nnot: ${told}`),
    );
});

test("a job's verbs are told in words", () => {
  const mirror = recordedView('livedisk-mirror');
  const ready: View = {
    ...mirror,
    jobs: mirror.jobs.map((job) => ({ ...job, status: 'ready', verbs: ['complete', 'cancel', 'set-speed'] })),
  };
  const plan = (verb: string, speed?: number): Plan =>
    planAction(ready, { kind: 'job', job: 'm', verb, ...(speed !== undefined && { speed }) });
  assert.deepEqual(plan('complete').words, ['Pivot: the guest goes over to [E].']);
  assert.deepEqual(plan('complete').commands, [{ execute: 'job-complete', arguments: { id: 'm' } }]);
  assert.match(plan('cancel').words[0] ?? '', /the guest stays where it is/);
  assert.equal(plan('cancel').commands[0]?.execute, 'block-job-cancel');
  assert.deepEqual(plan('set-speed', 1024).commands, [
    { execute: 'block-job-set-speed', arguments: { device: 'm', speed: 1024 } },
  ]);
});

test('a point in time is deleted by the way that copies less, and both are told', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C', 'D');
  await bed.guest('write -P 9 0 6M');
  await bed.guest('flush');
  const view = await viewOf(bed);
  // A holds 4 MiB and B one of them anew.
  const first = planDeletion(view, 'A');
  assert.deepEqual(
    first.ways.map(({ kind, ends }) => [kind, ends]),
    [
      ['commit', ['B']],
      ['stream', ['A']],
    ],
  );
  const [commit, stream] = first.ways.map(({ plan }) => plan.bytesAtMost);
  assert.equal(commit, imageOf(view, 'B')?.allocatedBytes);
  assert.equal(stream, imageOf(view, 'A')?.allocatedBytes);
  assert.ok((commit ?? 0) < (stream ?? 0));
  // What the guest writes to now is larger than what lies below it.
  assert.deepEqual(
    planDeletion(view, 'C').ways.map(({ kind, ends }) => [kind, ends]),
    [
      ['stream', ['C']],
      ['commit', ['D']],
    ],
  );
});

test('a point in time that somebody reads is not written to', async (t) => {
  const bed = await fourLayers(t);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'A' });
  const { users, ways, refused } = planDeletion(await viewOf(bed), 'A');
  assert.deepEqual(
    [users.map(({ label }) => label), ways.map(({ kind }) => kind), refused],
    [['e'], ['stream'], [{ kind: 'commit', why: 'export e reads [A]' }]],
  );
  // It stays open for who reads it.
  assert.deepEqual(ways[0]?.ends, []);
});

test('going back leaves what is above the point, and says who goes over', async (t) => {
  const bed = await fourLayers(t);
  const view = await viewOf(bed);
  const to = (id: string, top = 'D'): ReturnType<typeof planReversal> =>
    planReversal(view, { top, id, node: 'E', file: bed.path('E.qcow2') });
  assert.deepEqual(to('B').ends, ['C', 'D']);
  assert.deepEqual(
    to('B').users.map(({ label }) => label),
    ['virtio0'],
  );
  assert.throws(() => to('D'), /\[D\] is what the disk shows now/);
  assert.throws(() => to('A', 'C'), /not on top/);
});
