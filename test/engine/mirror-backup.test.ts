import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { Node } from '../../src/block/node.js';
import { createRealHost } from '../../src/host/real.js';
import type { JsonObject } from '../../src/schema/types.js';
import { FaultyHost } from '../kit/faulty-host.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

function nodeOf(bed: EngineBed, filename: string): Node {
  const node = [...bed.engine.graph.nodes.values()].find(
    (other) => other.filename.includes(bed.path(filename)) && other.driver.name === 'qcow2',
  );
  assert.ok(node, filename);
  return node;
}

async function byteAt(node: Node, offset: number): Promise<number | undefined> {
  const buffer = Buffer.alloc(512);
  await node.io.readBuffer(offset, buffer);
  return buffer[0];
}

async function pivot(bed: EngineBed): Promise<void> {
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('job-complete', { id: 'm' });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'm'))['error'], undefined);
}

test('a backup without a copy shows the disk as it was at its start', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const target = bed.path('T.qcow2');
  await bed.execute('drive-backup', { device: 'B', 'job-id': 'b', target, sync: 'none' });
  await bed.guest('write -P 0x77 0 3M');
  await bed.guest('write -z 3M 64k');
  const held = nodeOf(bed, 'T.qcow2');
  assert.deepEqual(
    await Promise.all([0, MiB, 2 * MiB, 3 * MiB, 4 * MiB].map((offset) => byteAt(held, offset))),
    [0x11, 0x21, 0x11, 0x11, 0],
  );
  await bed.execute('block-job-cancel', { device: 'b' });
  await bed.event('BLOCK_JOB_CANCELLED', 'b');
  await bed.guest('read -P 0x77 0 3M');
});

test('a backup without a copy into an image that was there shows the disk through it', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const target = bed.path('T.qcow2');
  await createImage(bed.engine.opener, target, 'qcow2', { sizeBytes: DISK_BYTES });
  const backup = { device: 'B', 'job-id': 'b', sync: 'none', mode: 'existing' };
  await bed.execute('drive-backup', { ...backup, target });
  await bed.guest('write -P 0x77 0 1M');
  const held = nodeOf(bed, 'T.qcow2');
  assert.deepEqual(await Promise.all([0, MiB, 4 * MiB].map((at) => byteAt(held, at))), [0x11, 0x21, 0]);
  await bed.execute('block-job-cancel', { device: 'b' });
  await bed.event('BLOCK_JOB_CANCELLED', 'b');
  const raw = bed.path('T.raw');
  await createImage(bed.engine.opener, raw, 'raw', { sizeBytes: DISK_BYTES });
  assert.match(
    await bed.refusal('drive-backup', { ...backup, target: raw, format: 'raw' }),
    /^Driver 'raw' of node '#block\d+' does not support backing files$/,
  );
});

test('a mirror of what is written from now on goes above the disk', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const target = bed.path('T.qcow2');
  const mirror = { device: 'B', 'job-id': 'm', target, sync: 'none', 'node-name': 'T' };
  await bed.execute('drive-mirror', mirror);
  await bed.guest('write -P 0x77 0 64k');
  await pivot(bed);
  assert.deepEqual(await bed.layers(), ['T', 'B', 'A']);
  await bed.guest('read -P 0x77 0 64k');
  await bed.guest('read -P 0x21 1M 1M');
});

test('a mirror of all into a new file copies what there is, of whatever format the file is', async (t) => {
  for (const format of ['raw', 'qcow2']) {
    const bed = new EngineBed(t);
    await bed.image('A');
    await bed.device('A');
    await bed.guest('write -P 0x11 0 1M');
    const target = bed.path(`T.${format}`);
    await bed.execute('drive-mirror', { device: 'A', 'job-id': 'm', target, format, sync: 'full' });
    const { len, offset } = await bed.event('BLOCK_JOB_READY', 'm');
    assert.deepEqual({ len, offset }, { len: MiB, offset: MiB }, format);
    await bed.execute('block-job-cancel', { device: 'm', force: true });
    await bed.event('BLOCK_JOB_CANCELLED', 'm');
  }
});

