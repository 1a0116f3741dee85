import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { NbdClient } from '../../src/wire/nbd/client.js';

const MiB = 1024 * 1024;
const PATH = '/tmp/disk.qcow2';

test('a guest whose disk is full stops with all that was answered, and cont goes on when there is space', async () => {
  for (const clusterBytes of [512, 65536]) {
    const simulation = createSimulatedHost({ seed: 3, refuseProbability: 0.2 });
    await simulation.run(async () => {
      const { host } = simulation;
      const engine = new Engine({ host, drivers: allDrivers, kind: 'machine' });
      const options = { 'cluster-size': clusterBytes };
      await createImage(engine.opener, PATH, 'qcow2', { sizeBytes: 64 * MiB, options });
      const file = { driver: 'file', filename: PATH };
      await engine.addNode({ driver: 'qcow2', 'node-name': 'disk', file });
      const endpoint = { type: 'unix', path: '/tmp/guest.sock' } as const;
      await engine.addDevice('disk', { id: 'vda', endpoint });
      const errors: unknown[] = [];
      engine.onEvent((event, data) => event === 'BLOCK_IO_ERROR' && errors.push(data));
      const guest = await NbdClient.connect({ host, address: endpoint, exportName: 'vda' });
      simulation.limitSpace({ capacityBytes: simulation.usedBytes + 300_000, tells: 'early' });
      const bytes = (index: number): Buffer => Buffer.alloc(10_000, index + 1);
      const at = (index: number): number => index * 700_000 - ((index * 700_000) % 512);
      let index = 0;
      let write = Promise.resolve();
      while (engine.runState.isRunning) {
        write = guest.write(at(index), bytes(index), 0);
        await Promise.race([write, stopped(engine)]);
        index++;
      }
      const reason = 'No space left on device';
      const data = {
        device: '',
        'node-name': 'disk',
        operation: 'write',
        action: 'stop',
        nospace: true,
        reason,
        'qom-path': '/machine/peripheral/vda/virtio-backend',
      };
      assert.deepEqual(errors, [data]);
      // What was answered needs no more space.
      await engine.devices.get('vda')?.backend.flush();
      simulation.limitSpace(undefined);
      await engine.execute('cont', {});
      await write;
      for (let i = 0; i < index; i++) {
        const read = Buffer.alloc(10_000);
        await guest.read(at(i), read);
        assert.ok(read.equals(bytes(i)), `write ${i}`);
      }
      await guest.close();
      await engine.close();
    });
  }
});

async function stopped(engine: Engine): Promise<void> {
  while (engine.runState.isRunning) await engine.host.clock.sleep(1);
}
