import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { createEngine, type Engine } from '../../src/index.js';
import { MiB } from './library-bed.js';

async function chain(engine: Engine): Promise<void> {
  let backing: { filename: string; format: string } | undefined;
  for (const name of ['low', 'mid', 'top']) {
    const filename = `/tmp/${name}`;
    const image = { filename, format: 'qcow2', sizeBytes: MiB };
    await engine.createImage({ ...image, ...(backing && { backing }) });
    const below = name === 'low' ? {} : { backing: name === 'mid' ? 'low' : 'mid' };
    await engine.addNode({
      driver: 'qcow2',
      'node-name': name,
      file: { driver: 'file', filename },
      ...below,
    });
    backing = { filename, format: 'qcow2' };
  }
}

test('a commit that is cancelled beside somebody who writes to its base leaves nothing behind', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  const { clock } = simulation.host;
  await simulation.run(async () => {
    await using engine = await createEngine({ host: simulation.host });
    await chain(engine);
    const disk = await engine.openDisk('top', { writable: true, shareWrite: false });
    const ready = engine.events({ only: ['BLOCK_JOB_READY'] });
    const job = await engine.start('block-commit', { device: 'top', 'filter-node-name': 'f' });
    await ready.next();
    const writer = await engine.openDisk('low', { writable: true });
    await disk.write(0, Buffer.alloc(65536, 7));
    await engine.execute('job-cancel', { id: job.id });
    await assert.rejects(job.result(), { kind: 'cancelled' });
    await job.concluded;
    assert.equal(disk.nodeName, 'f');
    await writer.close();
    while (engine.graph.nodes.has('f')) await clock.sleep(100);
    assert.equal(disk.nodeName, 'top');
    const overlay = { 'snapshot-file': '/tmp/o', 'snapshot-node-name': 'o' };
    await engine.execute('blockdev-snapshot-sync', { 'node-name': 'top', ...overlay });
    assert.equal(disk.nodeName, 'o');
  });
});

test('an engine closes well where a job had to leave its filter', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    const engine = await createEngine({ host: simulation.host });
    await chain(engine);
    const disk = await engine.openDisk('top', { writable: true, shareWrite: false });
    const ready = engine.events({ only: ['BLOCK_JOB_READY'] });
    await engine.start('block-commit', { device: 'top' });
    await ready.next();
    await engine.openDisk('low', { writable: true });
    await disk.write(0, Buffer.alloc(65536, 7));
    await engine.close();
    assert.deepEqual([...engine.graph.nodes.keys()], []);
  });
});
