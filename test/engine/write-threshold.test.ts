import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EngineBed } from './engine-bed.js';

const KiB = 1024;

/** What was told of thresholds, and takes it away. */
function told(bed: EngineBed): unknown[] {
  const found = bed.events.filter(({ event }) => event === 'BLOCK_WRITE_THRESHOLD').map(({ data }) => data);
  bed.events.length = 0;
  return found;
}

test('a write beyond the threshold is told, once', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  const set = (bytes: number): Promise<unknown> =>
    bed.execute('block-set-write-threshold', { 'node-name': 'A', 'write-threshold': bytes });
  const shown = async (): Promise<unknown> => {
    const nodes = (await bed.execute('query-named-block-nodes', { flat: true })) as Array<{
      [key: string]: unknown;
    }>;
    return nodes.find((node) => node['node-name'] === 'A')?.['write_threshold'];
  };
  await set(64 * KiB);
  assert.equal(await shown(), 64 * KiB);
  await bed.guest('write 0 64k');
  assert.deepEqual(told(bed), []);
  await bed.guest('write 60k 8k');
  const data = { 'node-name': 'A', 'amount-exceeded': 4 * KiB, 'write-threshold': 64 * KiB };
  assert.deepEqual(told(bed), [data]);
  assert.equal(await shown(), 0);
  await bed.guest('write 128k 64k');
  assert.deepEqual(told(bed), []);
  await set(64 * KiB);
  await bed.guest('discard 128k 64k');
  assert.deepEqual(told(bed), []);
  await bed.guest('write -z 64k 64k');
  assert.deepEqual(told(bed), [{ ...data, 'amount-exceeded': 64 * KiB }]);
  await set(64 * KiB);
  await set(0);
  await bed.guest('write 64k 64k');
  assert.deepEqual(told(bed), []);
  assert.equal(
    await bed.refusal('block-set-write-threshold', { 'node-name': 'none', 'write-threshold': 1 }),
    "Device 'none' not found",
  );
});

test('a write that fails for want of space is told before', async (t) => {
  const bed = new EngineBed(t);
  const full = { event: 'none', iotype: 'write', errno: 28 };
  const image = { driver: 'null-co', size: 1024 * KiB };
  await bed.engine.addNode({ driver: 'blkdebug', 'node-name': 'full', image, 'inject-error': [full] });
  await bed.execute('block-set-write-threshold', { 'node-name': 'full', 'write-threshold': 4 * KiB });
  await bed.execute('human-monitor-command', { 'command-line': 'qemu-io full "write 0 8k"' });
  assert.match(bed.printed.join('\n'), /No space left on device/);
  assert.equal(told(bed).length, 1);
});
