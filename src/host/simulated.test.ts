import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { deferred } from '../base/async.js';
import { add } from '../../test/kit/compute-functions.js';
import { hostConformance } from '../../test/kit/host-conformance.js';
import type { Host, HostFile } from './host.js';
import { createSimulatedHost, type Operation, type Simulation } from './simulated.js';
import { tryWriteBuffer, writeBuffer } from './whole-buffers.js';

const SECTOR = 512;

for (const refuseProbability of [0, 0.3, 1]) {
  hostConformance(`simulated host refusing ${refuseProbability} of try*`, async () => {
    const simulation = createSimulatedHost({ seed: 7, refuseProbability });
    return {
      host: simulation.host,
      folder: '/tmp',
      addresses: [{ type: 'inet', host: 'localhost', port: 0 }],
      failCompute: (name) => void simulation.injectFault({ op: 'compute', path: name, errno: 'EIO' }),
      run: (body) => simulation.run(body),
    };
  });
}

function create(host: Host, path: string): Promise<HostFile> {
  return host.files.open(path, { write: true, create: true });
}

async function createDurable(host: Host, path: string): Promise<HostFile> {
  const file = await create(host, path);
  await host.files.syncDirectory('/');
  return file;
}

/** Several writers at once, a flush now and then; the log of what happened. */
async function workload(simulation: Simulation): Promise<string[]> {
  const { host } = simulation;
  const log: string[] = [];
  const file = await createDurable(host, '/disk');
  const writer = async (name: number): Promise<void> => {
    for (let i = 0; i < 10; i++) {
      await writeBuffer(file, host.random.below(20) * SECTOR, host.random.bytes(700));
      if (host.random.below(3) === 0) await file.flush();
      log.push(`${name} ${i} ${host.clock.nowMs()}`);
      await host.clock.sleep(host.random.below(3));
    }
  };
  await Promise.all([writer(1), writer(2), writer(3)]);
  return log;
}

async function trace(seed: number): Promise<{ log: string[]; content: string }> {
  const simulation = createSimulatedHost({ seed });
  const log = await simulation.run(() => workload(simulation));
  simulation.powerLoss();
  return { log, content: simulation.contentOf('/disk')?.toString('hex') ?? '' };
}

test('one seed gives one run, another seed another', async () => {
  const [first, again, other] = [await trace(1), await trace(1), await trace(2)];
  assert.deepEqual(first, again);
  assert.notDeepEqual(first.log, other.log);
});

interface Write {
  sector: number;
  sectors: number;
  flush: boolean;
}

