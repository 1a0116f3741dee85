import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { readAnswers } from '../../src/view/answers.js';
import { buildView } from '../../src/view/build.js';
import { withoutJobs } from '../../src/view/plan/points.js';
import { imageOf, type View } from '../../src/view/model.js';
import { QmpError } from '../../src/wire/qmp/registry.js';
import { RECORDINGS, recorded, recordedView, serversWith } from './recorded.js';

/** Chains by labels; a filter that nobody named has its driver's. */
function chainsOf(view: View): string[] {
  return view.chains.map(({ images }) => images.map((id) => imageOf(view, id)?.label).join(' <-- '));
}

const everywhere = (situation: string, check: (view: View, server: string) => void): void => {
  for (const server of serversWith(situation))
    test(`${situation} of ${server}`, () => check(recordedView(`${server}-${situation}`), server));
};

test('each situation was recorded of each server that can be in it', () => {
  for (const situation of ['chain', 'stream', 'commit', 'commit-below', 'mirror', 'backup', 'graph'])
    assert.deepEqual(serversWith(situation).sort(), ['livedisk', 'qemu', 'storage-daemon'], situation);
});

everywhere('chain', (view, server) => {
  assert.deepEqual(chainsOf(view), ['A <-- B <-- C <-- D']);
  const d = imageOf(view, 'D');
  assert.deepEqual([d?.driver, d?.filename, d?.virtualBytes], ['qcow2', 'D.qcow2', 8 * 1024 * 1024]);
  assert.equal(d?.storage?.driver, 'file');
  assert.ok((d?.allocatedBytes ?? 0) > 1024 * 1024);
  assert.deepEqual(
    d?.bitmaps.map(({ name, isRecording }) => [name, isRecording]),
    [['b0', true]],
  );
  assert.deepEqual(imageOf(view, 'A')?.overlays, ['B']);
  const sum = view.chains[0]?.shares.reduce((a, b) => a + b, 0) ?? 0;
  assert.ok(Math.abs(sum - 1) < 1e-9, String(sum));
  const users = view.users.map(({ kind, label, imageId }) => `${kind} ${label} ${imageId}`);
  assert.deepEqual(users, server === 'storage-daemon' ? [] : ['device virtio0 D']);
  assert.equal(view.server.name, server === 'livedisk' ? 'livedisk 0.1.0' : 'QEMU 7.2.22');
  assert.equal(view.server.runState === undefined, server === 'storage-daemon');
});

/** What flows where, the chains meanwhile, and what stands on C and on D: jobs' filters are no images. */
const JOBS: Readonly<Record<string, { flow: [string[], string]; chains: string[] }>> = {
  stream: { flow: [['C'], 'D'], chains: ['A <-- B <-- C <-- D <-- copy-on-read'] },
  commit: { flow: [['C', 'D'], 'B'], chains: ['A <-- B <-- C <-- D <-- mirror_top'] },
  'commit-below': { flow: [['B', 'C'], 'A'], chains: ['A <-- B <-- C <-- commit_top <-- D'] },
  mirror: { flow: [['D'], 'E'], chains: ['A <-- B <-- C <-- D <-- mirror_top', 'E'] },
  backup: { flow: [['D'], 'E'], chains: ['A <-- B <-- C <-- D <-- copy-before-write', 'E'] },
};

for (const [situation, { flow, chains }] of Object.entries(JOBS))
  everywhere(situation, (view, server) => {
    const [job] = view.jobs;
    assert.deepEqual([job?.from, job?.to], flow);
    assert.equal(job?.type, situation.replace('-below', ''));
    assert.equal(job?.speedLimit, 65536);
    assert.deepEqual([...chainsOf(view)].sort(), [...chains].sort());
    assert.deepEqual([imageOf(view, 'C')?.overlays, imageOf(view, 'D')?.overlays], [['D'], []]);
    // Backends of the job are nobody else's, and the guest is where it was, above the job's filter or below it.
    assert.deepEqual(
      view.users.map(({ kind }) => kind),
      server === 'storage-daemon' ? [] : ['device'],
    );
  });

everywhere('graph', (view, server) => {
  assert.deepEqual(chainsOf(view).sort(), ['A <-- B <-- C <-- D', 'A <-- E <-- T']);
  assert.equal(imageOf(view, 'T')?.kind, 'filter');
  assert.deepEqual(imageOf(view, 'A')?.overlays.toSorted(), ['B', 'E']);
  assert.match(imageOf(view, 'A')?.warnings.join() ?? '', /backing file of 2 images/);
  const users = view.users.map(({ kind, label, imageId }) => `${kind} ${label} ${imageId}`).sort();
  const device = server === 'storage-daemon' ? [] : ['device virtio0 D'];
  assert.deepEqual(users, [...device, 'export e1 T', 'export e2 D']);
});

everywhere('quorum', (view) => {
  assert.equal(imageOf(view, 'Q')?.kind, 'group');
  assert.deepEqual(
    view.chains.filter(({ group }) => group === 'Q').map(({ images }) => images),
    [['q1'], ['q2'], ['q3']],
  );
});

