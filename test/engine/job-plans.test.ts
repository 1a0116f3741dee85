import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import type { Graph } from '../../src/block/graph.js';
import { planBackup } from '../../src/jobs/plans/backup.js';
import { planCommit } from '../../src/jobs/plans/commit.js';
import { planCreate } from '../../src/jobs/plans/create.js';
import { planMirror } from '../../src/jobs/plans/mirror.js';
import type { JobPlan } from '../../src/jobs/plans/plan.js';
import { planStream } from '../../src/jobs/plans/stream.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

const common = {
  'job-id': 'j',
  speed: 0,
  'auto-finalize': true,
  'auto-dismiss': false,
  'filter-node-name': 'filter',
} as const;

type Planner = (graph: Graph, bed: EngineBed) => JobPlan;

/** On the chain A, B, C, D with a target T and a bitmap on D; every option given, and none. */
const PLANS: { [name: string]: Planner } = {
  stream: (graph) => planStream(graph, { 'job-id': 'j', device: 'D' }),
  'stream, all options': (graph) =>
    planStream(graph, { ...common, device: 'D', 'base-node': 'A', 'backing-file': 'x', 'on-error': 'stop' }),
  'stream, bottom': (graph) => planStream(graph, { ...common, device: 'D', bottom: 'C' }),
  commit: (graph) => planCommit(graph, { 'job-id': 'j', device: 'D', 'top-node': 'C' }),
  'commit, all options': (graph) =>
    planCommit(graph, {
      ...{ ...common, device: 'D', 'top-node': 'C', 'base-node': 'A' },
      ...{ 'backing-file': 'x', 'on-error': 'ignore' },
    }),
  'active commit': (graph) => planCommit(graph, { 'job-id': 'j', device: 'D' }),
  mirror: (graph) => planMirror(graph, { 'job-id': 'j', device: 'D', target: 'T', sync: 'full' }),
  'mirror, all options': (graph) =>
    planMirror(
      graph,
      {
        ...{ ...common, device: 'D', target: 'T', sync: 'top', replaces: 'D', granularity: 131072 },
        ...{ 'buf-size': 262144, 'copy-mode': 'write-blocking', 'on-target-error': 'enospc' },
      },
      { isNew: true, backing: 'source-chain', unmap: false },
    ),
  'mirror, nothing': (graph) => planMirror(graph, { 'job-id': 'j', device: 'D', target: 'T', sync: 'none' }),
  backup: (graph) => planBackup(graph, { 'job-id': 'j', device: 'D', target: 'T', sync: 'full' }),
  'backup, all options': (graph) =>
    planBackup(graph, {
      ...{ ...common, device: 'D', target: 'T', sync: 'bitmap', bitmap: 'bits', 'bitmap-mode': 'always' },
      ...{ 'on-source-error': 'stop', 'on-target-error': 'auto' },
    }),
  'backup, incremental': (graph) =>
    planBackup(graph, { 'job-id': 'j', device: 'D', target: 'T', sync: 'incremental', bitmap: 'bits' }),
  'create, file': (_, bed) =>
    planCreate({
      'job-id': 'j',
      options: { driver: 'file', filename: bed.path('new'), size: DISK_BYTES },
    }),
  'create, format': (_, bed) =>
    planCreate({
      'job-id': 'j',
      options: {
        driver: 'qcow2',
        file: { driver: 'file', filename: bed.path('text') },
        size: DISK_BYTES,
        'cluster-size': 4096,
      },
    }),
};

async function newBed(t: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C', 'D');
  await bed.image('T');
  writeFileSync(bed.path('text'), '');
  await bed.execute('block-dirty-bitmap-add', { node: 'D', name: 'bits' });
  return bed;
}

/** What is not JSON somewhere in a value, by its path. */
function foreign(value: unknown, path = 'plan'): string[] {
  if (value === null || ['string', 'boolean'].includes(typeof value)) return [];
  if (typeof value === 'number') return Number.isFinite(value) && !Object.is(value, -0) ? [] : [path];
  if (typeof value !== 'object') return [`${path}: ${typeof value}`];
  if (Array.isArray(value)) return value.flatMap((member, i) => foreign(member, `${path}[${i}]`));
  if (Object.getPrototypeOf(value) !== Object.prototype) return [`${path}: ${value.constructor.name}`];
  const keys = Reflect.ownKeys(value);
  return keys.flatMap((key) =>
    typeof key === 'symbol' ? [`${path}: a symbol`] : foreign(Reflect.get(value, key), `${path}.${key}`),
  );
}

test('what is not JSON is found', () => {
  const cases = [undefined, () => 1, 1n, NaN, new Map(), { a: [{ b: undefined }] }, { [Symbol('s')]: 1 }];
  for (const value of cases) assert.notDeepEqual(foreign(value), []);
  assert.deepEqual(foreign({ a: [1, 'x', null, { b: false }] }), []);
});

for (const [name, plan] of Object.entries(PLANS)) {
  test(`the plan of a ${name} is nothing but JSON, and the job starts from its text`, async (t) => {
    const bed = await newBed(t);
    const { graph, jobs } = bed.engine;
    const made = plan(graph, bed);
    assert.deepEqual(foreign(made), []);
    const parsed = JSON.parse(JSON.stringify(made)) as JobPlan;
    assert.deepEqual(parsed, made);
    const job = await jobs.start(parsed);
    if (job.type === 'mirror' || made.kind === 'active-commit') {
      await bed.event('BLOCK_JOB_READY', 'j');
      job.complete();
    }
    await job.concluded;
    assert.equal(job.error, undefined);
  });
}

test('a plan that was kept is refused once its names mean other images, or its nodes are in use', async (t) => {
  const bed = await newBed(t);
  const { graph, jobs } = bed.engine;
  const backup = planBackup(graph, { 'job-id': 'j', device: 'D', target: 'T', sync: 'full' });
  const mirror = planMirror(graph, { 'job-id': 'k', device: 'D', target: 'T', sync: 'full' });
  const commit = planCommit(graph, { 'job-id': 'l', device: 'D', 'top-node': 'C' });
  const stream = planStream(graph, { 'job-id': 'm', device: 'D', 'base-node': 'A' });
  const running = await jobs.start({ ...backup, speed: 1 });
  await assert.rejects(jobs.start({ ...backup, jobId: 'again' }), { kind: 'busy' });
  await assert.rejects(jobs.start(mirror), { message: 'Need a root block node' });
  await running.cancelNow();
  await bed.execute('blockdev-del', { 'node-name': 'T' });
  await assert.rejects(jobs.start(mirror), { kind: 'not-found' });
  await bed.image('U');
  await bed.execute('blockdev-del', { 'node-name': 'U' });
  const file = { driver: 'file', filename: bed.path('U.qcow2') };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'T', file });
  for (const plan of [mirror, backup])
    await assert.rejects(jobs.start(plan), { kind: 'invalid', message: /^Node 'T' is not the image/ });
  await (
    await jobs.start({ ...commit, jobId: 'now' })
  ).concluded;
  // What was committed has left the chain.
  await assert.rejects(jobs.start(commit), { kind: 'not-found' });
  await (
    await jobs.start(stream)
  ).concluded;
  assert.deepEqual(await bed.layers(), ['D', 'A']);
});