test('a mirror into an image that was there opens the backing file that it names', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const target = bed.path('T.qcow2');
  const backing = { backingFile: 'A.qcow2', backingFormat: 'qcow2' };
  await createImage(bed.engine.opener, target, 'qcow2', { sizeBytes: DISK_BYTES, ...backing });
  const mirror = { device: 'B', 'job-id': 'm', target, sync: 'top', mode: 'existing', 'node-name': 'T' };
  await bed.execute('drive-mirror', mirror);
  await pivot(bed);
  const below = bed.engine.graph.node('T').backingNode();
  assert.deepEqual([below?.filename, below?.readOnly], [bed.path('A.qcow2'), true]);
  await bed.guest('read -P 0x11 0 1M');
  await bed.guest('read -P 0x21 1M 1M');
});

for (const [readOnly, what] of [
  [true, 'nobody may write to'],
  [false, 'somebody may write to'],
] as const)
  test(`a target takes over as a disk that ${what} is: by every way`, async (t) => {
    for (const way of ['drive-mirror', 'drive-mirror, existing', 'blockdev-mirror', 'block-commit']) {
      const bed = new EngineBed(t);
      await bed.image('A', { 'read-only': true });
      await bed.image('B', { 'read-only': readOnly, backing: 'A' });
      await bed.image('M');
      await bed.device('B');
      const [execute = '', ...more] = way.split(', ');
      const target = bed.path(more.length > 0 ? 'M.qcow2' : 'N.qcow2');
      const named = { target, 'node-name': 'N', ...(more.length > 0 && { mode: 'existing' }) };
      if (more.length > 0) await bed.execute('blockdev-del', { 'node-name': 'M' });
      await bed.execute(execute, {
        ...{ 'job-id': 'j', device: 'B' },
        ...(execute === 'drive-mirror' && { ...named, sync: 'full' }),
        ...(execute === 'blockdev-mirror' && { target: 'M', sync: 'full' }),
        ...(execute === 'block-commit' && { 'base-node': 'A' }),
      });
      await bed.event('BLOCK_JOB_READY', 'j');
      await bed.execute('job-complete', { id: 'j' });
      await bed.event('BLOCK_JOB_COMPLETED', 'j');
      const [top = ''] = await bed.layers();
      assert.notEqual(top, 'B', way);
      const { readOnly: isNow, children } = bed.engine.graph.node(top);
      assert.deepEqual([isNow, children.get('file')?.node.readOnly], [readOnly, readOnly], way);
    }
  });

test('the top of a disk without a backing file is everything', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const copy = { device: 'A', target: bed.path('T.qcow2'), sync: 'top' };
  await bed.execute('drive-mirror', { ...copy, 'job-id': 'm', 'node-name': 'T' });
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('job-cancel', { id: 'm' });
  await bed.event('BLOCK_JOB_CANCELLED', 'm');
  await bed.execute('drive-backup', { ...copy, 'job-id': 'b', target: bed.path('U.qcow2') });
  await bed.event('BLOCK_JOB_COMPLETED', 'b');
  for (const name of ['T', 'U']) {
    const file = { driver: 'file', filename: bed.path(`${name}.qcow2`) };
    const node = await bed.engine.addNode({
      driver: 'qcow2',
      'node-name': `${name}2`,
      file,
      'read-only': true,
    });
    assert.equal(node.instance.backing, undefined);
    assert.deepEqual([await byteAt(node, 0), await byteAt(node, 4 * MiB)], [0x11, 0]);
  }
});

test('a mirror may replace what a filter shows', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.engine.addNode({ driver: 'blkdebug', 'node-name': 'f', image: 'A' });
  await bed.device('f');
  await bed.guest('write -P 3 0 64k');
  const mirror = { device: 'f', 'job-id': 'm', target: bed.path('T.qcow2'), sync: 'full', replaces: 'A' };
  const named = 'a node-name must be provided when replacing a named node of the graph';
  assert.equal(await bed.refusal('drive-mirror', mirror), named);
  await bed.execute('drive-mirror', { ...mirror, 'node-name': 'T' });
  await pivot(bed);
  assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, 'f');
  assert.equal(bed.engine.graph.node('f').filtered?.node.name, 'T');
  await bed.guest('read -P 3 0 64k');
});

