import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { createEngine, type CommandName, type Engine } from '../../src/index.js';
import { engineWithDisk, MiB } from './library-bed.js';

/** The first read of the file takes its time. */
const slow = (filename: string, delayMs = 100) => ({
  ...({ driver: 'blkdebug', image: { driver: 'file', filename } } as const),
  'x-delay': [{ iotype: 'read', 'delay-ms': delayMs } as const],
});

test('calls and commands that are made at once take turns', async (t) => {
  const { engine, folder } = await engineWithDisk(t);
  const filename = join(folder, 'low.qcow2');
  const made = engine.createImage({ filename, format: 'qcow2', sizeBytes: MiB });
  const queried = engine.execute('query-named-block-nodes', {});
  const added = engine.addNode({ driver: 'qcow2', 'node-name': 'low', file: slow(filename) });
  const all = [
    made,
    queried,
    added,
    engine.addNode({ driver: 'raw', 'node-name': 'top', file: 'low' }),
    engine.execute('query-named-block-nodes', {}),
    engine.execute('block-dirty-bitmap-add', { node: 'low', name: 'b' }),
    engine.openDisk('top'),
    engine.execute('block-dirty-bitmap-remove', { node: 'low', name: 'b' }),
    engine.addDevice('top', { id: 'v' }),
    engine.execute('query-block', {}),
  ];
  await Promise.all(all);
  const names = (await engine.execute('query-named-block-nodes', {})).map((node) => node['node-name']);
  for (const name of ['low', 'top']) assert.ok(names.includes(name), name);
});

async function assertUnknown(engine: Engine, name: string): Promise<void> {
  const bitmap = { node: name, name: 'b' };
  const overlay = { 'snapshot-file': '/tmp/o', 'snapshot-node-name': 'o' };
  const actions = [{ type: 'block-dirty-bitmap-add', data: bitmap } as const];
  const exported = { type: 'nbd', id: 'e', 'node-name': 'disk' } as const;
  for (const call of [
    () => engine.execute('block-set-write-threshold', { 'node-name': name, 'write-threshold': 0 }),
    () => engine.execute('block-dirty-bitmap-add', bitmap),
    () => engine.execute('transaction', { actions }),
    () => engine.execute('block-export-add', { ...exported, bitmaps: [bitmap] }),
    () => engine.execute('blockdev-snapshot', { node: 'disk', overlay: name }),
    () => engine.execute('blockdev-snapshot-sync', { 'node-name': name, ...overlay }),
    () => engine.execute('block-commit', { device: name }),
    () => engine.addNode({ driver: 'raw', 'node-name': 'r', file: name }),
    () => engine.addDevice(name, { id: 'v' }),
    () => engine.openDisk(name),
  ])
    await assert.rejects(call, (error: Error) => {
      assert.match(error.message, /not found|^Cannot find|^Failed to find|can't find/, String(call));
      return true;
    });
}

test('what a job is opening, nobody else has', async (t) => {
  const { engine, folder } = await engineWithDisk(t);
  const filename = join(folder, 'new');
  await engine.createImage({ filename, format: 'raw', sizeBytes: MiB });
  const file = { 'node-name': 'inner', ...slow(filename) };
  const job = await engine.start('blockdev-create', {
    options: { driver: 'qcow2', size: MiB, file: { driver: 'raw', 'node-name': 'outer', file } },
  });
  const queries: CommandName[] = ['query-named-block-nodes', 'query-blockstats', 'x-debug-query-block-graph'];
  while (job.status === 'running') {
    await new Promise(setImmediate);
    for (const query of queries) await engine.execute(query, {});
    for (const name of ['inner', 'outer'])
      await engine
        .execute('block-set-write-threshold', { 'node-name': name, 'write-threshold': 0 })
        .catch((error: unknown) => assert.match(String(error), /^BlockError: Device '\w+' not found$/));
  }
  await job.result();
  assert.deepEqual(
    [...engine.graph.nodes.keys()].filter((name) => /^inner|outer$/.test(name)),
    [],
  );
});

test('who names what a job is opening hears that it is not there', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  const { host } = simulation;
  await simulation.run(async () => {
    await using engine = await createEngine({ host });
    for (const filename of ['/tmp/disk', '/tmp/new'])
      await engine.createImage({ filename, format: 'qcow2', sizeBytes: MiB });
    await engine.addNode({
      driver: 'qcow2',
      'node-name': 'disk',
      file: { driver: 'file', filename: '/tmp/disk' },
    });
    const address = { type: 'unix', data: { path: '/tmp/s' } } as const;
    await engine.execute('nbd-server-start', { addr: address });
    const file = { ...slow('/tmp/new', 1e6), 'node-name': 'inner' };
    const job = await engine.start('blockdev-create', {
      options: { driver: 'qcow2', size: MiB, file: { driver: 'qcow2', 'node-name': 'new', file } },
    });
    while (!engine.graph.nodes.has('new')) await host.clock.sleep(1);
    await assertUnknown(engine, 'new');
    assert.equal(engine.graph.nodes.get('new')?.isOpen, false);
    await job.result();
  });
});

test('a node that a program has found earlier, and that is gone, is told of', async (t) => {
  const { engine } = await engineWithDisk(t);
  const node = engine.graph.node('disk');
  const removed = engine.execute('blockdev-del', { 'node-name': 'disk' });
  const absent = { kind: 'not-found', message: "Failed to find node with node-name='disk'" };
  await removed;
  await assert.rejects(engine.activate(node), absent);
  await assert.rejects(engine.inactivate(node), absent);
});
