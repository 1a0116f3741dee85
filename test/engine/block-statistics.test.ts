import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { EngineBed } from './engine-bed.js';

type Entry = { stats: JsonObject; parent?: { stats: JsonObject; 'driver-specific'?: JsonObject } };

async function look(bed: EngineBed): Promise<Entry> {
  const [disk] = (await bed.execute('query-blockstats')) as unknown as Entry[];
  assert.ok(disk);
  return disk;
}

async function line(bed: EngineBed, text: string): Promise<unknown> {
  return bed.execute('human-monitor-command', { 'command-line': text });
}

test('how long a disk has rested is told once it was used, whatever was asked of it', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  assert.equal((await look(bed)).stats['idle_time_ns'], undefined);
  for (const command of ['read 0 4k', 'write 0 4k', 'flush', 'discard 0 4k']) {
    await bed.guest(command);
    const before = Number((await look(bed)).stats['idle_time_ns']);
    assert.ok(before >= 0, command);
    assert.ok(Number((await look(bed)).stats['idle_time_ns']) > before, command);
  }
  const { stats } = await look(bed);
  for (const prefix of ['rd', 'wr', 'flush', 'unmap']) {
    assert.equal(stats[`${prefix}_operations`], 1, prefix);
    assert.ok(Number(stats[`${prefix}_total_time_ns`]) > 0, prefix);
  }
  const nodes = (await bed.execute('query-blockstats', { 'query-nodes': true })) as unknown as Entry[];
  assert.ok(nodes.every((node) => !('idle_time_ns' in node.stats)));
});

test('what is invalid or fails is an access where it is to count as one', async (t) => {
  for (const counts of [true, false]) {
    const bed = new EngineBed(t);
    await bed.image('A');
    const flag = counts ? 'on' : 'off';
    await bed.execute('device_add', {
      ...{ driver: 'virtio-blk-pci', drive: 'A', id: 'd' },
      ...{ 'account-invalid': flag, 'account-failed': flag },
    });
    await line(bed, 'qemu-io -d d "aio_read -i 0 512"');
    await line(bed, 'qemu-io -d d "aio_write -i 0 512"');
    const { stats } = await look(bed);
    assert.equal(stats['account_invalid'], counts);
    assert.equal(stats['account_failed'], counts);
    assert.equal(stats['invalid_rd_operations'], 1);
    assert.equal(stats['invalid_wr_operations'], 1);
    assert.equal(stats['failed_rd_operations'], 0);
    assert.equal('idle_time_ns' in stats, counts);
  }
});

test('a file tells what has become of discards', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A', { discard: 'unmap' });
  await bed.device('A');
  await bed.guest('write 0 1M');
  await bed.guest('discard 0 1M');
  await bed.guest('flush');
  const { parent } = await look(bed);
  const specific = parent?.['driver-specific'];
  assert.equal(specific?.['driver'], 'file');
  assert.equal(specific['discard-nb-failed'], 0);
  assert.ok(Number(specific['discard-nb-ok']) >= 0);
});
