import assert from 'node:assert/strict';
import { test } from 'node:test';
import { activate, inactivate } from '../../src/block/activity.js';
import type { BlockBackend } from '../../src/block/backend.js';
import { createImage } from '../../src/block/create.js';
import type { Graph } from '../../src/block/graph.js';
import type { Node } from '../../src/block/node.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { Flag, newMapping } from '../../src/block/request.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, type Fault, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { writeBuffer } from '../../src/host/whole-buffers.js';

/** Images that change hands, or what they are open for, on a machine that fails in the middle of it. */

const KiB = 1024;
const DISK = 512 * KiB;
const PATH = '/tmp/disk.qcow2';

function newEngine({ host }: Simulation): Engine {
  return new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
}

function open(engine: Engine, context: { readOnly?: boolean; inactive?: boolean } = {}): Promise<Node> {
  return engine.opener.openImage(PATH, 'qcow2', { readOnly: false, ...context });
}

async function attach(graph: Graph, node: Node): Promise<BlockBackend> {
  const user = graph.createBackend({
    description: 'a user',
    perm: Permission.consistentRead | Permission.write,
    shared: ALL_PERMISSIONS,
  });
  await graph.transaction((transaction) => void transaction.attach(user, 'root', node));
  return user;
}

async function detach(graph: Graph, { root }: BlockBackend): Promise<void> {
  assert.ok(root);
  await graph.transaction((transaction) => transaction.detach(root));
}

async function make(engine: Engine): Promise<void> {
  const options = { 'cluster-size': 4096 };
  await createImage(engine.opener, PATH, 'qcow2', { sizeBytes: DISK, options });
}

async function write(graph: Graph, node: Node, byte: number): Promise<void> {
  const user = await attach(graph, node);
  await user.write(0, Buffer.alloc(64 * KiB, byte));
  await detach(graph, user);
}

async function firstBytes(node: Node): Promise<Set<number>> {
  const bytes = Buffer.alloc(64 * KiB);
  await node.io.readBuffer(0, bytes);
  return new Set(bytes);
}

const eio = { errno: 'EIO' };

for (const [what, fault, where] of [
  ['its header cannot be read', { op: 'read', errno: 'EIO' }, 'Could not read qcow2 header: '],
  ['its tables cannot be read', { op: 'read', errno: 'EIO', afterCount: 1 }, ''],
] satisfies Array<[string, Fault, string]>) {
  test(`an image does not become ours while ${what}`, async () => {
    const simulation = createSimulatedHost({ seed: 3 });
    await simulation.run(async () => {
      const engine = newEngine(simulation);
      await make(engine);
      const node = await open(engine, { inactive: true });
      for (let i = 0; i < 2; i++) {
        const stop = simulation.injectFault(fault);
        const message = `Could not reopen qcow2 layer: ${where}Input/output error`;
        await assert.rejects(activate(engine.graph, [node]), { message });
        stop();
        assert.equal(node.activity, 'inactive');
        await assert.rejects(attach(engine.graph, node), { message: 'Block node is read-only' });
        await node.io.flush();
      }
      await activate(engine.graph, [node]);
      await write(engine.graph, node, 7);
      await engine.graph.collect([node]);
      assert.deepEqual(await firstBytes(await open(engine)), new Set([7]));
    });
  });
}

/** Two ways in which an image stops being written; how it is seen that it did; and back. */
const ENDS: Array<[string, (graph: Graph, node: Node, on: boolean) => Promise<void>]> = [
  [
    'turns read-only',
    (graph, node, on) => graph.transaction((transaction) => transaction.setReadOnly(node, on)),
  ],
  ['is given away', (graph, node, on) => (on ? inactivate(graph, [node]) : activate(graph, [node]))],
];

