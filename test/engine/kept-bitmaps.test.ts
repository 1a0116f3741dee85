import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import type { JsonObject } from '../../src/schema/types.js';
import { FaultyHost, type HostFault } from '../kit/faulty-host.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const CLUSTER = 65536;

/** What query-named-block-nodes tells of a node's bitmaps, by name. */
async function bitmapsOf(bed: EngineBed, node: string): Promise<Map<string, JsonObject>> {
  const nodes = (await bed.execute('query-named-block-nodes', { flat: true })) as JsonObject[];
  const found = nodes.find((one) => one['node-name'] === node)?.['dirty-bitmaps'] as JsonObject[] | undefined;
  return new Map((found ?? []).map((bitmap) => [bitmap['name'] as string, bitmap]));
}

async function add(bed: EngineBed, node: string, name: string, more: JsonObject = {}): Promise<void> {
  await bed.execute('block-dirty-bitmap-add', { node, name, persistent: true, ...more });
}

/** Opens the image of a node again. */
async function again(bed: EngineBed, node: string, more: JsonObject = {}): Promise<void> {
  const file = { driver: 'file', filename: bed.path(`${node}.qcow2`) };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': node, file, ...more });
}

test('a persistent bitmap is there again when its image is opened again, as it was', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await add(bed, 'A', 'on');
  await add(bed, 'A', 'off', { disabled: true, granularity: 512 });
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'passing' });
  await bed.execute('blockdev-del', { 'node-name': 'A' });
  await again(bed, 'A');
  const common = { persistent: true, busy: false, count: 0 };
  assert.deepEqual(
    [...(await bitmapsOf(bed, 'A')).values()],
    [
      { name: 'on', granularity: CLUSTER, recording: true, ...common },
      { name: 'off', granularity: 512, recording: false, ...common },
    ],
  );
});

test('only images that can keep bitmaps get them', async (t) => {
  const bed = new EngineBed(t);
  await bed.execute('blockdev-add', { driver: 'null-co', 'node-name': 'N', size: 1024 });
  const refusal = (args: JsonObject): Promise<string> =>
    bed.refusal('block-dirty-bitmap-add', { persistent: true, ...args });
  assert.equal(
    await refusal({ node: 'N', name: 'a' }),
    "Can't store persistent bitmaps to N: Operation not supported",
  );
  await bed.image('A');
  const long = 'x'.repeat(1024);
  assert.equal(
    await refusal({ node: 'A', name: long }),
    `Can't make bitmap '${long}' persistent in 'A': Name length exceeds maximum (1023 characters)`,
  );
});

test('the layer below a snapshot keeps its bitmaps, unchanged until something is committed into it', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await add(bed, 'A', 'bits');
  await bed.guest('write 0 64k');
  await bed.snapshot('A', 'B');
  const readOnly = "Bitmap 'bits' is readonly and cannot be modified";
  for (const verb of ['clear', 'remove'])
    assert.equal(await bed.refusal(`block-dirty-bitmap-${verb}`, { node: 'A', name: 'bits' }), readOnly);
  await bed.guest('write 1M 64k');
  const count = async (): Promise<unknown> => (await bitmapsOf(bed, 'A')).get('bits')?.['count'];
  assert.equal(await count(), CLUSTER);
  await bed.execute('block-commit', { 'job-id': 'j', device: 'B', 'auto-dismiss': true });
  await bed.event('BLOCK_JOB_READY', 'j');
  await bed.execute('block-job-complete', { device: 'j' });
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  assert.equal(await count(), 2 * CLUSTER);
  await bed.execute('block-dirty-bitmap-clear', { node: 'A', name: 'bits' });
});

test('a backing image is opened with its bitmaps, which nobody changes', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await add(bed, 'A', 'bits');
  await bed.guest('write 0 64k');
  await bed.snapshot('A', 'B');
  const other = new EngineBed(t);
  await other.execute('blockdev-add', {
    ...{ driver: 'qcow2', 'node-name': 'B', 'read-only': true, 'force-share': true },
    file: { driver: 'file', filename: bed.path('B.qcow2') },
  });
  const nodes = (await other.execute('query-named-block-nodes', { flat: true })) as JsonObject[];
  const told = nodes.flatMap((node) => (node['dirty-bitmaps'] ?? []) as JsonObject[]);
  assert.deepEqual(
    told.map(({ name, count }) => [name, count]),
    [['bits', CLUSTER]],
  );
});

