import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { handOn, withDescriptors } from '../kit/passed-jobs.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

interface Use {
  'compressed-clusters': number;
  'data-clusters': number;
}

/** A backup into a qcow2 image whose file fails or is slow as the rules say, while the guest writes everywhere. */
async function backUp(
  bed: EngineBed,
  rules: JsonObject,
  { isFleecing = true, isHandedOn = false } = {},
): Promise<{ stops: number }> {
  await bed.image('A');
  await bed.device('A');
  for (let mib = 0; mib < 6; mib++) await bed.guest(`write -P ${mib + 1} ${mib * MiB} ${MiB - 100_000}`);
  await bed.image('T');
  await bed.execute('blockdev-del', { 'node-name': 'T' });
  await bed.execute('blockdev-add', {
    driver: 'qcow2',
    'node-name': 'T',
    file: { driver: 'blkdebug', image: { driver: 'file', filename: bed.path('T.qcow2') }, ...rules },
  });
  await bed.execute('blockdev-backup', {
    ...{ 'job-id': 'j', device: 'A', target: 'T', sync: 'full', compress: true },
    ...(isFleecing && { 'x-fleecing': { folder: bed.folder, 'max-bytes': DISK_BYTES } }),
    'on-target-error': 'stop',
    ...{ 'x-perf': { 'max-workers': 2, 'max-chunk': MiB / 4 }, 'auto-dismiss': false },
  });
  // Else the guest waits until the job goes on.
  for (let mib = 5; mib >= 0 && isFleecing; mib--) await bed.guest(`write -P ${mib + 100} ${mib * MiB} 1M`);
  let stops = 0;
  for (let status = ''; status !== 'concluded';) {
    const [job] = (await bed.execute('query-jobs')) as unknown as Array<{ status: string; error?: string }>;
    assert.ok(job);
    ({ status } = job);
    assert.equal(job.error, undefined);
    const [running] = (await bed.execute('query-block-jobs')) as unknown as Array<{ 'io-status': string }>;
    if (running && running['io-status'] !== 'ok') {
      stops++;
      assert.ok(stops < 100, 'it goes on');
      if (isHandedOn) await handOn(bed.engine.jobs, 'j');
      await bed.execute('block-job-resume', { device: 'j' });
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await bed.execute('job-dismiss', { id: 'j' });
  return { stops };
}

async function isThePointInTime(bed: EngineBed): Promise<void> {
  await bed.execute('blockdev-add', { driver: 'raw', 'node-name': 'look', file: 'T' });
  await bed.engine.addDevice('look', { id: 'looker' });
  for (let mib = 0; mib < 6; mib++) {
    const reads = [
      `read -P ${mib + 1} ${mib * MiB} ${MiB - 100_000}`,
      `read -P 0 ${(mib + 1) * MiB - 100_000} 100000`,
    ];
    for (const read of reads) {
      const before = bed.printed.length;
      await bed.execute('human-monitor-command', { 'command-line': `qemu-io -d looker "${read}"` });
      assert.doesNotMatch(bed.printed.slice(before).join('\n'), /failed|rror/, read);
    }
  }
  const use = (await bed.execute('x-query-file-use', { node: 'T' })) as unknown as Use;
  assert.ok(use['compressed-clusters'] >= 80, JSON.stringify(use));
}

test('what a fleecing backup brings to its target is compressed, and is the point in time', async (t) => {
  const bed = new EngineBed(t);
  await backUp(bed, { 'x-delay': [{ iotype: 'write', 'delay-ms': 20 }] });
  await isThePointInTime(bed);
});

for (const [how, more] of Object.entries({
  'from a buffer': {},
  'at once': { isFleecing: false },
  'from a buffer, by one process after another': { isHandedOn: true },
  'at once, by one process after another': { isFleecing: false, isHandedOn: true },
}))
  test(`a target that fails for a while gets all of it compressed in the end, ${how}`, async (t) => {
    const bed = new EngineBed(t, { host: withDescriptors(createRealHost()) });
    const failures = [7, 13, 14, 22].map((state) => ({
      ...{ event: 'write_compressed', state, errno: 5, once: true, immediately: false },
    }));
    const states = Array.from({ length: 30 }, (_, state) => ({
      ...{ event: 'write_compressed', state: state + 1, new_state: state + 2 },
    }));
    const { stops } = await backUp(bed, { 'inject-error': failures, 'set-state': states }, more);
    assert.ok(stops > 0);
    await isThePointInTime(bed);
  });
