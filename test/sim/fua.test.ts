import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockBackend } from '../../src/block/backend.js';
import { createImage } from '../../src/block/create.js';
import type { Node } from '../../src/block/node.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { Flag } from '../../src/block/request.js';
import { FileIo } from '../../src/drivers/file/io.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';

/** A write with FUA is durable by itself where that can be, and nothing else is flushed for it. */

const DISK = 1024 * 1024;
const CLUSTER = 65536;
const FORMATS = ['raw', 'qcow2'] as const;

async function open(engine: Engine, path: string, format: string, readOnly = false): Promise<BlockBackend> {
  const node = await engine.opener.openImage(path, format, { readOnly, discard: 'unmap' });
  const guest = engine.graph.createBackend({
    description: 'a guest',
    perm: Permission.consistentRead | (readOnly ? 0 : Permission.write),
    shared: ALL_PERMISSIONS,
  });
  await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', node));
  return guest;
}

/** How often a node is flushed from here on. */
function flushesOf({ instance }: Node): { count: number } {
  const counted = { count: 0 };
  const flush = instance.flush.bind(instance);
  instance.flush = () => {
    counted.count++;
    return flush();
  };
  return counted;
}

/** A disk of which the first half is data, all of it durable. */
async function disk({ host }: Simulation, format: string): Promise<BlockBackend> {
  const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
  await createImage(engine.opener, '/tmp/disk', format, { sizeBytes: DISK, options: {} });
  const guest = await open(engine, '/tmp/disk', format);
  await guest.write(0, Buffer.alloc(DISK / 2, 1));
  await guest.flush();
  return guest;
}

async function contentAfter(simulation: Simulation, format: string): Promise<Buffer> {
  simulation.powerLoss();
  simulation.reboot();
  const bytes = Buffer.alloc(DISK);
  await simulation.run(async () => {
    const engine = new Engine({ host: simulation.host, drivers: allDrivers, kind: 'storage-daemon' });
    await (await open(engine, '/tmp/disk', format, true)).read(0, bytes);
  });
  return bytes;
}

for (const format of FORMATS)
  test(`${format}: a FUA write over data flushes nothing else, and survives a power loss`, async () => {
    let lost = 0;
    for (let seed = 0; seed < 40; seed++) {
      const simulation = createSimulatedHost({ seed });
      await simulation.run(async () => {
        const guest = await disk(simulation, format);
        const flushes = flushesOf(guest.node.child('file').node);
        await guest.write(CLUSTER, Buffer.alloc(4096, 2));
        // What is written first and flushed by nobody does not come back over it.
        await guest.write(0, Buffer.alloc(4096, 3));
        await guest.write(0, Buffer.alloc(4096, 4), Flag.fua);
        await guest.write(2048, Buffer.alloc(1024, 5));
        await guest.write(1024, Buffer.alloc(1536, 6), Flag.fua);
        assert.equal(flushes.count, 0);
      });
      const after = await contentAfter(simulation, format);
      for (let at = 0; at < 4096; at += 512) {
        const allowed = at >= 1024 && at < 2560 ? [6] : at === 2560 ? [4, 5] : [4];
        assert.ok(allowed.includes(after[at] ?? 0), `seed ${seed}: ${at} holds ${after[at] ?? 0}`);
      }
      if (after[CLUSTER] === 1) lost++;
    }
    assert.ok(lost > 0, 'other writes went with the FUA write each time');
  });

/** What is written before with a flush, what without one, then the FUA write: where, how long. */
const NEW = [
  { name: 'of new data' },
  { name: 'of data whose place is not durable yet', written: DISK / 2 },
  { name: 'over the end of what is durable', flushed: DISK / 2, fuaBytes: CLUSTER + 4096 },
];

for (const format of FORMATS)
  for (const { name, written, flushed, fuaBytes = 4096 } of NEW)
    test(`${format}: a FUA write ${name} is found again`, async () => {
      for (let seed = 0; seed < 15; seed++) {
        const simulation = createSimulatedHost({ seed });
        await simulation.run(async () => {
          const guest = await disk(simulation, format);
          if (flushed !== undefined) await guest.write(flushed, Buffer.alloc(4096, 3));
          await guest.flush();
          if (written !== undefined) await guest.write(written, Buffer.alloc(4096, 3));
          await guest.write(DISK / 2, Buffer.alloc(fuaBytes, 5), Flag.fua);
        });
        const after = await contentAfter(simulation, format);
        for (let i = 0; i < fuaBytes; i += 512) assert.equal(after[DISK / 2 + i], 5, `seed ${seed}: ${i}`);
      }
    });

test('a FUA write that cannot be made durable fails, and so does every later flush, reopened or not', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  await simulation.run(async () => {
    const guest = await disk(simulation, 'raw');
    simulation.injectFault({ op: 'flush', errno: 'EIO', once: true });
    await assert.rejects(guest.write(0, Buffer.alloc(4096, 2), Flag.fua), { errno: 'EIO' });
    await assert.rejects(guest.flush(), { errno: 'EIO' });
    await assert.rejects(guest.write(0, Buffer.alloc(4096, 2), Flag.fua), { errno: 'EIO' });
    const { host } = simulation;
    const file = await host.files.open('/tmp/disk', { write: true });
    const { io } = guest.node.child('file').node.instance;
    assert.ok(io instanceof FileIo);
    io.reopened(file);
    await assert.rejects(guest.flush(), { errno: 'EIO' });
    await assert.rejects(guest.write(0, Buffer.alloc(4096, 2), Flag.fua), { errno: 'EIO' });
  });
});
