import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { createEngine } from '../../src/index.js';
import { MiB } from './library-bed.js';

test('a device goes to another node though a job takes out the one that it is on', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    await using engine = await createEngine({ host: simulation.host, kind: 'machine' });
    const { graph } = engine;
    await engine.createImage({ filename: '/tmp/disk', format: 'qcow2', sizeBytes: MiB });
    const file = { driver: 'file', filename: '/tmp/disk' };
    await engine.addNode({ driver: 'qcow2', 'node-name': 'disk', file });
    await engine.addNode({ driver: 'copy-on-read', 'node-name': 'filter', file: 'disk' });
    await engine.addDevice('filter', { id: 'guest' });
    const backend = engine.devices.get('guest')?.backend;
    assert.ok(backend);
    // Both of them wait for it.
    const written = backend.write(0, Buffer.alloc(MiB, 1));
    const [filter, disk] = [graph.node('filter'), graph.node('disk')];
    const takenOut = graph.drained([filter], () =>
      graph.transaction((transaction) => {
        transaction.replaceNode(filter, disk);
        transaction.detach(filter.child('file'));
      }),
    );
    const path = '/machine/peripheral/guest';
    await engine.execute('qom-set', { path, property: 'drive', value: 'disk' });
    await Promise.all([takenOut, written]);
    assert.equal(backend.node?.name, 'disk');
    await graph.transaction((transaction) => transaction.attach(filter, 'file', disk));
  });
});
