import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockBackend } from '../../src/block/backend.js';
import { createImage } from '../../src/block/create.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';

/** A mirror that is cut off by power losses, again and again, under a guest that writes, ends with what its source has. */

const KiB = 1024;
const DISK = 4096 * KiB;
const JOURNAL = '/tmp/journal';
const SEEDS = 8;

interface Boot {
  engine: Engine;
  guest: BlockBackend;
}

async function boot({ host }: Simulation, isFirst: boolean): Promise<Boot> {
  const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
  if (isFirst)
    for (const name of ['source', 'target'])
      await createImage(engine.opener, `/tmp/${name}`, 'raw', { sizeBytes: DISK, options: {} });
  for (const name of ['source', 'target'])
    await engine.execute('blockdev-add', {
      driver: 'raw',
      'node-name': name,
      file: { driver: 'file', filename: `/tmp/${name}` },
    });
  const guest = engine.graph.createBackend({
    description: 'a guest',
    perm: Permission.consistentRead | Permission.write,
    shared: ALL_PERMISSIONS,
  });
  const source = engine.graph.node('source');
  await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', source));
  return { engine, guest };
}

/** Writes on and on, until the power goes or `isOver`. */
async function write(guest: BlockBackend, random: SeededRandom, isOver: () => boolean): Promise<void> {
  while (!isOver()) {
    const offset = random.below(DISK / 512) * 512;
    const length = Math.min(DISK - offset, 512 * (1 + random.below(128)));
    const bytes = Buffer.alloc(length, 1 + random.below(255));
    if (!guest.tryWrite(offset, bytes, 0)) await guest.write(offset, bytes, 0);
    if (random.below(200) === 0) await guest.flush();
    await guest.clock.sleep(random.below(12));
  }
}

async function start(engine: Engine, isFirst: boolean, mode: 'background' | 'write-blocking'): Promise<void> {
  if (isFirst) {
    const mirror = {
      'job-id': 'j',
      device: 'source',
      target: 'target',
      sync: 'full',
      'copy-mode': mode,
    } as const;
    await engine.execute('blockdev-mirror', { ...mirror, speed: 4096 * KiB, 'x-persist': JOURNAL });
    return;
  }
  // In this machine nobody else writes.
  const resumed = await engine.execute('x-job-resume', { journal: JOURNAL, 'if-changed': 'ignore' });
  assert.equal(resumed.id, 'j');
}

for (const mode of ['background', 'write-blocking'] as const)
  test(`a persisted mirror (${mode}) goes on after each power loss, and what it ends with is right`, async () => {
    let resumed = 0;
    for (let seed = 1; seed <= SEEDS; seed++) {
      const simulation = createSimulatedHost({ seed });
      const random = new SeededRandom(seed);
      let isFirst = true;
      for (let cut = 0; cut < 4; cut++) {
        const isStarted = { value: false };
        const afterMs = random.below(2500);
        await simulation.run(async () => {
          const { engine, guest } = await boot(simulation, isFirst);
          if (isFirst) {
            await write(guest, random, () => random.below(30) === 0);
            await guest.flush();
          }
          await start(engine, isFirst, mode);
          isStarted.value = true;
          if (!isFirst) resumed++;
          const over = guest.clock.sleep(afterMs);
          let isOver = false;
          void over.then(() => (isOver = true));
          await write(guest, random, () => isOver);
        });
        assert.ok(isStarted.value);
        simulation.powerLoss();
        simulation.reboot();
        isFirst = false;
      }
      await simulation.run(async () => {
        const { engine, guest } = await boot(simulation, false);
        await start(engine, false, mode);
        const job = engine.jobs.find('j');
        assert.ok(job);
        let steps = 20;
        await write(guest, random, () => steps-- === 0);
        job.setSpeed(0);
        while (!job.isReady) await guest.clock.sleep(10);
        await guest.flush();
        await engine.execute('block-job-cancel', { device: 'j' });
        await job.concluded;
        assert.equal(job.error, undefined, `seed ${seed}`);
        const [source, target] = [simulation.contentOf('/tmp/source'), simulation.contentOf('/tmp/target')];
        assert.ok(source && target);
        const at = source.findIndex((byte, i) => byte !== target[i]);
        assert.equal(at, -1, `seed ${seed}: byte ${at}`);
        const [end] = await engine.execute('x-job-history', { journal: JOURNAL });
        assert.equal(end?.state, 'completed');
        await assert.rejects(engine.execute('x-job-resume', { journal: JOURNAL, 'if-changed': 'ignore' }), {
          message: "Job 'j' has completed",
        });
        await engine.close();
      });
    }
    assert.ok(resumed >= SEEDS * 3);
  });
