import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { MovePlan, WholeMoveInfo } from '../../src/schema/move.js';
import type { JsonObject } from '../../src/schema/types.js';
import { Relay } from '../kit/relay.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';
import { statusOf, untilEvent } from './migration-bed.js';

/** Here a machine with a disk, there one that waits, with an empty disk that is exported for writing. */
class MoveBed {
  readonly source: EngineBed;
  readonly destination: EngineBed;
  readonly warnings: string[] = [];

  constructor(t: TestContext) {
    const warn = (text: string): void => void this.warnings.push(text);
    this.source = new EngineBed(t, { warn });
    this.destination = new EngineBed(t, { warn, incoming: true });
  }

  static async create(t: TestContext, { exportName = 'virtio0', bytes = DISK_BYTES } = {}): Promise<MoveBed> {
    const bed = new MoveBed(t);
    const { source, destination } = bed;
    await source.image('A');
    await source.device('A');
    await source.guest('write -P 0x11 0 1M');
    const filename = destination.path('A.qcow2');
    await createImage(destination.engine.opener, filename, 'qcow2', { sizeBytes: bytes });
    await destination.engine.addNode({
      driver: 'qcow2',
      'node-name': 'A',
      file: { driver: 'file', filename },
    });
    await destination.device('A');
    await destination.execute('nbd-server-start', {
      addr: { type: 'unix', data: { path: destination.path('nbd') } },
    });
    await destination.execute('block-export-add', {
      ...{ type: 'nbd', id: 'e', 'node-name': 'A', name: exportName, writable: true },
    });
    await destination.execute('migrate-incoming', { uri: bed.uri });
    return bed;
  }

  get uri(): string {
    return `unix:${this.destination.path('move')}`;
  }

  get storage(): JsonObject {
    return { server: { type: 'unix', path: this.destination.path('nbd') } };
  }

  async move(more: JsonObject = {}): Promise<MovePlan> {
    return (await this.source.execute('x-move', {
      uri: this.uri,
      storage: this.storage,
      ...more,
    })) as unknown as MovePlan;
  }

  async progress(): Promise<WholeMoveInfo | undefined> {
    const answer = (await this.source.execute('x-query-move')) as JsonObject;
    return answer['x-progress'] as WholeMoveInfo | undefined;
  }

  /** The end of the move. */
  async end(): Promise<WholeMoveInfo> {
    await this.source.engine.wholeMove.ended;
    const info = await this.progress();
    assert.ok(info);
    return info;
  }
}

test('a machine goes to another host with its disk, its bitmaps and its state, asked for once', async (t) => {
  const bed = await MoveBed.create(t);
  const { source, destination } = bed;
  await source.execute('block-dirty-bitmap-add', { node: 'A', name: 'since' });
  await source.guest('write -P 0x22 2M 64k');
  const plan = await bed.move();
  assert.deepEqual(plan.bitmaps, [{ node: 'A', name: 'since' }]);
  const [disk] = plan.disks;
  assert.deepEqual([disk?.device, disk?.node, disk?.export], ['virtio0', 'A', 'virtio0']);
  assert.deepEqual([disk?.length, disk?.data], [DISK_BYTES, MiB + 65536]);
  // The guest writes on meanwhile.
  await source.guest('write -P 0x33 3M 64k');
  const info = await bed.end();
  assert.deepEqual([info.stage, info.error], ['completed', undefined]);
  assert.ok(info['stop-ms'] !== undefined);
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['postmigrate', 'running']);
  await destination.guest('read -P 0x11 0 1M');
  await destination.guest('read -P 0x22 2M 64k');
  await destination.guest('read -P 0x33 3M 64k');
  // Nobody writes there over NBD any more.
  assert.deepEqual(await destination.execute('query-block-exports'), []);
  const nodes = (await destination.execute('query-named-block-nodes', { flat: true })) as JsonObject[];
  const block = nodes.find((node) => node['node-name'] === 'A');
  const [bitmap] = block?.['dirty-bitmaps'] as JsonObject[];
  assert.deepEqual([bitmap?.['name'], bitmap?.['count']], ['since', 2 * 65536]);
  assert.deepEqual(source.engine.jobs.list(), []);
  assert.deepEqual(bed.warnings, []);
});

test('a dry run says what would be done, and does nothing of it', async (t) => {
  const bed = await MoveBed.create(t);
  const { source, destination } = bed;
  const plan = await bed.move({ 'dry-run': true });
  assert.equal(plan.disks[0]?.data, MiB);
  assert.ok(plan['forecast-stop-ms'] >= 0);
  assert.equal(await bed.progress(), undefined);
  assert.deepEqual(source.engine.jobs.list(), []);
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['running', 'inmigrate']);
  assert.deepEqual(bed.warnings, []);
  await source.guest('write -P 0x22 0 64k');
  // And then it can be done.
  await bed.move();
  assert.equal((await bed.end()).stage, 'completed');
  await destination.guest('read -P 0x22 0 64k');
});

