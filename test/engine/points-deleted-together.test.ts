import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { readPointFile } from '../../src/monitor/points/point-file.js';
import { createRealHost } from '../../src/host/real.js';
import type { JsonObject } from '../../src/schema/types.js';
import { EngineBed, MiB } from './engine-bed.js';
import { drawn } from '../kit/amount.js';

/** Points next to each other are deleted while a job of somebody else holds all of them back, and then one after the other. */

type Way = 'stream' | 'commit';

/** Into which of the two images beside a point's goes what it is deleted with: the smaller one's content is copied. */
const AMOUNTS: Readonly<Record<string, readonly number[]>> = {
  'stream stream stream': [64, 256, 512, 1024],
  'commit commit commit': [1024, 512, 256, 64],
  'stream commit stream': [64, 512, 256, 1024],
  'commit stream commit': [1024, 64, 512, 256],
  'stream stream commit': [64, 256, 1024, 512],
  'commit commit stream': [512, 256, 64, 1024],
};

/** Points p1 to p5 of a disk; between each and the next so many KiB are written, each a pattern of its own. */
async function diskWith(bed: EngineBed, amounts: readonly number[]): Promise<void> {
  await bed.chain('A');
  for (const [i, amount] of [...amounts, 64].entries()) {
    await bed.execute('x-point-create', { name: `p${i + 1}` });
    await bed.guest(`write -P ${i + 1} ${(i + 1) * MiB} ${amount}k`);
  }
}

async function expectData(bed: EngineBed, amounts: readonly number[], upTo: number): Promise<void> {
  await bed.guest('read -P 0x11 0 1M');
  for (const [i, amount] of [...amounts, 64].entries()) {
    const pattern = i < upTo ? i + 1 : i < 3 ? 0x11 : 0;
    await bed.guest(`read -P ${pattern} ${(i + 1) * MiB} ${amount}k`);
  }
}

/** A job that copies slowly until it is cancelled. */
async function slowJob(bed: EngineBed): Promise<void> {
  const [top = ''] = await bed.layers();
  await bed.image('copy');
  const slow: JsonObject = { 'job-id': 'slow', device: top, target: 'copy', sync: 'full', speed: 1024 };
  await bed.execute('blockdev-backup', slow);
}

async function waysOf(bed: EngineBed): Promise<Array<Way | undefined>> {
  const { content } = await readPointFile(createRealHost(), bed.path('A.points'));
  return content.points.map(({ deleting }) => deleting);
}

async function ends(bed: EngineBed, count: number): Promise<unknown[]> {
  for (;;) {
    const next = deferred();
    const stop = bed.engine.onEvent(() => next.resolve());
    const found = bed.events.filter(({ event }) => event === 'x-point-deleted');
    if (found.length < count) await next.promise;
    stop();
    if (found.length >= count) return found.map(({ data }) => data['error']);
  }
}

function ordersOf(names: readonly string[]): string[][] {
  if (names.length < 2) return [[...names]];
  return names.flatMap((first) =>
    ordersOf(names.filter((one) => one !== first)).map((rest) => [first, ...rest]),
  );
}

for (const [ways, amounts] of Object.entries(AMOUNTS))
  for (const order of drawn(ordersOf(['p2', 'p3', 'p4'])))
    test(`points beside each other are deleted: ${ways}, ${order.join(', ')}`, async (t) => {
      const bed = new EngineBed(t);
      await diskWith(bed, amounts);
      await slowJob(bed);
      for (const name of order) await bed.execute('x-point-delete', { name });
      assert.deepEqual((await waysOf(bed)).slice(1, 4).join(' '), ways);
      await bed.execute('job-cancel', { id: 'slow' });
      assert.deepEqual(await ends(bed, 3), [undefined, undefined, undefined]);
      const { disks } = await bed.engine.execute('x-point-list', { nodes: ['virtio0'] });
      assert.deepEqual(
        (disks[0]?.points ?? []).map(({ name, state }) => `${name} ${state}`),
        ['p1 usable', 'p5 usable'],
      );
      assert.equal((await bed.layers()).length, 3);
      await expectData(bed, amounts, 5);
      await bed.execute('stop');
      await bed.execute('system_reset');
      await bed.execute('x-point-revert', { name: 'p5' });
      await expectData(bed, amounts, 4);
    });

test('what is cheaper when the copying begins is done', async (t) => {
  const bed = new EngineBed(t);
  const amounts = [512, 128, 256];
  await diskWith(bed, amounts);
  await slowJob(bed);
  for (const name of ['p4', 'p2']) await bed.execute('x-point-delete', { name });
  assert.deepEqual(await waysOf(bed), [undefined, 'commit', undefined, 'commit']);
  await bed.guest(`write -P 9 ${5 * MiB} 1M`);
  await bed.execute('job-cancel', { id: 'slow' });
  assert.deepEqual(await ends(bed, 2), [undefined, undefined]);
  const jobs = bed.events.flatMap(({ event, data }) =>
    event === 'BLOCK_JOB_COMPLETED' ? [data['type']] : [],
  );
  assert.deepEqual(jobs, ['stream', 'commit']);
  const { disks } = await bed.engine.execute('x-point-list', { nodes: ['virtio0'] });
  assert.deepEqual(
    (disks[0]?.points ?? []).map(({ name, state }) => `${name} ${state}`),
    ['p1 usable', 'p3 usable'],
  );
  assert.equal((await bed.layers()).length, 3);
  await expectData(bed, amounts, 4);
  await bed.guest(`read -P 9 ${5 * MiB} 1M`);
});