for (const [what, end] of ENDS) {
  for (const op of ['write', 'flush'] as const) {
    test(`an image that ${what} stays as it was when a ${op} fails, and nothing is lost`, async () => {
      for (let seed = 0; seed < 6; seed++) {
        const simulation = createSimulatedHost({ seed });
        await simulation.run(async () => {
          const engine = newEngine(simulation);
          const { graph } = engine;
          await make(engine);
          const node = await open(engine);
          await write(graph, node, 1);
          for (let i = 0; i < 2; i++) {
            const stop = simulation.injectFault({ op, errno: 'EIO', once: op === 'write' });
            await assert.rejects(end(graph, node, true), eio);
            stop();
            assert.ok(node.isWritable);
            // A file whose flush has failed once is never trusted again.
            if (op === 'write') await write(graph, node, 2 + i);
          }
          if (op === 'flush') return void (await assert.rejects(engine.graph.collect([node]), eio));
          await end(graph, node, true);
          assert.ok(!node.isWritable);
          await node.io.flush();
          await assert.rejects(attach(graph, node), { message: 'Block node is read-only' });
          await end(graph, node, false);
          assert.ok(node.isWritable);
          assert.deepEqual(await firstBytes(node), new Set([3]));
          await end(graph, node, true);
        });
        if (op === 'flush') continue;
        simulation.powerLoss();
        simulation.reboot();
        await simulation.run(async () => {
          assert.deepEqual(await firstBytes(await open(newEngine(simulation))), new Set([3]));
        });
      }
    });
  }

  test(`of an image that ${what} nothing can be changed in its tables`, async () => {
    const simulation = createSimulatedHost({ seed: 1 });
    await simulation.run(async () => {
      const engine = newEngine(simulation);
      await make(engine);
      const node = await open(engine);
      await end(engine.graph, node, true);
      const { instance } = node;
      const { map } = instance;
      assert.ok(map);
      const bug = { name: 'AssertionFailure' };
      await assert.rejects(map.reserve(0, 4096), bug);
      assert.throws(() => map.tryReserve?.(0, 4096), bug);
      await assert.rejects(map.zeroClusters(0, 4096, Flag.mayUnmap), bug);
      await assert.rejects(instance.truncate?.(2 * DISK) ?? Promise.resolve(), bug);
      await assert.rejects(instance.changeBacking?.('x', 'raw') ?? Promise.resolve(), bug);
      const mapping = newMapping();
      await map.map(0, 4096, mapping);
      assert.equal(mapping.kind, 'backing');
    });
  });
}

test('an image that turns read-write is refused in the same words each time, and stays read-only', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    const engine = newEngine(simulation);
    await make(engine);
    const file = await simulation.host.files.open(PATH, { write: true });
    await writeBuffer(file, 79, Buffer.from([1]));
    await file.close();
    const node = await open(engine, { readOnly: true });
    for (let i = 0; i < 2; i++) {
      const turn = engine.graph.transaction((transaction) => transaction.setReadOnly(node, false));
      await assert.rejects(turn, { message: /^qcow2: Image is dirty/ });
      assert.ok(node.readOnly && node.child('file').node.readOnly);
      await node.io.flush();
    }
  });
});

test('what was written to an image that was given away survives a power loss, whatever its format', async () => {
  for (const format of ['raw', 'qcow2']) {
    const simulation = createSimulatedHost({ seed: 5 });
    await simulation.run(async () => {
      const engine = newEngine(simulation);
      const path = `/tmp/disk.${format}`;
      await createImage(engine.opener, path, format, { sizeBytes: DISK });
      await simulation.host.files.syncDirectory('/tmp');
      const node = await engine.opener.openImage(path, format, { readOnly: false });
      await write(engine.graph, node, 0x77);
      await inactivate(engine.graph, [node]);
    });
    simulation.powerLoss();
    simulation.reboot();
    await simulation.run(async () => {
      const again = newEngine(simulation);
      const node = await again.opener.openImage(`/tmp/disk.${format}`, format, { readOnly: true });
      assert.deepEqual(await firstBytes(node), new Set([0x77]), format);
    });
  }
});