test('what a mirror has replaced below a filter goes, where nobody has it open, as in QEMU', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.engine.addNode({ driver: 'blkdebug', 'node-name': 'f', image: 'A' });
  await bed.device('f');
  await bed.snapshot('A', 'B');
  const mirror = { device: 'f', 'job-id': 'm', target: bed.path('T.qcow2'), sync: 'full', replaces: 'B' };
  await bed.execute('drive-mirror', { ...mirror, 'node-name': 'T' });
  await pivot(bed);
  assert.equal(bed.engine.graph.node('f').filtered?.node.name, 'T');
  assert.equal(bed.engine.graph.find('B'), undefined);
  assert.ok(bed.engine.graph.find('A'));
});

test('options of a mirror reach it', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.image('T');
  const mirror = { device: 'B', 'job-id': 'm', target: 'T', sync: 'full' };
  const odd = { ...mirror, 'buf-size': -1 };
  assert.equal(await bed.refusal('blockdev-mirror', odd), "Invalid parameter 'buf-size'");
  await bed.execute('blockdev-mirror', {
    ...{ ...mirror, 'copy-mode': 'write-blocking', speed: 100 * MiB, 'filter-node-name': 'f' },
  });
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('job-pause', { id: 'm' });
  await bed.guest('write -P 9 0 64k');
  const [job] = (await bed.execute('query-block-jobs')) as Array<{
    len: number;
    offset: number;
    speed: number;
  }>;
  assert.deepEqual([job?.len, job?.speed], [job?.offset, 100 * MiB]);
  // A filter that was named shows itself, as the node that it filters.
  const [disk] = (await bed.execute('query-block')) as Array<{ inserted: JsonObject }>;
  const { file, 'node-name': name, drv } = disk?.inserted ?? {};
  assert.deepEqual([name, drv, file], ['f', 'mirror_top', bed.path('B.qcow2')]);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  const writer = { device: 'T', writable: true };
  const conflict =
    "Permission conflict on node 'T': permissions 'consistent read, write' are both required by an unnamed block " +
    "device (uses node 'T' as 'root' child) and unshared by an unnamed block device (uses node 'T' as 'root' child).";
  assert.equal(await bed.refusal('nbd-server-add', writer), conflict);
  await bed.execute('job-cancel', { id: 'm' });
});

test('a copy that is refused once its target is made leaves no node', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const before = [...bed.engine.graph.nodes.keys()];
  const copy = { device: 'B', 'job-id': '1', target: bed.path('T.qcow2'), sync: 'full' };
  for (const command of ['drive-mirror', 'drive-backup']) {
    assert.equal(await bed.refusal(command, copy), "Invalid job ID '1'");
    assert.deepEqual([...bed.engine.graph.nodes.keys()], before, command);
  }
  const missing = { ...copy, 'job-id': 'j', mode: 'existing', format: 'qcow2', target: bed.path('no') };
  for (const command of ['drive-mirror', 'drive-backup'])
    assert.match(await bed.refusal(command, missing), /^Could not open '.*no': No such file or directory$/);
});

test('a bitmap of a backup holds afterwards what its mode says', async (t) => {
  for (const [sync, mode, ends, left] of [
    ['incremental', undefined, 'well', 65536],
    ['bitmap', 'on-success', 'well', 65536],
    ['bitmap', 'always', 'well', 65536],
    ['bitmap', 'never', 'well', 3 * 65536],
    ['top', 'on-success', 'well', 65536],
    ['top', 'always', 'well', 65536],
    ['incremental', undefined, 'early', 3 * 65536],
    ['bitmap', 'never', 'early', 3 * 65536],
  ] as const) {
    const bed = new EngineBed(t);
    await bed.chain('A');
    await bed.image('T');
    await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'bits', granularity: 65536 });
    await bed.guest('write -P 1 0 64k');
    await bed.guest('write -P 1 1M 64k');
    await bed.execute('blockdev-backup', {
      ...{ device: 'A', target: 'T', 'job-id': 'b', sync, bitmap: 'bits', speed: 1 },
      ...(mode !== undefined && { 'bitmap-mode': mode }),
    });
    await bed.guest('write -P 2 2M 64k');
    if (ends === 'well') await bed.execute('block-job-set-speed', { device: 'b', speed: 0 });
    else await bed.execute('job-cancel', { id: 'b' });
    const { len } = await bed.event(ends === 'well' ? 'BLOCK_JOB_COMPLETED' : 'BLOCK_JOB_CANCELLED', 'b');
    assert.equal(len, sync === 'top' ? 4 * MiB : 2 * 65536);
    const { dirtyBitmaps } = bed.engine.graph.node('A');
    const [bits] = dirtyBitmaps;
    assert.deepEqual(
      [bits?.dirtyBytes, bits?.busy, dirtyBitmaps.length],
      [left, false, 1],
      `${sync} ${mode} ${ends}`,
    );
  }
});