test('a transaction that fails leaves persistent bitmaps as they were', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await add(bed, 'A', 'a');
  await bed.execute('blockdev-del', { 'node-name': 'A' });
  await again(bed, 'A');
  const data = { node: 'A', name: 'a' };
  const actions = [
    { type: 'block-dirty-bitmap-remove', data },
    { type: 'block-dirty-bitmap-add', data: { node: 'A', name: 'b', persistent: true } },
    { type: 'abort', data: {} },
  ];
  assert.equal(await bed.refusal('transaction', { actions }), 'Transaction aborted using Abort action');
  await bed.execute('blockdev-del', { 'node-name': 'A' });
  await again(bed, 'A', { 'read-only': true });
  assert.deepEqual([...(await bitmapsOf(bed, 'A')).keys()], ['a']);
});

test('with a snapshot, in one transaction, bitmaps move on to the overlay', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await add(bed, 'A', 'bits');
  await bed.guest('write 0 64k');
  const overlay = { 'snapshot-file': bed.path('B.qcow2'), 'snapshot-node-name': 'B', format: 'qcow2' };
  const actions = [
    { type: 'blockdev-snapshot-sync', data: { 'node-name': 'A', ...overlay } },
    { type: 'block-dirty-bitmap-add', data: { node: 'B', name: 'bits', persistent: true } },
    {
      type: 'block-dirty-bitmap-merge',
      data: { node: 'B', target: 'bits', bitmaps: [{ node: 'A', name: 'bits' }] },
    },
    { type: 'block-dirty-bitmap-remove', data: { node: 'A', name: 'bits' } },
  ];
  await bed.execute('transaction', { actions });
  assert.equal((await bitmapsOf(bed, 'A')).size, 0);
  assert.equal((await bitmapsOf(bed, 'B')).get('bits')?.['count'], CLUSTER);
  assert.equal(bed.engine.graph.node('A').readOnly, true);
});

test('an image is reopened with its bitmaps: read-only, writable, with another cache', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await add(bed, 'A', 'bits');
  const reopen = (readOnly: boolean, more: JsonObject = {}): Promise<unknown> => {
    const file = { driver: 'file', filename: bed.path('A.qcow2'), 'read-only': readOnly };
    const node = { driver: 'qcow2', 'node-name': 'A', 'read-only': readOnly, file, ...more };
    return bed.execute('blockdev-reopen', { options: [node] });
  };
  const clear = { node: 'A', name: 'bits' };
  for (const more of [{}, { 'l2-cache-size': 262144 }]) {
    await reopen(true, more);
    assert.match(await bed.refusal('block-dirty-bitmap-clear', clear), /is readonly/);
    await reopen(false, more);
    await bed.execute('block-dirty-bitmap-clear', clear);
    assert.equal((await bitmapsOf(bed, 'A')).size, 1);
  }
});

test('an image that is given away takes its bitmaps along, and comes back with them', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await add(bed, 'A', 'bits');
  await bed.execute('blockdev-set-active', { active: false });
  assert.equal((await bitmapsOf(bed, 'A')).size, 0);
  await bed.execute('blockdev-set-active', { active: true });
  assert.equal((await bitmapsOf(bed, 'A')).size, 1);
  await bed.execute('block-dirty-bitmap-clear', { node: 'A', name: 'bits' });
});

