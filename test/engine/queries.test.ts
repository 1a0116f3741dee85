import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../src/base/async.js';
import type { JsonObject } from '../../src/schema/types.js';
import { EngineBed, MiB } from './engine-bed.js';

const QUERIES: ReadonlyArray<readonly [string, JsonObject]> = [
  ['query-named-block-nodes', {}],
  ['query-named-block-nodes', { flat: true }],
  ['query-block', {}],
  ['query-blockstats', { 'query-nodes': true }],
  ['x-debug-query-block-graph', {}],
  ['human-monitor-command', { 'command-line': 'info block -n' }],
];

async function queryAll(bed: EngineBed): Promise<void> {
  for (const [command, args] of QUERIES) await bed.execute(command, args);
  // Queries themselves do not wait for anything.
  await new Promise((resolve) => void setImmediate(resolve));
}

test('queries answer while jobs end, filters go and images close', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.image('T');
  let running = true;
  const load = async (): Promise<void> => {
    for (let round = 0; round < 8; round++) {
      await bed.execute('blockdev-backup', { 'job-id': 'b', device: 'B', target: 'T', sync: 'full' });
      await bed.event('BLOCK_JOB_COMPLETED', 'b');
      const copy = { device: 'B', target: bed.path('copy.raw'), sync: 'full', format: 'raw' };
      await bed.execute('drive-backup', { 'job-id': 'd', ...copy });
      await bed.event('BLOCK_JOB_COMPLETED', 'd');
      bed.events.length = 0;
    }
  };
  const loads = load().finally(() => (running = false));
  let rounds = 0;
  for (; running; rounds++) await queryAll(bed);
  await loads;
  assert(rounds > 8);
});

test('a node on its way out is not listed, and its name is not free before it is gone', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  const { graph } = bed.engine;
  const node = graph.node('A');
  node.monitorOwned = false;
  // In memory, a flush and all that comes after it would be over before anybody looks.
  const { instance } = node;
  const flush = instance.flush?.bind(instance);
  const held = deferred();
  instance.flush = async () => {
    await held.promise;
    await flush?.();
  };
  let done = false;
  const closing = graph.collect([node]).finally(() => (done = true));
  await queryAll(bed);
  assert.ok(!graph.listed().includes(node));
  assert.equal(graph.nodes.get('A'), node);
  assert.throws(() => graph.checkNewName('A'), /Duplicate/);
  held.resolve();
  while (!done) await queryAll(bed);
  await closing;
  assert.equal(graph.nodes.has('A'), false);
});

test('a bitmap that would not fit into memory is refused in words', async (t) => {
  const bed = new EngineBed(t);
  const node = { driver: 'null-co', size: 2 ** 50 };
  await bed.execute('blockdev-add', { ...node, 'node-name': 'huge' });
  await bed.execute('blockdev-add', { ...node, 'node-name': 'copy' });
  const text =
    'A dirty bitmap with a granularity of 512 bytes is too large for 1125899906842624 bytes: choose a larger granularity';
  const bitmap = { node: 'huge', name: 'b', granularity: 512 };
  assert.equal(await bed.refusal('block-dirty-bitmap-add', bitmap), text);
  const mirror = { device: 'huge', target: 'copy', sync: 'full', granularity: 512 };
  assert.equal(await bed.refusal('blockdev-mirror', { 'job-id': 'm', ...mirror }), text);
  await bed.execute('block-dirty-bitmap-add', { ...bitmap, granularity: MiB });
  assert.deepEqual(await bed.execute('query-jobs'), []);
});

test('a disk does not grow beyond what its bitmaps can follow', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'b', granularity: 512 });
  const resize = { 'node-name': 'A', size: 2 ** 43 };
  assert.match(await bed.refusal('block_resize', resize), /is too large for 8796093022208 bytes/);
  await bed.guest(`read ${8 * MiB - 512} 512`);
  await bed.execute('block_resize', { ...resize, size: 16 * MiB });
});

test("a node's members are in QEMU's order, and only what has such a flag says whether it is dirty", async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'b' });
  await bed.engine.addNode({ driver: 'null-co', 'node-name': 'N', size: 512 });
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'R', file: { driver: 'blkdebug', image: 'N' } });
  const nodes = (await bed.execute('query-named-block-nodes', { flat: true })) as Array<{
    'node-name': string;
    image: { 'dirty-flag'?: boolean };
  }>;
  const byName = new Map(nodes.map((node) => [node['node-name'], node]));
  assert.deepEqual(Object.keys(byName.get('A') ?? {}), [
    ...[
      'iops_rd',
      'detect_zeroes',
      'image',
      'iops_wr',
      'ro',
      'node-name',
      'backing_file_depth',
      'drv',
      'iops',
    ],
    ...['bps_wr', 'write_threshold', 'dirty-bitmaps', 'encrypted', 'bps', 'bps_rd', 'cache', 'file'],
  ]);
  assert.deepEqual(
    ['A', 'N', 'R'].map((name) => byName.get(name)?.image['dirty-flag']),
    [false, undefined, undefined],
  );
});
