import assert from 'node:assert/strict';
import { unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  ALL_PERMISSIONS,
  allDrivers,
  type BlockBackend,
  createEngine,
  type Disk,
  type Engine,
  Permission,
} from '../../src/index.js';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { addDisk, contentOf, DISK_BYTES, engineWithDisk, MiB } from './library-bed.js';

const closed = { name: 'BlockError', kind: 'closed' };

async function ownBackend(engine: Engine): Promise<BlockBackend> {
  const backend = engine.graph.createBackend({
    description: 'my program',
    perm: Permission.consistentRead | Permission.write,
    shared: ALL_PERMISSIONS,
  });
  const node = engine.graph.node('disk');
  await engine.graph.transaction((change) => void change.attach(backend, 'root', node));
  return backend;
}

function assertBackendClosed(backend: BlockBackend): Promise<unknown> {
  const buffer = Buffer.alloc(512);
  assert.throws(() => backend.tryRead(0, buffer), closed);
  assert.throws(() => backend.tryWrite(0, buffer, 0), closed);
  assert.throws(() => backend.lengthBytes, closed);
  return Promise.all(
    [
      () => backend.read(0, buffer),
      () => backend.write(0, buffer),
      () => backend.writeZeroes(0, 512),
      () => backend.discard(0, 512),
      () => backend.flush(),
      () => backend.status(0, 512),
      () => backend.truncate(MiB),
    ].map((request) => assert.rejects(request, closed)),
  );
}

test('a backend of the program does not keep an engine from closing: nothing is lost, and it is told', async (t) => {
  const { engine, filename } = await engineWithDisk(t);
  const backend = await ownBackend(engine);
  await backend.write(0, Buffer.alloc(MiB, 9));
  const late = backend.write(MiB, Buffer.alloc(MiB, 8));
  await engine.close();
  await late;
  assert.equal(engine.graph.nodes.size, 0);
  await assertBackendClosed(backend);
  const content = await contentOf(filename, 2 * MiB);
  assert.deepEqual(content, Buffer.concat([Buffer.alloc(MiB, 9), Buffer.alloc(MiB, 8)]));
});

test('a disk and a device of the program are flushed and closed with the engine', async (t) => {
  const { engine, filename, folder } = await engineWithDisk(t);
  const disk = await engine.openDisk('disk', { writable: true });
  await disk.write(0, Buffer.alloc(MiB, 7));
  const endpoint = { type: 'unix', path: join(folder, 's') } as const;
  await engine.createImage({ filename: join(folder, 'x'), format: 'raw', sizeBytes: MiB });
  await engine.addNode({ driver: 'file', 'node-name': 'x', filename: join(folder, 'x') });
  const device = await engine.addDevice('x', { id: 'v', endpoint });
  await device.backend.write(0, Buffer.alloc(MiB, 6));
  await engine.close();
  await assertBackendClosed(device.backend);
  for (const use of [
    () => disk.read(0, Buffer.alloc(512)),
    () => disk.write(0, Buffer.alloc(512)),
    () => disk.flush(),
    async () => disk.lengthBytes,
    () => disk.extents().next(),
  ])
    await assert.rejects(use, closed);
  await disk.close();
  assert.deepEqual(await contentOf(filename, MiB), Buffer.alloc(MiB, 7));
});

test('a closed engine refuses everything by kind, and closes again in peace', async (t) => {
  const { engine, filename } = await engineWithDisk(t);
  await engine.close();
  await engine.close();
  await engine[Symbol.asyncDispose]();
  for (const use of [
    () => engine.execute('query-block'),
    () => engine.execute('quit'),
    () => engine.addNode({ driver: 'null-co', 'node-name': 'n' }),
    () => engine.addDevice('disk', { id: 'd' }),
    () => engine.openDisk('disk'),
    () => engine.createImage({ filename: `${filename}2`, format: 'raw', sizeBytes: 512 }),
    () => engine.start('block-stream', { device: 'disk' }),
  ])
    await assert.rejects(use, closed);
  assert.throws(() => engine.onEvent(() => undefined), closed);
  assert.throws(() => engine.events(), closed);
});