test('a backup of the top copies the clusters that the top holds, and no others', async (t) => {
  for (const backed of [true, false]) {
    const bed = new EngineBed(t);
    await bed.image('A');
    await bed.device('A');
    if (backed) {
      await bed.guest('write -P 9 0 8M');
      await bed.snapshot('A', 'B');
    }
    await bed.image('T');
    await bed.guest('write -P 1 64k 64k');
    await bed.guest('write -P 2 1088k 4k');
    const device = backed ? 'B' : 'A';
    await bed.execute('blockdev-backup', { device, target: 'T', 'job-id': 'b', sync: 'top' });
    const { len, offset } = await bed.event('BLOCK_JOB_COMPLETED', 'b');
    assert.deepEqual([len, offset], [2 * 65536, 2 * 65536]);
    const target = bed.engine.graph.node('T');
    const held: number[] = [];
    for (let at = 0; at < DISK_BYTES; at += 65536)
      if ((await target.statusThroughChain(at, 65536)).allocated) held.push(at / 65536);
    assert.deepEqual(held, [1, 17], `backed: ${backed}`);
  }
});

test('backups with bitmaps that make no sense are refused', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('T');
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'bits' });
  const given = { bitmap: 'bits' };
  for (const [sync, more, words] of [
    ['bitmap', {}, "must provide a valid bitmap name for 'bitmap' sync mode"],
    ['full', given, 'Bitmap sync mode must be given when providing a bitmap'],
    [
      'incremental',
      { ...given, 'bitmap-mode': 'never' },
      "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
    ],
    [
      'none',
      { ...given, 'bitmap-mode': 'always' },
      "sync mode 'none' does not produce meaningful bitmap outputs",
    ],
    [
      'full',
      { ...given, 'bitmap-mode': 'never' },
      "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'",
    ],
    ['full', { 'bitmap-mode': 'always' }, 'Cannot specify bitmap sync mode without a bitmap'],
    ['incremental', { bitmap: 'other' }, "Bitmap 'other' could not be found"],
  ] as const) {
    const backup = { device: 'A', target: 'T', 'job-id': 'b', sync, ...more };
    assert.equal(await bed.refusal('blockdev-backup', backup), words);
  }
  await bed.guest('write 0 1M');
  const running = { device: 'A', target: 'T', 'job-id': 'b', sync: 'incremental', ...given, speed: 1 };
  await bed.execute('blockdev-backup', running);
  const busy = "Node 'T' is busy: block device is in use by block job: backup";
  const whole = { device: 'A', target: 'T', 'job-id': 'c', sync: 'full' };
  assert.equal(await bed.refusal('blockdev-backup', whole), busy);
  await bed.image('U');
  assert.equal(
    await bed.refusal('blockdev-backup', { ...running, target: 'U', 'job-id': 'c' }),
    "Bitmap 'bits' is currently in use by another operation and cannot be used",
  );
  await bed.execute('job-cancel', { id: 'b' });
});