test('after a power loss every sector is old or as some later write made it; flushed ones are there', async () => {
  const write: fc.Arbitrary<Write> = fc.record({
    sector: fc.nat(15),
    sectors: fc.integer({ min: 1, max: 12 }),
    flush: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(fc.nat(), fc.array(write, { maxLength: 12 }), async (seed, writes) => {
      const simulation = createSimulatedHost({ seed });
      // What each sector may hold: the version durable for certain, and all that came after.
      const allowed = Array.from({ length: 32 }, () => [0]);
      await simulation.run(async () => {
        const file = await createDurable(simulation.host, '/disk');
        for (const [index, { sector, sectors, flush }] of writes.entries()) {
          await writeBuffer(file, sector * SECTOR, Buffer.alloc(sectors * SECTOR, index + 1));
          for (let i = sector; i < sector + sectors; i++) allowed[i]?.push(index + 1);
          if (!flush) continue;
          await file.flush();
          for (const versions of allowed) versions.splice(0, versions.length - 1);
        }
      });
      simulation.powerLoss();
      const content = simulation.contentOf('/disk');
      assert.ok(content);
      for (const [sector, versions] of allowed.entries()) {
        const bytes = content.subarray(sector * SECTOR, (sector + 1) * SECTOR);
        assert.ok(new Set(bytes).size <= 1, 'a sector is atomic');
        // Beyond the end that survived there is nothing, which only a sector that was never durable may be.
        assert.ok(versions.includes(bytes[0] ?? 0), `sector ${sector}: ${bytes[0]} of ${versions.join()}`);
      }
    }),
    { numRuns: 150 },
  );
});

test('writes are lost, torn and reordered by some seeds', async () => {
  const outcomes = new Set<string>();
  for (let seed = 0; seed < 60; seed++) {
    const simulation = createSimulatedHost({ seed });
    await simulation.run(async () => {
      const file = await createDurable(simulation.host, '/disk');
      await writeBuffer(file, 0, Buffer.alloc(2 * SECTOR, 1));
      await file.flush();
      await writeBuffer(file, 0, Buffer.alloc(SECTOR, 2));
      await writeBuffer(file, SECTOR, Buffer.alloc(SECTOR, 3));
    });
    simulation.powerLoss();
    const content = simulation.contentOf('/disk') ?? Buffer.alloc(0);
    outcomes.add(`${content[0]},${content[SECTOR]}`);
  }
  assert.deepEqual([...outcomes].sort(), ['1,1', '1,3', '2,1', '2,3']);
});

test('a flush covers what completed before it started, no more', async () => {
  const lost = await countSeeds(async (simulation) => {
    const file = await createDurable(simulation.host, '/disk');
    const flushing = file.flush();
    tryWriteBuffer(file, 0, Buffer.alloc(SECTOR, 1));
    await flushing;
    return (): boolean => simulation.contentOf('/disk')?.[0] !== 1;
  });
  assert.ok(lost > 0, 'the late write survived with every seed');
});

test('dropFlush takes one flush away', async () => {
  const run = (dropped: number): Promise<number> =>
    countSeeds(
      async (simulation) => {
        const file = await createDurable(simulation.host, '/disk');
        await writeBuffer(file, 0, Buffer.alloc(SECTOR, 1));
        await file.flush();
        return (): boolean => simulation.contentOf('/disk')?.[0] !== 1;
      },
      { dropFlush: (path, index) => path === '/disk' && index === dropped },
    );
  assert.equal(await run(1), 0);
  assert.ok((await run(0)) > 0);
});

test('a new file may vanish until its folder is synced', async () => {
  const vanished = (sync: boolean): Promise<number> =>
    countSeeds(async (simulation) => {
      const file = await create(simulation.host, '/new');
      await writeBuffer(file, 0, Buffer.alloc(10, 1));
      await file.flush();
      if (sync) await simulation.host.files.syncDirectory('/');
      return (): boolean => simulation.contentOf('/new') === undefined;
    });
  assert.equal(await vanished(true), 0);
  const without = await vanished(false);
  assert.ok(without > 0 && without < 40);
});

/** For how many of 40 seeds the check that the body answers is true after a power loss. */
async function countSeeds(
  body: (simulation: Simulation) => Promise<() => boolean>,
  options: { dropFlush?: (path: string, index: number) => boolean } = {},
): Promise<number> {
  let count = 0;
  for (let seed = 0; seed < 40; seed++) {
    const simulation = createSimulatedHost({ seed, refuseProbability: 0, ...options });
    const check = await simulation.run(() => body(simulation));
    simulation.powerLoss();
    if (check()) count++;
  }
  return count;
}

/** The seed decides how many operations there are, so all the runs that are cut have the same. */
const CUT_SEED = 1;

test('the power can be cut at any operation, and the machine comes back', async () => {
  const count = await countOperations();
  assert.ok(count > 30);
  for (let at = 0; at < count; at++) {
    const cut = (operation: Operation): void => {
      if (operation.index === at) simulation.powerLoss();
    };
    const simulation: Simulation = createSimulatedHost({ seed: CUT_SEED, onOperation: cut });
    const old = simulation.host;
    await simulation.run(async () => {
      const outcome = workload(simulation).then(
        () => 'finished',
        () => 'failed',
      );
      assert.equal(await Promise.race([outcome, simulation.powerLost.then(() => 'power')]), 'power');
    });
    const host = simulation.reboot();
    await simulation.run(async () => {
      await assert.rejects(old.files.stat('/'), { kind: 'closed' });
      const file = await create(host, '/disk');
      await writeBuffer(file, 0, Buffer.alloc(10));
      await file.flush();
      await file.close();
    });
  }
});

async function countOperations(): Promise<number> {
  const simulation = createSimulatedHost({ seed: CUT_SEED });
  await simulation.run(() => workload(simulation));
  return simulation.operationCount;
}

test('a file without a name is opened again, unless that is to fail', async () => {
  const simulation = createSimulatedHost({ seed: 5 });
  await simulation.run(async () => {
    const { files } = simulation.host;
    const file = await create(simulation.host, '/disk');
    await files.unlink('/disk');
    const heal = simulation.injectFault({ op: 'open', path: '/disk', errno: 'EACCES' });
    const message = "Could not open '/disk': Permission denied";
    await assert.rejects(files.open('/disk', { write: true, again: file }), { message });
    heal();
    const again = await files.open('/disk', { write: true, again: file });
    simulation.powerLoss();
    simulation.reboot();
    await assert.rejects(simulation.host.files.open('/disk', { write: true, again }), { kind: 'closed' });
  });
});

test('faults strike the operation they name; a failed flush stays failed', async () => {
  const simulation = createSimulatedHost({ seed: 3 });
  await simulation.run(async () => {
    const file = await create(simulation.host, '/disk');
    const heal = simulation.injectFault({ op: 'write', path: '/disk', errno: 'ENOSPC', afterCount: 1 });
    await writeBuffer(file, 0, Buffer.alloc(1));
    await assert.rejects(writeBuffer(file, 0, Buffer.alloc(1)), { kind: 'no-space', errno: 'ENOSPC' });
    assert.equal(tryWriteBuffer(file, 0, Buffer.alloc(1)), false);
    heal();
    await writeBuffer(file, 0, Buffer.alloc(1));
    simulation.injectFault({ op: 'flush', errno: 'EIO', once: true });
    await assert.rejects(file.flush(), { errno: 'EIO' });
    await assert.rejects(file.flush(), { errno: 'EIO' });
    simulation.injectFault({ op: 'zeroRange', errno: 'ENOTSUP' });
    await assert.rejects(file.zeroRange(0, 1), { kind: 'unsupported' });
  });
});

test('connections can be cut and silenced', async () => {
  const simulation = createSimulatedHost({ seed: 4 });
  const { net, clock } = simulation.host;
  await simulation.run(async () => {
    const address = { type: 'unix', path: '/s' } as const;
    const ends = [deferred<string | undefined>(), deferred<string | undefined>()];
    let received = 0;
    await net.listen(address, (socket) =>
      socket.start({
        onData: (chunk) => (received += chunk.length),
        onClose: (error) => ends[0]?.resolve(error?.message),
      }),
    );
    const client = await net.connect(address);
    client.start({ onData: () => undefined, onClose: (error) => ends[1]?.resolve(error?.message) });
    simulation.setSilent(true, address);
    client.write(Buffer.from('held'));
    await clock.sleep(1000);
    assert.equal(received, 0);
    simulation.setSilent(false);
    await clock.sleep(1000);
    assert.equal(received, 4);
    simulation.cutConnections(address);
    assert.deepEqual(
      await Promise.all(ends.map((end) => end.promise)),
      Array(2).fill('Connection reset by peer'),
    );
  });
});

test('a wait for nothing is reported', async () => {
  const simulation = createSimulatedHost({ seed: 5, stuckAfterMs: 20 });
  await assert.rejects(
    simulation.run(() => new Promise<void>(() => undefined)),
    { kind: 'timeout' },
  );
});

test('locks of other programs are seen', async () => {
  const simulation = createSimulatedHost({ seed: 6 });
  await simulation.run(async () => {
    const file = await create(simulation.host, '/disk');
    simulation.setForeignLock('/disk', 200, true);
    assert.equal(file.lockByteShared(200), false);
    assert.equal(file.isByteLockedByOther(200), true);
    simulation.setForeignLock('/disk', 200, false);
    assert.equal(file.lockByteShared(200), true);
  });
});

test('the seed decides in which order compute tasks end, and a power loss ends them', async () => {
  const orderOf = async (seed: number): Promise<number[]> => {
    const simulation = createSimulatedHost({ seed });
    const { compute } = simulation.host;
    const order: number[] = [];
    const task = { function: add, input: Buffer.alloc(100), output: Buffer.alloc(100), parameters: 1 };
    await simulation.run(async () => {
      await Promise.all([0, 1, 2, 3, 4, 5, 6, 7].map((i) => compute.run(task).then(() => order.push(i))));
      const lost = compute.run(task);
      simulation.powerLoss();
      await assert.rejects(lost, { kind: 'closed' });
      await assert.rejects(compute.run(task), { kind: 'closed' });
      assert.equal(await simulation.reboot().compute.run(task), 100);
    });
    return order;
  };
  assert.deepEqual(await orderOf(1), await orderOf(1));
  assert.notDeepEqual(await orderOf(1), await orderOf(2));
});

test('a new file gets the number of one that is gone, and another time of birth', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  const { files } = simulation.host;
  await simulation.run(async () => {
    const make = async (path: string): Promise<void> =>
      (await files.open(path, { write: true, create: true })).close();
    await make('/tmp/a');
    const held = await files.open('/tmp/a', { write: false });
    const first = await files.stat('/tmp/a');
    await files.syncDirectory('/tmp');
    await files.link('/tmp/a', '/tmp/b');
    assert.equal((await files.stat('/tmp/b'))?.identity, first?.identity);
    await files.unlink('/tmp/a');
    await files.unlink('/tmp/b');
    await make('/tmp/other');
    assert.notEqual((await files.stat('/tmp/other'))?.identity, first?.identity);
    await held.close();
    await make('/tmp/c');
    const next = await files.stat('/tmp/c');
    assert.equal(next?.identity, first?.identity);
    assert.notEqual(next?.bornMs, first?.bornMs);
  });
});

test('of two files that had the same number a power loss leaves one', async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const simulation = createSimulatedHost({ seed });
    const make = async (path: string): Promise<void> =>
      (await simulation.host.files.open(path, { write: true, create: true })).close();
    await simulation.run(async () => {
      await make('/tmp/a');
      await simulation.host.files.syncDirectory('/tmp');
      await simulation.host.files.unlink('/tmp/a');
      await make('/tmp/b');
      simulation.powerLoss();
      assert.ok((await simulation.reboot().files.list('/tmp')).length <= 1);
    });
  }
});
