import assert from 'node:assert/strict';
import { copyFileSync, existsSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { Json, NodeOptions } from '../../src/block/driver.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** A new image A over `file` options of its own. */
async function imageOver(
  bed: EngineBed,
  file: (image: NodeOptions) => NodeOptions,
  more = {},
): Promise<void> {
  const filename = bed.path('A.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
  const options = { driver: 'qcow2', 'node-name': 'A', file: file({ driver: 'file', filename }), ...more };
  await bed.engine.addNode(options);
}

const overlays = (bed: EngineBed): string[] =>
  [...bed.engine.graph.nodes.values()]
    .filter(({ driver }) => driver.name === 'qcow2')
    .map(({ name }) => name);

test('an overlay names the old disk and its format', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const backing = { filename: bed.path('A.qcow2'), format: 'qcow2' };
  assert.deepEqual(bed.engine.graph.node('B').instance.backing, backing);
});

test('an existing overlay is taken as it is', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const filename = bed.path('B.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
  const file = { driver: 'file', filename };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'x', file });
  await bed.execute('human-monitor-command', { 'command-line': 'qemu-io x "write -P 9 0 64k"' });
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  await bed.execute('blockdev-del', { 'node-name': 'x' });
  await bed.execute('blockdev-snapshot-sync', {
    ...{ 'node-name': 'A', 'snapshot-file': filename, 'snapshot-node-name': 'B', mode: 'existing' },
  });
  assert.deepEqual(await bed.layers(), ['B', 'A']);
  assert.equal(bed.engine.graph.node('B').instance.backing, undefined);
  assert.deepEqual(bed.printed.filter((line) => line.startsWith('Formatting')), []); // prettier-ignore
});

test('a snapshot that is refused makes no file', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('spare');
  const overlay = { 'node-name': 'A', 'snapshot-file': bed.path('B.qcow2'), 'snapshot-node-name': '1st' };
  assert.equal(await bed.refusal('blockdev-snapshot-sync', overlay), "Invalid node-name: '1st'");
  assert.equal(existsSync(bed.path('B.qcow2')), false);
  const mirror = { device: 'A', target: 'spare', 'job-id': 'm', sync: 'full' };
  await bed.image('other');
  await bed.execute('blockdev-mirror', mirror);
  const busy = "Node 'A' is busy: block device is in use by block job: mirror";
  assert.equal(await bed.refusal('blockdev-snapshot', { node: 'A', overlay: 'other' }), busy);
  assert.equal(await bed.refusal('blockdev-snapshot-sync', { ...overlay, 'snapshot-node-name': 'B' }), busy);
  await bed.execute('job-cancel', { id: 'm' });
});

test('an overlay that has a backing file already is refused', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const filename = bed.path('B.qcow2');
  await bed.image('base');
  const backing = { backingFile: bed.path('base.qcow2'), backingFormat: 'qcow2' };
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES, ...backing });
  const options = { driver: 'qcow2', 'node-name': 'B', file: { driver: 'file', filename } };
  await bed.engine.addNode({ ...options, backing: 'base' });
  const words = 'The overlay already has a backing image';
  assert.equal(await bed.refusal('blockdev-snapshot', { node: 'A', overlay: 'B' }), words);
  assert.deepEqual(await bed.layers(), ['A']);
});

test('the overlay of a read-only disk is read-only, and a failed transaction leaves the disk so', async (t) => {
  const bed = new EngineBed(t);
  await imageOver(bed, (image) => image, { 'read-only': true });
  const overlay = { 'node-name': 'A', 'snapshot-file': bed.path('B.qcow2'), 'snapshot-node-name': 'B' };
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  await bed.execute('nbd-server-add', { device: 'A' });
  const actions = [
    { type: 'blockdev-snapshot-sync', data: overlay },
    { type: 'abort', data: {} },
  ];
  await bed.refusal('transaction', { actions });
  assert.deepEqual([overlays(bed), bed.engine.graph.node('A').readOnly], [['A'], true]);
  await bed.execute('blockdev-snapshot-sync', overlay);
  assert.deepEqual([overlays(bed), bed.engine.graph.node('B').readOnly], [['A', 'B'], true]);
});

for (const [when, state, words] of [
  ['before the snapshot', 1, 'An IO error has occurred'],
  ['as it turns read-only', 3, 'Input/output error'],
] as const) {
  test(`a disk whose flush fails ${when} stays as it was`, async (t) => {
    const bed = new EngineBed(t);
    await imageOver(bed, (image) => ({
      driver: 'blkdebug',
      image,
      'inject-error': [{ event: 'flush_to_disk', state, iotype: 'flush', once: true }],
      'set-state': [1, 2].map((old) => ({ event: 'flush_to_disk', state: old, new_state: old + 1 })),
    }));
    await bed.device('A');
    const overlay = { 'node-name': 'A', 'snapshot-file': bed.path('B.qcow2'), 'snapshot-node-name': 'B' };
    assert.equal(await bed.refusal('blockdev-snapshot-sync', overlay), words);
    assert.deepEqual([overlays(bed), await bed.layers()], [['A'], ['A']]);
    await bed.guest('write -P 6 64k 64k');
    await bed.execute('blockdev-snapshot-sync', { ...overlay, mode: 'absolute-paths' });
    assert.deepEqual(await bed.layers(), ['B', 'A']);
  });
}

