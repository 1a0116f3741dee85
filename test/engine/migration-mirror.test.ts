import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { MigrationBed, statusOf } from './migration-bed.js';

test('a machine moves away from under a mirror that is ready: what it copies to has all by then', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await source.image('spare');
  const copy = { 'job-id': 'j', device: 'A', target: 'spare', sync: 'full' };
  await source.execute('blockdev-mirror', copy);
  await source.event('BLOCK_JOB_READY', 'j');
  await source.guest('write -P 0x22 1M 2M');
  await bed.move();
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['postmigrate', 'running']);
  const [job] = (await source.execute('query-block-jobs')) as Array<{
    len: number;
    offset: number;
    ready: boolean;
  }>;
  assert.ok(job && job.ready && job.len === job.offset, 'nothing is left to copy');
  assert.equal(source.engine.graph.node('A').activity, 'inactive');
  assert.equal(source.engine.graph.node('spare').activity, 'active');
  await destination.guest('write -P 0x33 0 1M');
  await source.execute('block-job-cancel', { device: 'j' });
  await source.event('BLOCK_JOB_COMPLETED', 'j');
  await destination.guest('read -P 0x33 0 1M');
  for (const read of ['read -P 0x11 0 1M', 'read -P 0x22 1M 2M', 'read -P 0 3M 5M'])
    await source.execute('human-monitor-command', { 'command-line': `qemu-io spare "${read}"` });
  assert.doesNotMatch(source.printed.join('\n'), /failed|rror/);
});

test('a mirror that rests with something left to copy keeps the machine here', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source } = bed;
  await source.image('spare');
  const copy = { 'job-id': 'j', device: 'A', target: 'spare', sync: 'full' };
  await source.execute('blockdev-mirror', copy);
  await source.event('BLOCK_JOB_READY', 'j');
  await source.execute('job-pause', { id: 'j' });
  await source.guest('write -P 0x22 1M 2M');
  await bed.move();
  const info = (await source.execute('query-migrate')) as JsonObject;
  assert.equal(info['error-desc'], "The mirror job 'j' has not ended: its images cannot go");
  assert.equal(await statusOf(source), 'running');
});

test('a mirror that ends with a moment of before, and not with what the guest wrote last, keeps the machine here', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source } = bed;
  await source.image('spare');
  await source.execute('blockdev-mirror', { 'job-id': 'j', device: 'A', target: 'spare', sync: 'full' });
  await source.event('BLOCK_JOB_READY', 'j');
  await source.execute('block-job-set-speed', { device: 'j', speed: 262144 });
  await source.guest('write -P 0x22 1M 1M');
  await source.execute('block-job-cancel', { device: 'j' });
  await source.guest('write -P 0x33 1M 1M');
  await bed.move();
  const info = (await source.execute('query-migrate')) as JsonObject;
  assert.equal(info['error-desc'], "The mirror job 'j' has not ended: its images cannot go");
  assert.equal(await statusOf(source), 'running');
  await source.guest('read -P 0x33 1M 1M');
});
