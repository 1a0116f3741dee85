import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inactivate } from '../../src/block/activity.js';
import { createImage } from '../../src/block/create.js';
import type { Node } from '../../src/block/node.js';
import { allDrivers } from '../../src/drivers/index.js';
import { rawDriver } from '../../src/drivers/raw/index.js';
import { createSimulatedHost, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import type { BlockBackend } from '../../src/block/backend.js';
import { startCommit } from '../kit/start-job.js';

/** What the simulation has found once, each by itself. */

const DISK = 512 * 1024;

function newEngine({ host }: Simulation): Engine {
  return new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
}

async function make(engine: Engine, path: string, backing?: string, clusterBytes = 65536): Promise<void> {
  const format = path.endsWith('raw') ? 'raw' : 'qcow2';
  await createImage(engine.opener, path, format, {
    sizeBytes: DISK,
    options: format === 'raw' ? {} : { 'cluster-size': clusterBytes },
    ...(backing !== undefined && {
      backingFile: backing,
      backingFormat: backing.endsWith('raw') ? 'raw' : 'qcow2',
    }),
  });
}

function open(engine: Engine, path: string, extra = {}): Promise<Node> {
  return engine.opener.openImage(
    path,
    path.endsWith('raw') ? 'raw' : 'qcow2',
    { readOnly: false, discard: 'unmap' },
    extra,
  );
}

async function attach(engine: Engine, node: Node, more = 0): Promise<BlockBackend> {
  const guest = engine.graph.createBackend({
    description: 'a guest',
    perm: Permission.consistentRead | Permission.write | more,
    shared: ALL_PERMISSIONS,
  });
  await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
  return guest;
}

async function close(engine: Engine, guest: BlockBackend): Promise<void> {
  const { node, root } = guest;
  assert.ok(root);
  await engine.graph.transaction((transaction) => transaction.detach(root));
  await engine.graph.collect([node]);
}

test('an active commit does not copy the base onto itself', async () => {
  const simulation = createSimulatedHost({ seed: 1, refuseProbability: 0 });
  await simulation.run(async () => {
    const engine = newEngine(simulation);
    await make(engine, '/tmp/lowest.raw');
    const lowest = await attach(engine, await open(engine, '/tmp/lowest.raw'));
    await lowest.write(0, Buffer.alloc(DISK, 1));
    await close(engine, lowest);
    await make(engine, '/tmp/base.qcow2', '/tmp/lowest.raw', 512);
    await make(engine, '/tmp/top.qcow2', '/tmp/base.qcow2', 512);
    const guest = await attach(engine, await open(engine, '/tmp/top.qcow2'));
    await guest.write(1024, Buffer.alloc(512, 2));
    const top = guest.node;
    const base = top.backingNode();
    assert.ok(base);
    const ready = new Promise<void>((resolve) => {
      engine.onEvent((event) => {
        if (event === 'BLOCK_JOB_READY') resolve();
      });
    });
    const job = await startCommit(engine, { jobId: 'job0', device: top, top, base });
    await ready;
    job.complete();
    await job.concluded;
    assert.equal(job.error, undefined);
    const expected = Buffer.alloc(DISK, 1);
    expected.fill(2, 1024, 1536);
    const bytes = Buffer.alloc(DISK);
    await guest.read(0, bytes);
    assert.ok(bytes.equals(expected));
    assert.equal((await base.io.status(1024, 512)).allocated, true);
    assert.equal((await base.io.status(1536, 512)).allocated, false);
  });
});

test('closing an image makes it durable, a raw one too', async () => {
  for (let seed = 0; seed < 12; seed++) {
    const simulation = createSimulatedHost({ seed });
    await simulation.run(async () => {
      const engine = newEngine(simulation);
      await make(engine, '/tmp/disk.raw');
      const guest = await attach(engine, await open(engine, '/tmp/disk.raw'));
      await guest.write(0, Buffer.alloc(4096, 7));
      await close(engine, guest);
    });
    simulation.powerLoss();
    assert.ok(
      simulation
        .contentOf('/tmp/disk.raw')
        ?.subarray(0, 4096)
        .every((byte) => byte === 7),
    );
  }
});

test('nobody attaches to an image that is being closed', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    const engine = newEngine(simulation);
    await make(engine, '/tmp/disk.qcow2');
    const guest = await attach(engine, await open(engine, '/tmp/disk.qcow2'));
    const { node } = guest;
    await guest.write(0, Buffer.alloc(4096, 7));
    const closing = close(engine, guest);
    while (!node.isClosing) await simulation.host.clock.sleep(0.1);
    const gone = { kind: 'not-found', message: /Cannot find device='' nor node-name=/ };
    await assert.rejects(attach(engine, node), gone);
    assert.throws(() => node.assertNotBlocked(), gone);
    await closing;
    assert.equal(engine.graph.nodes.size, 0);
  });
});