for (const copyMode of ['background', 'write-blocking'] as const)
  for (const clusterBytes of [64 * 1024, 512 * 1024])
    test(`a shallow mirror's target gets its backing chain while the mirror is ready: ${copyMode}, ${clusterBytes}`, async (t) => {
      const bed = new EngineBed(t);
      await bed.chain('A', 'B');
      await bed.guest('write -z 1M 256k');
      await bed.guest('write -P 5 6M 4k');
      copyFileSync(bed.path('A.qcow2'), bed.path('below.qcow2'));
      const filename = bed.path('T.qcow2');
      const options = { 'cluster-size': clusterBytes };
      await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES, options });
      await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'T', file: { driver: 'file', filename } });
      const mirror = { device: 'B', target: 'T', sync: 'top', 'copy-mode': copyMode };
      await bed.execute('blockdev-mirror', { ...mirror, 'job-id': 'm' });
      await bed.event('BLOCK_JOB_READY', 'm');
      for (const change of ['write -P 7 2M 4k', 'write -z 3M 64k', 'discard 5M 128k'])
        await bed.guest(change);
      const file = { driver: 'file', filename: bed.path('below.qcow2') };
      await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'below', file });
      // One that is taken back leaves the mirror as it is.
      const put = { type: 'blockdev-snapshot', data: { node: 'below', overlay: 'T' } };
      await bed.refusal('transaction', { actions: [put, { type: 'abort', data: {} }] });
      assert.equal(bed.engine.graph.node('T').backingNode(), undefined);
      await bed.execute('blockdev-snapshot', { node: 'below', overlay: 'T' });
      assert.equal(bed.engine.graph.node('T').backingNode()?.name, 'below');
      for (const change of ['write -P 8 2560k 4k', 'write -z 3584k 64k']) await bed.guest(change);
      const content = async (): Promise<Buffer> => {
        const disk = bed.engine.devices.get('virtio0')?.backend;
        const bytes = Buffer.alloc(DISK_BYTES);
        await disk?.read(0, bytes);
        return bytes;
      };
      const before = await content();
      await bed.execute('job-complete', { id: 'm' });
      await bed.engine.jobs.find('m')?.concluded;
      assert.deepEqual(await bed.layers(), ['T', 'below']);
      assert.ok(before.equals(await content()));
    });

test('what somebody reads gets no other content put below it', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.image('T');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  await bed.execute('nbd-server-add', { device: 'T' });
  const put = { node: 'B', overlay: 'T' };
  assert.equal(await bed.refusal('blockdev-snapshot', put), 'The overlay is already in use');
});

test('a file is kept, and nothing is printed, where an overlay of that format cannot be', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const file = bed.path('precious');
  writeFileSync(file, 'precious');
  const snapshot = { 'node-name': 'B', 'snapshot-file': file, 'snapshot-node-name': 'C', format: 'raw' };
  const copy = { device: 'B', 'job-id': 'j', target: file, format: 'raw' };
  const printed = bed.printed.length;
  const cases: Array<[string, JsonObject]> = [
    ['blockdev-snapshot-sync', snapshot],
    ['transaction', { actions: [{ type: 'blockdev-snapshot-sync', data: snapshot }] }],
    ['drive-mirror', { ...copy, sync: 'top' }],
    ['drive-backup', { ...copy, sync: 'top' }],
    ['drive-backup', { ...copy, sync: 'none' }],
  ];
  for (const [command, args] of cases) {
    assert.equal(await bed.refusal(command, args), "Backing file not supported for file format 'raw'");
    assert.equal(readFileSync(file, 'utf8'), 'precious', command);
  }
  assert.deepEqual(bed.printed.slice(printed), []);
});

test('a snapshot does not take the place of a file of its chain, though nobody locks them', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.execute('device_del', { id: 'virtio0' });
  await bed.event('DEVICE_DELETED', 'virtio0');
  await bed.execute('blockdev-del', { 'node-name': 'A' });
  const unlocked = (name: string): { [key: string]: Json } => ({
    ...{ driver: 'file', filename: bed.path(`${name}.qcow2`), locking: 'off' },
  });
  const backing = { driver: 'qcow2', file: unlocked('A') };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'B', file: unlocked('B'), backing });
  await bed.device('B');
  symlinkSync(bed.path('A.qcow2'), bed.path('link'));
  const before = readFileSync(bed.path('A.qcow2'));
  for (const name of ['A.qcow2', 'B.qcow2', 'link']) {
    const args = { 'node-name': 'B', 'snapshot-file': bed.path(name), 'snapshot-node-name': 'C' };
    assert.equal(
      await bed.refusal('blockdev-snapshot-sync', args),
      'Error: Trying to create an image with the same filename as the backing file',
    );
  }
  assert.deepEqual(readFileSync(bed.path('A.qcow2')), before);
  await bed.guest('read -P 0x11 0 1M');
});