test('what cannot be done is refused before anything begins', async (t) => {
  const bed = await MoveBed.create(t, { bytes: DISK_BYTES / 2 });
  const { source, storage, uri } = { ...bed, storage: bed.storage, uri: bed.uri };
  assert.match(
    await source.refusal('x-move', { uri, storage }),
    /^Disk 'virtio0' is \d+ bytes long here and its export 'virtio0' \d+$/,
  );
  assert.equal(
    await source.refusal('x-move', { uri, storage: { ...storage, disks: [{ device: 'other' }] } }),
    "Device 'other' not found",
  );
  assert.equal(
    await source.refusal('x-move', {
      uri,
      storage: { ...storage, disks: [{ device: 'virtio0', export: 'none' }] },
    }),
    "Disk 'virtio0' goes to the export 'none': Requested export not available",
  );
  assert.equal(
    await source.refusal('x-move', { uri: 'exec:cat', storage }),
    "Parameter 'uri' expects tcp:HOST:PORT or unix:PATH",
  );
  assert.equal(await source.refusal('x-move-cancel'), 'There is no move under way');
  assert.equal(await bed.progress(), undefined);
  assert.deepEqual(
    [...source.engine.graph.nodes.keys()].filter((name) => name.startsWith('#block')).length,
    1,
  );
  await source.guest('write -P 0x22 0 64k');
});

test('a move that is cancelled leaves the machine here, and it can go later', async (t) => {
  const bed = await MoveBed.create(t);
  const { source, destination } = bed;
  await bed.move({ storage: { ...bed.storage, speed: 65536 } });
  assert.equal((await bed.progress())?.stage, 'copying');
  assert.equal(await source.refusal('x-move', { uri: bed.uri }), "There's a migration process in progress");
  await source.execute('x-move-cancel');
  assert.equal((await bed.end()).stage, 'cancelled');
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['running', 'inmigrate']);
  assert.deepEqual(source.engine.jobs.list(), []);
  await source.guest('write -P 0x44 0 64k');
  await bed.move();
  assert.equal((await bed.end()).stage, 'completed');
  await destination.guest('read -P 0x44 0 64k');
});

test('a copy that fails ends the move: the guest goes on here', async (t) => {
  const bed = await MoveBed.create(t);
  const { source, destination } = bed;
  await bed.move({ storage: { ...bed.storage, speed: 65536, 'reconnect-delay': 0 } });
  await destination.execute('nbd-server-stop');
  // What the guest writes must go there, too.
  source.engine.jobs.list().forEach((job) => void job.setSpeed(0));
  const info = await bed.end();
  assert.equal(info.stage, 'failed');
  assert.ok(info.error !== undefined && info.error !== '');
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['running', 'inmigrate']);
  await source.guest('write -P 0x55 0 64k');
});

test('a copy that the user has ended by itself is not taken for the end of the move: the guest goes on here', async (t) => {
  const bed = await MoveBed.create(t);
  const { source, destination } = bed;
  await source.image('B');
  await source.engine.addDevice('B', { id: 'virtio1' });
  await source.execute('human-monitor-command', { 'command-line': 'qemu-io B "write -P 0x11 0 1M"' });
  const filename = destination.path('B.qcow2');
  await createImage(destination.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
  await destination.engine.addNode({ driver: 'qcow2', 'node-name': 'B', file: { driver: 'file', filename } });
  await destination.engine.addDevice('B', { id: 'virtio1' });
  await destination.execute('block-export-add', {
    ...{ type: 'nbd', id: 'f', 'node-name': 'B', name: 'virtio1', writable: true },
  });
  await bed.move({ storage: { ...bed.storage, speed: 65536 } });
  const [first, second] = ['x-move-virtio0', 'x-move-virtio1'].map((id) =>
    source.engine.jobs.list().find((job) => job.id === id),
  );
  assert.ok(first && second);
  await first.setSpeed(0);
  await source.event('BLOCK_JOB_READY', first.id);
  await first.setSpeed(262144);
  await source.guest('write -P 0x22 0 1M');
  await source.execute('block-job-cancel', { device: first.id });
  // Its copy is of the moment before.
  await source.guest('write -P 0x33 0 1M');
  await second.setSpeed(0);
  const info = await bed.end();
  assert.deepEqual([info.stage, info.error], ['failed', "The copy of disk 'virtio0' was ended"]);
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['running', 'inmigrate']);
  await source.guest('read -P 0x33 0 1M');
  assert.deepEqual(source.engine.jobs.list(), []);
});