for (const [what, change] of [
  ['turns read-only', (engine: Engine, node: Node) => turnReadOnly(engine, node)],
  ['is given up to another engine', (engine: Engine, node: Node) => inactivate(engine.graph, [node])],
] as const) {
  test(`a qcow2 image that ${what} is durable: later flushes do nothing`, async () => {
    for (let seed = 0; seed < 12; seed++) {
      const simulation = createSimulatedHost({ seed });
      await simulation.run(async () => {
        const engine = newEngine(simulation);
        await make(engine, '/tmp/disk.qcow2');
        const guest = await attach(engine, await open(engine, '/tmp/disk.qcow2'));
        const { node, root } = guest;
        await guest.write(0, Buffer.alloc(4096, 7));
        assert.ok(root);
        await engine.graph.transaction((transaction) => transaction.detach(root));
        await change(engine, node);
      });
      simulation.powerLoss();
      simulation.reboot();
      await simulation.run(async () => {
        const node = await open(newEngine(simulation), '/tmp/disk.qcow2');
        const bytes = Buffer.alloc(4096);
        await node.io.readBuffer(0, bytes);
        assert.ok(
          bytes.every((byte) => byte === 7),
          `seed ${seed}`,
        );
      });
    }
  });
}

function turnReadOnly(engine: Engine, node: Node): Promise<void> {
  return engine.graph.transaction((transaction) => transaction.setReadOnly(node, true));
}

test('an image whose growth has failed can be grown again', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    const engine = newEngine(simulation);
    await make(engine, '/tmp/disk.qcow2', undefined, 512);
    const node = await open(engine, '/tmp/disk.qcow2');
    await attach(engine, node);
    simulation.injectFault({ op: 'write', errno: 'EIO', once: true });
    await assert.rejects(node.io.truncate(16 * DISK), { errno: 'EIO' });
    await node.io.truncate(64 * DISK);
    assert.equal(node.lengthBytes, 64 * DISK);
  });
});

test('a raw image is durable when it has been made, before its file is closed', async () => {
  for (let seed = 0; seed < 12; seed++) {
    const simulation = createSimulatedHost({ seed });
    await simulation.run(async () => {
      const engine = newEngine(simulation);
      await make(engine, '/tmp/disk.raw');
      const node = await engine.opener.open(
        { driver: 'file', filename: '/tmp/disk.raw' },
        { readOnly: false, discard: 'unmap' },
      );
      const { root } = await attach(engine, node, Permission.resize);
      assert.ok(root);
      await rawDriver.create?.(
        root,
        { sizeBytes: 2 * DISK, options: { preallocation: 'off' } },
        simulation.host,
      );
    });
    simulation.powerLoss();
    assert.equal(simulation.contentOf('/tmp/disk.raw')?.length, 2 * DISK);
  }
});

test('what the guest wrote before it was stopped is on disk', async () => {
  for (let seed = 0; seed < 12; seed++) {
    const simulation = createSimulatedHost({ seed });
    await simulation.run(async () => {
      const engine = new Engine({ host: simulation.host, drivers: allDrivers, kind: 'machine' });
      await make(engine, '/tmp/disk.raw');
      const file = { driver: 'file', filename: '/tmp/disk.raw' };
      await engine.addNode({ driver: 'raw', 'node-name': 'disk', file });
      const device = await engine.addDevice('disk', { id: 'vda' });
      await device.backend.write(0, Buffer.alloc(4096, 7));
      await engine.execute('stop', {});
    });
    simulation.powerLoss();
    const content = simulation.contentOf('/tmp/disk.raw');
    assert.ok(content?.subarray(0, 4096).every((byte) => byte === 7));
  }
});