for (const [what, change] of [
  [
    'gets bits of another',
    (bed) => bed.execute('block-dirty-bitmap-merge', { node: 'A', target: 'bits', bitmaps: ['more'] }),
  ],
  ['is enabled', (bed) => bed.execute('block-dirty-bitmap-enable', { node: 'A', name: 'bits' })],
  [
    'is enabled in a transaction',
    (bed) =>
      bed.execute('transaction', {
        actions: [{ type: 'block-dirty-bitmap-enable', data: { node: 'A', name: 'bits' } }],
      }),
  ],
] as ReadonlyArray<[string, (bed: EngineBed) => Promise<unknown>]>)
  test(`a kept bitmap that ${what} is not believed as it was when the program is killed`, async (t) => {
    const bed = new EngineBed(t);
    await bed.image('A');
    await add(bed, 'A', 'bits', { disabled: true });
    await bed.execute('blockdev-del', { 'node-name': 'A' });
    await again(bed, 'A', { 'read-only': true });
    await bed.execute('blockdev-reopen', {
      options: [
        { driver: 'qcow2', 'node-name': 'A', file: { driver: 'file', filename: bed.path('A.qcow2') } },
      ],
    });
    await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'more' });
    await change(bed);
    copyFileSync(bed.path('A.qcow2'), bed.path('K.qcow2'));
    await again(bed, 'K');
    assert.equal((await bitmapsOf(bed, 'K')).get('bits')?.['inconsistent'], true);
  });

test('a bitmap that could not be taken out of its image is as it was, and can be removed afterwards', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await add(bed, 'A', 'bits');
  await bed.execute('blockdev-del', { 'node-name': 'A' });
  const image = { driver: 'file', filename: bed.path('A.qcow2') };
  // The first flush says that the bitmap is in use.
  const event = 'flush_to_disk';
  const file = {
    ...{ driver: 'blkdebug', image, 'set-state': [{ event, state: 1, new_state: 2 }] },
    'inject-error': [{ event, state: 2, iotype: 'flush', errno: 5, once: true }],
  };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'A', file });
  const bits = { node: 'A', name: 'bits' };
  assert.match(await bed.refusal('block-dirty-bitmap-remove', bits), /Input\/output error/);
  assert.equal((await bitmapsOf(bed, 'A')).get('bits')?.['busy'], false);
  await bed.execute('block-dirty-bitmap-remove', bits);
  await bed.execute('blockdev-del', { 'node-name': 'A' });
  await again(bed, 'A');
  assert.equal((await bitmapsOf(bed, 'A')).size, 0);
});

test('an image that is given away while a backup has its bitmap keeps what was recorded meanwhile, too', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('T');
  await bed.device('A');
  await add(bed, 'A', 'bits');
  await bed.guest('write 0 1M');
  await bed.execute('blockdev-backup', {
    ...{ 'job-id': 'b', device: 'A', target: 'T', sync: 'incremental', bitmap: 'bits', speed: 1 },
  });
  await bed.guest('write 4M 64k');
  await bed.execute('device_del', { id: 'virtio0' });
  const file = { driver: 'file', filename: bed.path('A.qcow2'), 'read-only': true };
  const options = [{ driver: 'qcow2', 'node-name': 'A', 'read-only': true, file }];
  await bed.execute('blockdev-reopen', { options });
  copyFileSync(bed.path('A.qcow2'), bed.path('K.qcow2'));
  await again(bed, 'K');
  assert.equal((await bitmapsOf(bed, 'K')).get('bits')?.['count'], MiB + CLUSTER);
});

test('a bitmap is as long as its disk, though making that smaller failed halfway', async (t) => {
  const faulty = new FaultyHost(createRealHost());
  const bed = new EngineBed(t, { host: faulty.host });
  await bed.image('A');
  await bed.device('A');
  await add(bed, 'A', 'bits');
  await bed.guest('write 0 64k');
  await bed.guest('write 4M 2M');
  const node = bed.engine.graph.node('A');
  const fault: HostFault = {
    ...{ op: 'write', file: 'A.qcow2', errno: 'EIO' },
    when: () => node.lengthBytes < DISK_BYTES,
  };
  faulty.faults.add(fault);
  assert.match(await bed.refusal('block_resize', { 'node-name': 'A', size: MiB }), /Input\/output error/);
  assert.equal(node.lengthBytes, MiB);
  assert.deepEqual([node.findBitmap('bits')?.sizeBytes, node.findBitmap('bits')?.dirtyBytes], [MiB, CLUSTER]);
  faulty.faults.delete(fault);
  await bed.engine.close();
  const fresh = new EngineBed(t);
  const file = { driver: 'file', filename: bed.path('A.qcow2') };
  await fresh.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'A', file });
  assert.equal((await bitmapsOf(fresh, 'A')).get('bits')?.['count'], CLUSTER);
});