test('a job with nothing to do has done all of it once it is ready, unless it failed', () => {
  const percentOf = (status: string, error?: string): number | undefined =>
    buildView({
      ...recorded('qemu-chain'),
      'query-jobs': [
        {
          id: 'j',
          type: 'commit',
          status,
          'current-progress': 0,
          'total-progress': 0,
          ...(error && { error }),
        },
      ],
    }).jobs[0]?.percent;
  for (const status of ['created', 'running', 'paused', 'aborting', 'undefined'])
    assert.equal(percentOf(status), 0, status);
  for (const status of ['ready', 'standby', 'waiting', 'pending', 'concluded'])
    assert.equal(percentOf(status), 100, status);
  assert.equal(percentOf('concluded', 'it broke'), 0);
});

test('queries that a server lacks leave a poorer picture', async () => {
  const missing = new Set(['query-status', 'x-debug-query-block-graph', 'query-blockstats']);
  const answers = recorded('qemu-chain');
  const told = await readAnswers(async (command) => {
    if (missing.has(command))
      throw new QmpError('CommandNotFound', `The command ${command} has not been found`);
    return answers[command] ?? [];
  });
  assert.deepEqual(
    Object.keys(told).filter((command) => missing.has(command)),
    [],
  );
  assert.equal(buildView(told).server.runState, undefined);
  await assert.rejects(
    readAnswers(async () => {
      throw new QmpError('GenericError', 'broken');
    }),
    /broken/,
  );
});

test('filters that show each other are no reason to look for ever, whoever works with them', () => {
  const vertices = [
    { id: 1, type: 'block-driver', name: '#f' },
    { id: 2, type: 'block-driver', name: '#g' },
    { id: 3, type: 'block-job', name: 'j' },
  ];
  const view = buildView({
    'query-named-block-nodes': ['#f', '#g'].map((name) => ({ 'node-name': name, drv: 'mirror_top' })),
    'query-jobs': [{ id: 'j', type: 'mirror', status: 'running' }],
    'x-debug-query-block-graph': {
      nodes: vertices,
      edges: [
        { parent: 1, child: 2, name: 'backing' },
        { parent: 2, child: 1, name: 'backing' },
        { parent: 3, child: 1, name: 'main node' },
        { parent: 3, child: 2, name: 'target' },
      ],
    },
  });
  assert.deepEqual(
    view.jobs.map(({ from, to }) => ({ from, to })),
    [{ from: [], to: undefined }],
  );
  assert.deepEqual(withoutJobs(view).images, []);
});

test('a graph that goes round, and answers that are none, are no reason to hang or to fail', () => {
  const node = (name: string): JsonObject => ({
    'node-name': name,
    drv: 'quorum',
    image: { filename: name },
  });
  const vertex = (id: number, name: string): JsonObject => ({ id, type: 'block-driver', name });
  const edge = (parent: number, child: number, name: string): JsonObject => ({ parent, child, name });
  const view = buildView({
    'query-named-block-nodes': ['a', 'b', 'c'].map(node),
    'x-debug-query-block-graph': {
      nodes: [vertex(1, 'a'), vertex(2, 'b'), vertex(3, 'c'), vertex(4, 'gone')],
      edges: [
        edge(1, 2, 'backing'),
        edge(2, 1, 'backing'),
        edge(3, 3, 'children.0'),
        edge(3, 4, 'children.1'),
      ],
    },
  });
  assert.equal(view.images.length, 3);
  for (const value of [null, 7, 'x', [], {}, [null, 7, {}], { nodes: [{}], edges: [{}] }]) {
    const broken = Object.fromEntries(Object.keys(recorded('qemu-chain')).map((command) => [command, value]));
    assert.deepEqual(buildView(broken).chains, []);
  }
  for (const name of RECORDINGS) assert.doesNotThrow(() => JSON.stringify(recordedView(name)));
});

test('a QEMU is not asked for its nodes while a stream job is over and not gone, which would crash it', async () => {
  const asked: string[] = [];
  const answersOf = (package_: string, status: string) => async (command: string) => {
    asked.push(command);
    if (command === 'query-version') return { qemu: { major: 7, minor: 2, micro: 0 }, package: package_ };
    return command === 'query-jobs' ? [{ id: 'j', type: 'stream', status }] : [];
  };
  const isAskedForNodes = async (...[execute, options]: Parameters<typeof readAnswers>): Promise<boolean> => {
    asked.length = 0;
    await readAnswers(execute, options);
    return asked.some((command) => /query-named-block-nodes|x-debug-query-block-graph/.test(command));
  };
  const last = { 'query-named-block-nodes': [{ 'node-name': 'A' }] };
  assert.equal(await isAskedForNodes(answersOf('', 'running')), true);
  assert.equal(await isAskedForNodes(answersOf('livedisk 0.1.0', 'concluded')), true);
  for (const status of ['waiting', 'pending', 'concluded']) {
    assert.equal(await isAskedForNodes(answersOf('', status), { last }), false);
    const told = await readAnswers(answersOf('', status), { last });
    assert.deepEqual(told['query-named-block-nodes'], last['query-named-block-nodes']);
    assert.equal((told['query-jobs'] as unknown[]).length, 1);
  }
  // Without an earlier look one waits for the job to go, and says why when it does not.
  let pauses = 0;
  const pause = async (): Promise<void> => void pauses++;
  await assert.rejects(readAnswers(answersOf('', 'concluded'), { pause }), /has ended and is not dismissed/);
  assert.ok(pauses > 5);
  const goes = async (command: string): Promise<never> =>
    (await answersOf('', pauses++ > 30 ? 'null' : 'concluded')(command)) as never;
  await readAnswers(goes, { pause });
});
