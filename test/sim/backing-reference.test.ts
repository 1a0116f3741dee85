import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockBackend } from '../../src/block/backend.js';
import { createImage } from '../../src/block/create.js';
import type { Node } from '../../src/block/node.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { startCommit } from '../kit/start-job.js';

/** When the change of an overlay's header fails: which backing file does the image name after a power loss? */

const KiB = 1024;
const DISK = 256 * KiB;
const NAMES = ['a', 'b', 'c', 'd'] as const;
const UNCERTAIN =
  /^Node '.+' may name another backing file on disk than it has: a change of its header failed$/;

function newEngine({ host }: Simulation): Engine {
  return new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
}

const pathOf = (name: string): string => `/tmp/${name}.qcow2`;

function open(engine: Engine, name: string, backing?: Node): Promise<Node> {
  const extra = backing ? { backing: backing.name } : {};
  return engine.opener.openImage(pathOf(name), 'qcow2', { readOnly: false, discard: 'unmap' }, extra);
}

async function attach(engine: Engine, node: Node): Promise<BlockBackend> {
  const guest = engine.graph.createBackend({
    description: 'a guest',
    perm: Permission.consistentRead | Permission.write,
    shared: ALL_PERMISSIONS,
  });
  await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
  return guest;
}

async function make(engine: Engine, name: string, backing: string | undefined): Promise<void> {
  await createImage(engine.opener, pathOf(name), 'qcow2', {
    sizeBytes: DISK,
    options: { 'cluster-size': 512 },
    ...(backing !== undefined && { backingFile: pathOf(backing), backingFormat: 'qcow2' }),
  });
}

/** [a] <-- [b] <-- [c] <-- [d]; each writes its number over what the one below has, but for a part of it. */
async function makeChain(engine: Engine): Promise<void> {
  for (const [i, name] of NAMES.entries()) {
    await make(engine, name, NAMES[i - 1]);
    const guest = await attach(engine, await open(engine, name));
    const { node, root } = guest;
    assert.ok(root);
    await guest.write(0, Buffer.alloc(DISK - i * 64 * KiB, i + 1));
    await guest.flush();
    await engine.graph.transaction((transaction) => transaction.detach(root));
    await engine.graph.collect([node]);
  }
}

function expectedContent(): Buffer {
  const expected = Buffer.alloc(DISK);
  for (const i of NAMES.keys()) expected.fill(i + 1, 0, DISK - i * 64 * KiB);
  return expected;
}

function layer(top: Node, name: string): Node {
  for (const node of top.chain()) if (node.filename === pathOf(name)) return node;
  return assert.fail(`no layer ${name}`);
}

/** Starts the commit and answers with what it ended. */
async function commit(engine: Engine, device: Node, top: string, base: string): Promise<string | undefined> {
  const job = await startCommit(engine, {
    jobId: 'job0',
    device,
    top: layer(device, top),
    base: layer(device, base),
  });
  await job.concluded;
  return job.error;
}

/** Runs `body` on the disk [a] <-- ... <-- [d] with several seeds; after the power is lost it reads as before. */
async function onChain(
  body: (simulation: Simulation, engine: Engine, device: Node) => Promise<void>,
): Promise<void> {
  for (let seed = 0; seed < 12; seed++) {
    const simulation = createSimulatedHost({ seed });
    await simulation.run(async () => {
      const engine = newEngine(simulation);
      await makeChain(engine);
      await body(simulation, engine, (await attach(engine, await open(engine, 'd'))).node);
    });
    await assertContentAfterPowerLoss(simulation, 'd');
  }
}

async function assertContentAfterPowerLoss(simulation: Simulation, name: string): Promise<void> {
  simulation.powerLoss();
  simulation.reboot();
  await simulation.run(async () => {
    const node = await open(newEngine(simulation), name);
    const bytes = Buffer.alloc(DISK);
    await node.io.readBuffer(0, bytes);
    assert.ok(bytes.equals(expectedContent()), `${name} holds other content`);
  });
}

test('a header that could not be made durable holds off commits below it', async () => {
  await onChain(async (simulation, engine, device) => {
    simulation.injectFault({ op: 'flush', path: pathOf('d'), errno: 'EIO', once: true });
    assert.equal(await commit(engine, device, 'c', 'a'), 'Input/output error');
    assert.deepEqual(
      [...device.chain()].map(({ filename }) => filename),
      [...NAMES].reverse().map(pathOf),
    );
    await assert.rejects(commit(engine, device, 'b', 'a'), { kind: 'io', message: UNCERTAIN });
    const active = { jobId: 'job0', device, top: device, base: layer(device, 'b') };
    await assert.rejects(startCommit(engine, active), { kind: 'io', message: UNCERTAIN });
  });
});

test('a header that could not be written names the old backing file, and the next commit is safe', async () => {
  await onChain(async (simulation, engine, device) => {
    simulation.injectFault({ op: 'write', path: pathOf('d'), errno: 'EIO', once: true });
    assert.equal(await commit(engine, device, 'c', 'a'), 'Input/output error');
    assert.equal(await commit(engine, device, 'b', 'a'), undefined);
  });
});

test('of two overlays whose headers change, the first names the old backing file again when the second fails', async () => {
  await onChain(async (simulation, engine, device) => {
    await make(engine, 'other', 'c');
    await attach(engine, await open(engine, 'other', layer(device, 'c')));
    simulation.injectFault({ op: 'write', path: pathOf('other'), errno: 'EIO', once: true });
    assert.equal(await commit(engine, device, 'c', 'a'), 'Input/output error');
    assert.equal(await commit(engine, device, 'b', 'a'), undefined);
  });
});