test('a move with bitmaps that was cut when all of it was there is done by the next try, and refused by no dry run', async (t) => {
  const bed = await MoveBed.create(t);
  const { source, destination } = bed;
  await source.execute('block-dirty-bitmap-add', { node: 'A', name: 'kept', persistent: true });
  await source.guest('write -P 0x22 1M 64k');
  const [here, there] = [source.path('link'), destination.path('move')];
  const relay = new Relay(source.engine.host, { type: 'unix', path: here }, { type: 'unix', path: there });
  await relay.open();
  t.after(() => relay.close());
  relay.cutBefore({ towards: 'client', type: 10 });
  const uri = `unix:${here}`;
  await bed.move({ uri });
  assert.equal((await bed.end()).stage, 'failed');
  await untilEvent(destination, 'X_MOVE', ({ owner }) => owner === 'unknown');
  relay.setDown(false);
  await source.guest('write -P 0x33 3M 64k');
  await bed.move({ uri, 'dry-run': true });
  await bed.move({ uri });
  assert.equal((await bed.end()).stage, 'completed');
  assert.equal(await statusOf(destination), 'running');
  await destination.guest('read -P 0x33 3M 64k');
  const bitmap = destination.engine.graph.node('A').findBitmap('kept');
  assert.deepEqual([bitmap?.dirtyBytes, bitmap?.busy, bitmap?.persistent], [2 * 65536, false, true]);
});

test('a destination that refuses the machine: the guest goes on here', async (t) => {
  const bed = await MoveBed.create(t);
  const { source, destination } = bed;
  // Until the disks are in step it would have taken it.
  source.engine.onEvent((event, { stage }) => {
    const { machine } = destination.engine;
    const device = machine.find('virtio0');
    if (event === 'X_MOVE_STAGE' && stage === 'switching' && device) machine.unplug(device);
  });
  await bed.move();
  const info = await bed.end();
  assert.equal(info.stage, 'failed');
  assert.match(info.error ?? '', /^Unknown savevm section or instance/);
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['running', 'inmigrate']);
  await source.guest('write -P 0x55 0 64k');
  assert.deepEqual(source.engine.jobs.list(), []);
});

test('what the destination would refuse is known before anything is copied, by a dry run too', async (t) => {
  const bed = await MoveBed.create(t);
  const { source, destination, uri, storage } = { ...bed, uri: bed.uri, storage: bed.storage };
  const refused = async (words: RegExp): Promise<void> => {
    for (const dry of [true, false])
      assert.match(await source.refusal('x-move', { uri, storage, 'dry-run': dry }), words);
  };
  await source.execute('device_add', { driver: 'virtio-scsi-pci', id: 'scsi' });
  await refused(/^Unknown savevm section or instance '\/machine\/peripheral\/scsi\//);
  await source.execute('device_del', { id: 'scsi' });
  for (const end of [source, destination])
    await end.execute('block-dirty-bitmap-add', { node: 'A', name: 'since' });
  await refused(/^Bitmap with the same name \('since'\) already exists on destination$/);
  // Nobody there has heard of it.
  assert.deepEqual(await destination.execute('query-migrate'), {
    'socket-address': [{ type: 'unix', path: destination.path('move') }],
  });
  assert.deepEqual([bed.warnings, await bed.progress()], [[], undefined]);
  await destination.execute('block-dirty-bitmap-remove', { node: 'A', name: 'since' });
  await bed.move();
  assert.equal((await bed.end()).stage, 'completed');
});

test('a guest is not stopped for longer than was asked for', async (t) => {
  const bed = await MoveBed.create(t);
  const { source } = bed;
  await bed.move({ 'max-stop': 0 });
  // Nothing is left to copy.
  while ((await bed.progress())?.disks[0]?.left !== 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await new Promise((resolve) => setTimeout(resolve, 300));
  const info = await bed.progress();
  assert.equal(info?.stage, 'copying');
  assert.ok((info['forecast-stop-ms'] ?? 0) > 0);
  assert.equal(await statusOf(source), 'running');
  await source.execute('x-move-cancel');
  assert.equal((await bed.end()).stage, 'cancelled');
});

test('who watches is told each stage', async (t) => {
  const bed = await MoveBed.create(t);
  await bed.move();
  await untilEvent(bed.source, 'X_MOVE_STAGE', ({ stage }) => stage === 'completed');
  const stages = bed.source.events
    .filter(({ event }) => event === 'X_MOVE_STAGE')
    .map(({ data }) => data['stage']);
  assert.deepEqual(stages, ['copying', 'switching', 'completed']);
});