test('layers that a stream or commit cannot have are refused', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.image('spare');
  const stream = { device: 'C', 'job-id': 'j' };
  const both = (one: string, other: string): string =>
    `'${one}' and '${other}' cannot be specified at the same time`;
  for (const [command, args, words] of [
    ['block-stream', { base: 'x', 'base-node': 'A' }, both('base', 'base-node')],
    ['block-stream', { base: 'x', bottom: 'B' }, both('base', 'bottom')],
    ['block-stream', { bottom: 'B', 'base-node': 'A' }, both('bottom', 'base-node')],
    ['block-stream', { bottom: 'spare' }, "Node 'spare' is not in a chain starting from 'C'"],
    ['block-commit', { top: 'x', 'top-node': 'B' }, "'top-node' and 'top' are mutually exclusive"],
    ['block-commit', { base: 'x', 'base-node': 'A' }, "'base-node' and 'base' are mutually exclusive"],
    ['block-commit', { 'top-node': 'spare' }, "'spare' is not in this backing file chain"],
    ['block-commit', { 'base-node': 'spare' }, "'spare' is not in this backing file chain"],
    ['block-commit', { 'top-node': 'B', 'base-node': 'B' }, 'cannot commit an image into itself'],
  ] as const)
    assert.equal(await bed.refusal(command, { ...stream, ...args }), words);
  const first = { device: 'B', 'job-id': 's', 'filter-node-name': 'f', 'auto-finalize': false };
  await bed.execute('block-stream', { ...first, speed: 7 });
  const filter = "Node 'f' is a filter, use a non-filter node as 'bottom'";
  assert.equal(await bed.refusal('block-stream', { ...stream, bottom: 'f' }), filter);
  const [job] = (await bed.execute('query-block-jobs')) as Array<{ speed: number }>;
  assert.equal(job?.speed, 7);
  const human = await bed.execute('human-monitor-command', { 'command-line': 'info block-jobs' });
  assert.match(
    human as string,
    /^Streaming device s: Completed \d+ of \d+ bytes, speed limit 7 bytes\/s\r\n$/,
  );
  await bed.execute('job-cancel', { id: 's' });
  await bed.event('BLOCK_JOB_CANCELLED', 's');
  // The disk by its own file name is the active layer.
  const commit = { device: 'C', 'job-id': 'k', top: bed.path('C.qcow2'), 'base-node': 'B' };
  await bed.execute('block-commit', commit);
  await bed.event('BLOCK_JOB_READY', 'k');
  await bed.execute('block-job-cancel', { device: 'k', force: true });
  await bed.event('BLOCK_JOB_CANCELLED', 'k');
});

test('headers name what a stream or commit was told to write there', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C', 'D');
  const stream = { device: 'D', 'job-id': 's', 'base-node': 'B', 'backing-file': 'told.qcow2' };
  await bed.execute('block-stream', stream);
  await bed.event('BLOCK_JOB_COMPLETED', 's');
  const { graph } = bed.engine;
  assert.deepEqual(graph.node('D').instance.backing, { filename: 'told.qcow2', format: 'qcow2' });
  assert.deepEqual(await bed.layers(), ['D', 'B', 'A']);
  const told = async (): Promise<unknown[]> => {
    const [disk] = (await bed.execute('query-block')) as Array<{ inserted: JsonObject }>;
    const image = disk?.inserted['image'] as JsonObject;
    return [disk?.inserted['backing_file'], image['backing-filename'], image['backing-filename-format']];
  };
  assert.deepEqual(await told(), [bed.path('B.qcow2'), 'told.qcow2', 'qcow2']);
  await bed.execute('block-commit', {
    device: 'D',
    'job-id': 'c',
    'top-node': 'B',
    'backing-file': 'low.qcow2',
  });
  await bed.event('BLOCK_JOB_COMPLETED', 'c');
  assert.deepEqual(graph.node('D').instance.backing, { filename: 'low.qcow2', format: 'qcow2' });
  assert.deepEqual(await told(), [bed.path('A.qcow2'), 'low.qcow2', 'qcow2']);
  assert.deepEqual(await bed.layers(), ['D', 'A']);
  assert.equal(graph.nodes.has('B') || graph.nodes.has('C'), false);
});

