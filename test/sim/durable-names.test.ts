import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.js';
import { allDrivers } from '../../src/drivers/index.js';
import type { Host } from '../../src/host/host.js';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { JournalFile } from '../../src/jobs/persisted/journal-file.js';
import { Engine } from '../../src/monitor/engine.js';
import { readPointFile, writePointFile } from '../../src/monitor/points/point-file.js';
import { signpost } from '../../src/monitor/points/signpost.js';
import { StateStore } from '../../src/monitor/state/store.js';
import { KillableHost } from '../kit/killable-host.js';

/**
 * Files of our own are made durable with their names. Whoever makes one may be killed before that: who uses the file next
 * sees to it, else a power loss takes away all that was written since.
 */

const KiB = 1024;
const POINTS = { path: '/tmp/a.points', content: { disk: 'a', active: 'a.qcow2', images: [], points: [] } };
const SHAPE = { diskBytes: 1024 * KiB, granularityBytes: 64 * KiB };

/** By the file's name: who makes it, and who uses it next. */
const FILES: Readonly<
  Record<string, { make: (host: Host) => Promise<unknown>; use: (host: Host) => Promise<unknown> }>
> = {
  '/tmp/a.points': {
    make: (host) => writePointFile(host, { ...POINTS, sequence: 0 }),
    use: async (host) => writePointFile(host, await readPointFile(host, POINTS.path)),
  },
  '/tmp/other/a.points': {
    make: (host) => signpost(host, POINTS, '/tmp/other'),
    use: (host) => signpost(host, POINTS, '/tmp/other'),
  },
  '/tmp/job': {
    make: (host) =>
      JournalFile.create(host, '/tmp/job', {}, new DirtyBitmap(SHAPE.diskBytes, SHAPE.granularityBytes)),
    use: async (host) => {
      const { journal } = await JournalFile.open(host, '/tmp/job', () => SHAPE);
      await journal.writeHead({ status: 'goes on' });
      await journal.flush();
      await journal.close();
    },
  },
  '/tmp/state/state': {
    make: (host) => StateStore.open(host, '/tmp/state'),
    use: async (host) => (await StateStore.open(host, '/tmp/state')).write('{}'),
  },
  '/tmp/changes': { make: ensureBitmap, use: ensureBitmap },
};

async function ensureBitmap(host: Host): Promise<void> {
  const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
  await engine.addNode({
    driver: 'raw',
    'node-name': 'disk',
    file: { driver: 'file', filename: '/tmp/disk' },
  });
  await engine.execute('x-bitmap-ensure', { name: 'b', disks: [{ node: 'disk', file: '/tmp/changes' }] });
  await engine.close();
}

/** A process that comes as far as the sync of a folder. */
function stuckAtSync(host: Host): { process: KillableHost; stuck: Promise<void> } {
  const stuck = deferred();
  const files = new Proxy(host.files, {
    get: (target, name) => {
      if (name === 'syncDirectory')
        return () => {
          stuck.resolve();
          return new Promise(() => undefined);
        };
      const member: unknown = Reflect.get(target, name);
      return typeof member === 'function' ? (member.bind(target) as unknown) : member;
    },
  });
  return { process: new KillableHost({ ...host, files }), stuck: stuck.promise };
}

for (const [path, { make, use }] of Object.entries(FILES))
  test(`${path}: its maker is killed, it is used, and a power loss leaves it`, async () => {
    for (let seed = 1; seed <= 10; seed++) {
      const simulation = createSimulatedHost({ seed });
      const { host } = simulation;
      await simulation.run(async () => {
        await host.files.mkdir('/tmp/other');
        await (await host.files.open('/tmp/disk', { write: true, create: true })).close();
        for (const folder of ['/', '/tmp']) await host.files.syncDirectory(folder);
        const { process, stuck } = stuckAtSync(host);
        void make(process.host).catch(() => undefined);
        await stuck;
        await process.kill();
        await use(host);
        simulation.powerLoss();
        simulation.reboot();
        assert.ok(simulation.paths().includes(path), `seed ${seed}`);
      });
    }
  });