test('what is under way when an engine closes ends well or is refused; nothing stays open', async (t) => {
  for (let turns = 0; turns < 12; turns++) {
    const { engine, filename, folder } = await engineWithDisk(t);
    const overlay = {
      'node-name': 'disk',
      'snapshot-file': join(folder, 'o.qcow2'),
      'snapshot-node-name': 'o',
    };
    const works = [
      engine.execute('blockdev-snapshot-sync', overlay),
      engine.start('block-stream', { device: 'o' }).then((job) => job.result()),
      engine.addNode({ driver: 'raw', 'node-name': 'r', file: 'disk' }),
      engine.openDisk('disk', { writable: true }).then((disk) => disk.write(0, Buffer.alloc(MiB, 1))),
    ];
    const outcomes = Promise.allSettled(works);
    for (let i = 0; i < turns; i++) await new Promise((resolve) => setImmediate(resolve));
    await engine.close();
    for (const outcome of await outcomes)
      if (outcome.status === 'rejected') assert.equal((outcome.reason as Error).name, 'BlockError');
    assert.deepEqual([...engine.graph.nodes.keys()], []);
    assert.equal(engine.graph.backends.size, 0);
    await contentOf(filename, 512);
  }
});

test('a flush that fails at the end is told, once, and all is closed', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    const engine = await createEngine({ host: simulation.host, drivers: allDrivers });
    await engine.createImage({ filename: '/tmp/a', format: 'qcow2', sizeBytes: DISK_BYTES });
    await addDisk(engine, '/tmp/a');
    const backend = await ownBackend(engine);
    await backend.write(0, Buffer.alloc(65536, 1));
    simulation.injectFault({ op: 'flush', errno: 'EIO' });
    const both = await Promise.allSettled([engine.close(), engine.close()]);
    for (const outcome of both) {
      assert.equal(outcome.status, 'rejected');
      assert.equal((outcome.reason as { kind?: string }).kind, 'io');
    }
    await engine.close();
    assert.equal(engine.graph.nodes.size, 0);
    await assertBackendClosed(backend);
  });
});

test('an engine closes well though its images are gone, and may be written only while somebody does', async (t) => {
  const { engine, filename } = await engineWithDisk(t);
  await engine.execute('blockdev-del', { 'node-name': 'disk' });
  const file = { driver: 'file', filename, 'auto-read-only': true };
  await engine.addNode({ driver: 'qcow2', 'node-name': 'disk', file });
  const disk = await engine.openDisk('disk', { writable: true });
  await disk.write(0, Buffer.alloc(512, 1));
  unlinkSync(filename);
  await disk.close();
  await engine.close();
  assert.equal(engine.graph.nodes.size, 0);
});

test('an engine that closes waits for nodes that others are closing', async () => {
  for (const [what, close] of [
    ['a command', (engine: Engine) => engine.execute('blockdev-del', { 'node-name': 'top' })],
    ['a disk', (_: Engine, disk: Disk) => disk.close()],
  ] as const) {
    const simulation = createSimulatedHost({ seed: 1 });
    await simulation.run(async () => {
      const engine = await createEngine({ host: simulation.host });
      await engine.createImage({ filename: '/tmp/a', format: 'qcow2', sizeBytes: DISK_BYTES });
      await addDisk(engine, '/tmp/a');
      await engine.addNode({ driver: 'raw', 'node-name': 'top', file: 'disk' });
      const disk = await engine.openDisk('top', { writable: true });
      await disk.write(0, Buffer.alloc(MiB, 7));
      if (what === 'a command') await disk.close();
      else engine.graph.node('top').monitorOwned = false;
      const top = engine.graph.node('top');
      let closes = 0;
      const closeTop = top.close.bind(top);
      top.close = () => (closes++, closeTop());
      const closed = close(engine, disk);
      while (!top.isClosing) await simulation.host.clock.sleep(0.01);
      await engine.close();
      assert.deepEqual([...engine.graph.nodes.keys()], [], what);
      await closed;
      assert.equal(closes, 1, what);
    });
  }
});