test('a transaction holds all disks from its first action to its last, and is undone from its last', async (t) => {
  const held: boolean[] = [];
  const bed: EngineBed = new EngineBed(t, {
    print: () => void held.push(bed.engine.devices.get('virtio0')?.backend.isQuiesced ?? false),
  });
  await bed.image('A');
  await bed.device('A');
  await bed.image('other');
  const snapshot = (old: string, name: string): JsonObject => ({
    type: 'blockdev-snapshot-sync',
    data: { 'node-name': old, 'snapshot-file': bed.path(`${name}.qcow2`), 'snapshot-node-name': name },
  });
  const actions = [
    snapshot('other', 'X'),
    snapshot('A', 'B'),
    snapshot('B', 'C'),
    { type: 'abort', data: {} },
  ];
  assert.equal(await bed.refusal('transaction', { actions }), 'Transaction aborted using Abort action');
  assert.deepEqual(held, [true, true, true]);
  assert.deepEqual(await bed.layers(), ['A']);
  assert.deepEqual(
    ['A', 'other', 'B', 'C', 'X'].map((name) => bed.engine.graph.nodes.has(name)),
    [true, true, false, false, false],
  );
  assert.equal(bed.engine.graph.node('A').readOnly, false);
});

test('queries tell of layers, their size on the host and how they are opened', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  // What a file system has not placed yet it counts otherwise a moment later.
  await bed.guest('flush');
  for (const flat of [true, false]) {
    const nodes = (await bed.execute('query-named-block-nodes', { flat })) as Array<{ image: JsonObject }>;
    const found = nodes.find((node) => (node as JsonObject)['node-name'] === 'B');
    const { ro, backing_file_depth: depth } = found as unknown as JsonObject;
    assert.deepEqual([ro, depth], [false, flat ? 0 : 1]);
    assert.equal(
      nodes.map((node) => node as unknown as JsonObject).find((node) => node['node-name'] === 'A')?.['ro'],
      true,
    );
    const below = found?.image['backing-image'] as JsonObject | undefined;
    assert.equal(below?.['filename'], flat ? undefined : bed.path('A.qcow2'));
    assert.equal(found?.image['actual-size'], statSync(bed.path('B.qcow2')).blocks * 512);
    assert.equal(found?.image['full-backing-filename'], bed.path('A.qcow2'));
  }
  const [stats] = (await bed.execute('query-blockstats')) as Array<{
    stats: JsonObject;
    backing: JsonObject;
  }>;
  assert.equal(stats?.stats['wr_highest_offset'], 2 * MiB);
  assert.equal(stats.backing['node-name'], 'A');
});

test('a durable write over data is durable in the target that is about to take over, though it takes whole clusters', async (t) => {
  const faulty = new FaultyHost(createRealHost());
  const bed = new EngineBed(t, { host: faulty.host });
  await bed.chain('A', 'B');
  await bed.guest('flush');
  await bed.image('T');
  const mirror = { device: 'B', target: 'T', 'job-id': 'm', sync: 'top', 'auto-finalize': false };
  await bed.execute('blockdev-mirror', mirror);
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('block-job-complete', { device: 'm' });
  const job = bed.engine.jobs.find('m');
  while (job?.status !== 'pending') await bed.engine.host.clock.macrotask();
  const seen: string[] = [];
  for (const op of ['write', 'flush'] as const) {
    const when = (): boolean => {
      seen.push(op);
      return false;
    };
    faulty.faults.add({ op, file: 'T.qcow2', errno: 'EIO', when });
  }
  await bed.guest('write -P 3 1049088 512');
  assert.deepEqual([...new Set(seen.splice(0))], ['write']);
  await bed.guest('write -f -P 4 1049088 512');
  assert.ok(seen.includes('write'));
  assert.equal(seen.at(-1), 'flush');
  await bed.execute('job-finalize', { id: 'm' });
  await job.concluded;
  await bed.guest('read -P 4 1049088 512');
});

test('a copy does not take the place of a file of its disk, though nobody locks it', async (t) => {
  const bed = new EngineBed(t);
  const filename = bed.path('A.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
  const file = { driver: 'file', filename, locking: 'off' };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
  await bed.device('A');
  await bed.guest('write -P 7 0 1M');
  for (const command of ['drive-mirror', 'drive-backup'])
    for (const sync of ['full', 'none']) {
      const args = { device: 'A', 'job-id': 'j', target: filename, sync };
      assert.match(
        await bed.refusal(command, args),
        sync === 'full'
          ? /^Could not create .*: Failed to get "write" lock$/
          : /^Error: Trying to create an image with the same/,
      );
    }
  await bed.guest('read -P 7 0 1M');
});
