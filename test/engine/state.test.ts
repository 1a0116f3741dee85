import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { Permission } from '../../src/block/permissions.js';
import { withBackend } from '../../src/block/with-backend.js';
import { allDrivers } from '../../src/drivers/index.js';
import type { Host } from '../../src/host/host.js';
import { createSimulatedHost, SeededRandom, type Simulation } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import { describeEngine } from '../../src/monitor/state/describe.js';
import { StateKeeper } from '../../src/monitor/state/keeper.js';
import { restoreEngine, type Secrets } from '../../src/monitor/state/restore.js';
import { StateStore } from '../../src/monitor/state/store.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { formatJson } from '../../src/wire/qmp/json-format.js';
import { KillableHost } from '../kit/killable-host.js';

const FOLDER = '/tmp/state';
const DISK_BYTES = 1024 * 1024;
const PROGRAM = { askedDigest: '', monitors: [], isMultiplexed: false };

interface Boot {
  engine: Engine;
  store: StateStore;
  told: string[];
  execute: (command: string, args?: JsonObject) => Promise<JsonValue>;
  refusal: (command: string, args?: JsonObject) => Promise<string>;
}

/** A daemon of the folder: what is kept there, or nothing yet. */
async function boot(host: Host, secrets: Secrets = new Map()): Promise<Boot> {
  const told: string[] = [];
  const store = await StateStore.open(host, FOLDER);
  const saved = await store.read();
  const engine = new Engine({
    ...{ host, drivers: allDrivers, kind: 'machine', startStopped: saved !== undefined },
    warn: (text) => told.push(text),
  });
  if (saved) await restoreEngine(engine, saved, secrets);
  await StateKeeper.begin(store, engine, PROGRAM, saved !== undefined);
  const execute = (command: string, args: JsonObject = {}): Promise<JsonValue> =>
    engine.hub.execute(command, args) as Promise<JsonValue>;
  const refusal = async (command: string, args: JsonObject = {}): Promise<string> => {
    const error: unknown = await execute(command, args).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    assert.ok(error instanceof Error, `${command} was not refused`);
    return error.message;
  };
  return { engine, store, told, execute, refusal };
}

async function images(host: Host, ...names: string[]): Promise<void> {
  const engine = new Engine({ host, drivers: allDrivers, kind: 'machine' });
  for (const name of names)
    await createImage(engine.opener, `/tmp/${name}.qcow2`, 'qcow2', { sizeBytes: DISK_BYTES });
  await engine.close();
}

function qcow2(name: string, more: JsonObject = {}): JsonObject {
  return {
    driver: 'qcow2',
    'node-name': name,
    file: { driver: 'file', filename: `/tmp/${name}.qcow2` },
    ...more,
  };
}

const overlay = (node: string, name: string): JsonObject => ({
  ...{
    'node-name': node,
    'snapshot-file': `/tmp/${name}.qcow2`,
    'snapshot-node-name': name,
    format: 'qcow2',
  },
});

/** Of the disk a <-- b <-- c. */
const PERSISTED: { [kind: string]: { command: string; options: JsonObject } } = {
  backup: { command: 'blockdev-backup', options: { target: 'target', sync: 'full' } },
  mirror: { command: 'blockdev-mirror', options: { target: 'target', sync: 'full' } },
  stream: { command: 'block-stream', options: {} },
  commit: { command: 'block-commit', options: { 'top-node': 'b' } },
  'commit of what guests write to': { command: 'block-commit', options: {} },
};

const QUERIES = [
  ...['query-named-block-nodes', 'query-block', 'query-block-exports', 'query-chardev', 'query-status'],
  ...['query-name', 'query-uuid', 'query-jobs', 'query-block-jobs', 'x-debug-query-block-graph'],
  ...['query-migrate-capabilities', 'query-migrate-parameters'],
];

/** What queries answer, without what counts or numbers. */
async function answers({ execute, engine }: Boot): Promise<{ [query: string]: JsonValue }> {
  const all: { [query: string]: JsonValue } = {};
  for (const query of QUERIES) all[query] = withoutIds(await execute(query));
  for (const { id } of engine.graph.objects.list())
    all[id] = await execute('qom-get', { path: `/objects/${id}`, property: 'limits' }).catch(() => '');
  all['machine'] = await execute('qom-list', { path: '/machine/peripheral' });
  return all;
}

/** Numbers of the graph's picture are handed out anew; a filter that is named by its number is not. */
function withoutIds(value: JsonValue): JsonValue {
  const text = JSON.stringify(value, (key, member: unknown) =>
    typeof member === 'bigint'
      ? `${member}`
      : ['id', 'parent', 'child'].includes(key) && typeof member === 'number'
        ? 0
        : member,
  );
  return JSON.parse(text) as JsonValue;
}

/** Without the numbers of disks, which say only what comes before what. */
function stateOf({ engine }: Boot): JsonValue {
  const text = formatJson(describeEngine(engine, PROGRAM));
  return JSON.parse(text.replace(/"number": \d+/g, '"number": 0')) as JsonValue;
}

/** Kills the daemon in `body`'s midst, and starts it anew. */
async function simulated(
  seed: number,
  body: (bed: {
    simulation: Simulation;
    start: () => Promise<Boot>;
    kill: () => Promise<void>;
  }) => Promise<void>,
): Promise<void> {
  const simulation = createSimulatedHost({ seed });
  await simulation.run(async () => {
    let process: KillableHost | undefined;
    const start = (): Promise<Boot> => {
      process = new KillableHost(simulation.host);
      return boot(process.host);
    };
    await body({ simulation, start, kill: async () => process?.kill() });
  });
}

test('a daemon that was killed comes back with nodes, disks, exports, limits and settings as they were', () =>
  simulated(1, async ({ simulation, start, kill }) => {
    await images(simulation.host, 'a', 'c', 'm');
    const before = await start();
    const { execute } = before;
    await execute('object-add', { 'qom-type': 'throttle-group', id: 'slow', limits: { 'iops-total': 10 } });
    await execute(
      'blockdev-add',
      qcow2('a', { discard: 'unmap', 'detect-zeroes': 'unmap', cache: { 'no-flush': true } }),
    );
    await execute('blockdev-add', {
      ...{ driver: 'throttle', 'node-name': 't', 'throttle-group': 'slow' },
      file: { driver: 'raw', size: 4096, offset: 512, file: { driver: 'file', filename: '/tmp/c.qcow2' } },
    });
    await execute('blockdev-add', qcow2('m', { 'read-only': true }));
    await execute('device_add', {
      driver: 'virtio-blk-pci',
      drive: 'a',
      id: 'v0',
      'share-rw': true,
      werror: 'stop',
      serial: 'x',
    });
    await execute('device_add', { driver: 'virtio-scsi-pci', id: 'scsi' });
    await execute('device_add', { driver: 'scsi-cd', drive: 'm', id: 'cd' });
    await execute('blockdev-snapshot-sync', overlay('a', 'b'));
    await execute('blockdev-snapshot-sync', overlay('b', 'b2'));
    await execute('block_set_io_throttle', {
      ...{ id: '/machine/peripheral/v0/virtio-backend', bps: 1_000_000, bps_rd: 0, bps_wr: 0 },
      ...{ iops: 0, iops_rd: 0, iops_wr: 0, group: 'g' },
    });
    await execute('qom-set', { path: '/objects/slow', property: 'limits', value: { 'iops-total': 77 } });
    await execute('nbd-server-start', {
      addr: { type: 'unix', data: { path: '/tmp/nbd' } },
      'max-connections': 3,
    });
    const exported = { type: 'nbd', id: 'e', 'node-name': 'b2', name: 'x', writable: true, description: 'd' };
    await execute('block-export-add', exported);
    await execute('block-export-add', { type: 'nbd', id: 'e2', 'node-name': 't', 'allocation-depth': true });
    await execute('block-set-write-threshold', { 'node-name': 'b2', 'write-threshold': 65536 });
    await execute('blockdev-open-tray', { id: 'cd' });
    await execute('blockdev-remove-medium', { id: 'cd' });
    await execute('chardev-add', { id: 'ring', backend: { type: 'ringbuf', data: { size: 4096 } } });
    await execute('migrate-set-capabilities', {
      capabilities: [{ capability: 'dirty-bitmaps', state: true }],
    });
    const mapping = [{ 'node-name': 'b2', alias: 'x', bitmaps: [] }];
    const bytesPerSecond = 9_223_372_036_853_727_232n;
    await execute('migrate-set-parameters', {
      'tls-creds': 'tls',
      'max-bandwidth': bytesPerSecond,
      'block-bitmap-mapping': mapping,
    });
    await execute('stop');
    const expected = await answers(before);
    const kept = stateOf(before);
    await kill();

    const after = await start();
    assert.deepEqual(await answers(after), expected);
    assert.deepEqual(after.told, []);
    assert.equal(after.engine.exports.server?.properties.maxConnections, 3);
    // It is the same to itself, too.
    assert.deepEqual(stateOf(after), kept);
    await after.execute('cont');
    await after.execute('blockdev-snapshot-sync', overlay('b2', 'b3'));
    await kill();
    const again = await start();
    assert.equal(again.engine.graph.node('b3').backingNode()?.name, 'b2');
    assert.equal(again.engine.runState.status, 'running');
    await again.engine.close();
  }));

test('a job that was not persisted is gone with its filter, and its disks are as they were', () =>
  simulated(2, async ({ simulation, start, kill }) => {
    await images(simulation.host, 'a', 'd', 'target');
    const before = await start();
    const { execute, engine } = before;
    await execute('blockdev-add', qcow2('a'));
    await execute('device_add', { driver: 'virtio-blk-pci', drive: 'a', id: 'v0' });
    await execute('blockdev-snapshot-sync', overlay('a', 'b'));
    const device = engine.devices.get('v0')?.backend;
    assert.ok(device);
    await device.write(0, Buffer.alloc(DISK_BYTES / 2, 7), 0);
    await execute('blockdev-snapshot-sync', overlay('b', 'c'));
    await execute('blockdev-add', qcow2('d'));
    await execute('block-dirty-bitmap-add', { node: 'c', name: 'volatile' });
    await execute('block-dirty-bitmap-add', { node: 'c', name: 'kept', persistent: true });
    const nodes = withoutIds(await execute('query-named-block-nodes'));
    await execute('blockdev-add', qcow2('target'));
    await execute('block-commit', {
      'job-id': 'down',
      device: 'c',
      'top-node': 'b',
      'base-node': 'a',
      speed: 1,
    });
    await execute('blockdev-mirror', {
      ...{
        'job-id': 'away',
        device: 'd',
        target: 'target',
        sync: 'full',
        speed: 1,
        'filter-node-name': 'filter',
      },
    });
    assert.equal(engine.graph.node('a').readOnly, false);
    await kill();

    const after = await start();
    assert.deepEqual(after.told, [
      "warning: the commit job 'down' was not persisted: it is gone",
      "warning: the mirror job 'away' was not persisted: it is gone",
      "warning: bitmap 'volatile' of node 'c' was not persistent: it is lost",
      "warning: bitmap 'kept' of node 'c' is kept only at a clean end: it is lost",
    ]);
    await after.execute('blockdev-del', { 'node-name': 'target' });
    const now = (await after.execute('query-named-block-nodes')) as JsonObject[];
    const shape = (list: JsonObject[]): JsonValue =>
      list.map(({ 'node-name': name, ro, file, backing_file_depth: depth }) => [
        name ?? '',
        ro ?? '',
        file ?? '',
        depth ?? 0,
      ]);
    assert.deepEqual(shape(now), shape(nodes as JsonObject[]));
    await after.engine.close();
  }));

test('an active commit that has ended leaves its base writable', () =>
  simulated(3, async ({ simulation, start, kill }) => {
    await images(simulation.host, 'a');
    const { execute, engine } = await start();
    await execute('blockdev-add', qcow2('a'));
    await execute('device_add', { driver: 'virtio-blk-pci', drive: 'a', id: 'v0' });
    await execute('blockdev-snapshot-sync', overlay('a', 'b'));
    const device = engine.devices.get('v0')?.backend;
    assert.ok(device);
    await device.write(0, Buffer.alloc(65536, 7), 0);
    await execute('block-commit', { 'job-id': 'j', device: 'b' });
    const job = engine.jobs.find('j');
    assert.ok(job);
    while (!job.isReady) await engine.host.clock.sleep(5);
    await execute('block-job-complete', { device: 'j' });
    await job.concluded;
    await device.write(65536, Buffer.alloc(512, 9), 0);
    await device.flush();
    await kill();

    const after = await start();
    const disk = after.engine.devices.get('v0')?.backend;
    assert.ok(disk);
    assert.equal(disk.node.name, 'a');
    const bytes = Buffer.alloc(65536 + 512);
    await disk.read(0, bytes);
    assert.ok(bytes.subarray(0, 65536).every((byte) => byte === 7));
    assert.ok(bytes.subarray(65536).every((byte) => byte === 9));
    await disk.write(0, bytes, 0);
    await after.engine.close();
  }));

test('a change whose state cannot be written is refused and undone; the state is what it was', () =>
  simulated(4, async ({ simulation, start, kill }) => {
    await images(simulation.host, 'a');
    const { execute, refusal, engine } = await start();
    await execute('blockdev-add', qcow2('a'));
    await execute('device_add', { driver: 'virtio-blk-pci', drive: 'a', id: 'v0' });
    const mend = simulation.injectFault({ op: 'write', path: `${FOLDER}/state.new`, errno: 'ENOSPC' });
    assert.match(
      await refusal('blockdev-snapshot-sync', overlay('a', 'b')),
      /^The state in '\/tmp\/state' could not be written: .*No space left on device$/,
    );
    assert.equal(engine.devices.get('v0')?.backend.node.name, 'a');
    assert.ok(!engine.graph.nodes.has('b'));
    assert.match(await refusal('stop'), /^stop was done, and would not be after a crash: The state in/);
    mend();
    await execute('cont');
    await execute('blockdev-snapshot-sync', overlay('a', 'b2'));
    await kill();
    const after = await start();
    assert.equal(after.engine.devices.get('v0')?.backend.node.name, 'b2');
    await after.engine.close();
  }));

test('what was kept is served where the state cannot be written, and a new daemon is not begun there', () =>
  simulated(13, async ({ simulation, start, kill }) => {
    const { files } = simulation.host;
    await images(simulation.host, 'a');
    const noSpace = { op: 'write', path: `${FOLDER}/state.new`, errno: 'ENOSPC' } as const;
    // What is shorter than the state finds space.
    simulation.injectFault({ ...noSpace, once: true });
    await assert.rejects(start(), /^BlockError: The state in .*: No space left on device$/);
    assert.equal(await files.stat(`${FOLDER}/state`), undefined);
    await kill();

    const { execute } = await start();
    await execute('blockdev-add', qcow2('a'));
    await execute('device_add', { driver: 'virtio-blk-pci', drive: 'a', id: 'v0' });
    await kill();
    for (let kills = 0; kills < 2; kills++) {
      const mend = simulation.injectFault(noSpace);
      const full = await start();
      assert.match(full.told.join(), /^warning: The state in [^,]*: No space left on device$/);
      assert.equal(full.engine.devices.get('v0')?.backend.node.name, 'a');
      assert.match(await full.refusal('blockdev-snapshot-sync', overlay('a', 'b')), /^The state in/);
      mend();
      if (kills === 0) await kill();
      else await full.execute('blockdev-snapshot-sync', overlay('a', 'b'));
    }
    await kill();
    const after = await start();
    assert.equal(after.engine.devices.get('v0')?.backend.node.name, 'b');
    assert.deepEqual(after.told, []);
    await after.engine.close();
  }));

test('what was kept is served where the file system has become one to be read only', () =>
  simulated(14, async ({ simulation, start, kill }) => {
    await images(simulation.host, 'a');
    const { execute } = await start();
    await execute('blockdev-add', qcow2('a'));
    await kill();
    simulation.injectFault({ op: 'create', path: `${FOLDER}/lock`, errno: 'EROFS', once: true });
    const mend = simulation.injectFault({ op: 'create', path: `${FOLDER}/state.new`, errno: 'EROFS' });
    const after = await start();
    assert.match(after.told.join(), /^warning: The state in [^,]*: Read-only file system$/);
    assert.ok(after.engine.graph.nodes.has('a'));
    assert.match(await after.refusal('stop'), /^stop was done, and would not be after a crash: The state in/);
    mend();
    await after.execute('cont');
    await after.engine.close();
  }));

for (const [kind, begin] of Object.entries(PERSISTED))
  test(`an export of a disk that a persisted ${kind} works on is above the job again`, () =>
    simulated(14, async ({ simulation, start, kill }) => {
      await images(simulation.host, 'a', 'target');
      const before = await start();
      const { execute, engine } = before;
      await execute('blockdev-add', qcow2('a'));
      await execute('device_add', { driver: 'virtio-blk-pci', drive: 'a', id: 'v0', 'share-rw': true });
      const write = async (): Promise<void> =>
        engine.devices.get('v0')?.backend.write(0, Buffer.alloc(DISK_BYTES, 7));
      await execute('blockdev-snapshot-sync', overlay('a', 'b'));
      await write();
      await execute('blockdev-snapshot-sync', overlay('b', 'c'));
      await write();
      await execute('blockdev-add', qcow2('target'));
      await execute('nbd-server-start', { addr: { type: 'unix', data: { path: '/tmp/nbd' } } });
      const exported = { type: 'nbd', id: 'e', 'node-name': 'c', writable: true };
      await execute('block-export-add', exported);
      const common = { device: 'c', 'job-id': 'j', speed: 1, 'filter-node-name': 'filter' };
      await execute(begin.command, { ...common, ...begin.options, 'x-persist': '/tmp/journal' });
      const shown = await execute('query-block-exports');
      await kill();

      const after = await start();
      assert.deepEqual(after.told, []);
      assert.deepEqual(await after.execute('query-block-exports'), shown);
      const { graph, exports, jobs } = after.engine;
      const [client] = exports.asked();
      const job = jobs.find('j');
      assert.ok(client && job);
      if (kind === 'backup') {
        await client.backend.write(0, Buffer.alloc(65536, 9));
        await after.execute('block-job-set-speed', { device: 'j', speed: 0 });
        await job.concluded;
        const bytes = Buffer.alloc(65536);
        const { consistentRead } = Permission;
        await withBackend(graph, graph.node('target'), consistentRead, (target) => target.read(0, bytes));
        assert.ok(bytes.every((byte) => byte === 7));
      }
      await after.engine.close();
    }));

test('what is missing is named, all of it, before anything is opened', () =>
  simulated(5, async ({ simulation, start, kill }) => {
    await images(simulation.host, 'a', 'b', 'c');
    const { execute } = await start();
    for (const name of ['a', 'b', 'c']) await execute('blockdev-add', qcow2(name));
    await kill();
    const { files } = simulation.host;
    await files.unlink('/tmp/a.qcow2');
    await files.unlink('/tmp/c.qcow2');
    const before = simulation.contentOf('/tmp/b.qcow2');
    await assert.rejects(start(), {
      message:
        /^What the state is about is not there: \/tmp\/a\.qcow2 \(node '#block\d+'\), \/tmp\/c\.qcow2 \(node '#block\d+'\)$/,
    });
    assert.deepEqual(simulation.contentOf('/tmp/b.qcow2'), before);
    await kill();
    await images(simulation.host, 'a', 'c');
    assert.equal((await start()).engine.graph.nodes.size, 6);
  }));

test('a secret comes back by its file, or is asked for', () =>
  simulated(6, async ({ simulation, start, kill }) => {
    const { execute } = await start();
    await execute('object-add', { 'qom-type': 'secret', id: 'given', data: 'letmein' });
    await execute('object-add', { 'qom-type': 'secret', id: 'other', data: 'open sesame', format: 'raw' });
    const text = simulation.contentOf(`${FOLDER}/state`)?.toString() ?? '';
    assert.match(text, /"given"/);
    assert.doesNotMatch(text, /letmein|sesame/);
    await kill();
    await assert.rejects(start(), {
      message: "The state has no secret's value: 'given', 'other' must be given again by -object secret",
    });
    await kill();
    const secrets = new Map(
      ['given', 'other'].map((id) => [id, { 'qom-type': 'secret', id, data: `${id}!` } as const]),
    );
    const { engine, told } = await boot(simulation.host, secrets);
    assert.equal(Buffer.from(engine.graph.objects.secret('other')).toString(), 'other!');
    assert.deepEqual(told, []);
    await engine.close();
  }));

test('two daemons never have one state', () =>
  simulated(7, async ({ simulation, start }) => {
    const { engine, store } = await start();
    await assert.rejects(boot(simulation.host), { message: `Another daemon keeps its state in '${FOLDER}'` });
    await engine.close();
    await store.close();
    await (await boot(simulation.host)).engine.close();
  }));

test('how a daemon ends is not kept: it comes back as it was', () =>
  simulated(8, async ({ simulation, start, kill }) => {
    await images(simulation.host, 'a');
    const { execute, engine, store } = await start();
    await execute('blockdev-add', qcow2('a'));
    await execute('nbd-server-start', { addr: { type: 'unix', data: { path: '/tmp/nbd' } } });
    await execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'a' });
    await execute('quit');
    await engine.close();
    await store.close();
    await kill();
    const after = await start();
    assert.deepEqual(
      after.engine.exports.list().map(({ id }) => id),
      ['e'],
    );
    await after.engine.close();
  }));

/** Puts bytes in the place of a state. */
async function put(host: Host, bytes: Buffer): Promise<void> {
  const { IoVector } = await import('../../src/base/io-vector.js');
  const file = await host.files.open(`${FOLDER}/state`, { write: true, create: true, truncate: true });
  await file.write(0, IoVector.of(bytes), 0, bytes.length);
  await file.close();
}

test('a state of another version, or a broken one, is refused by name', () =>
  simulated(9, async ({ simulation, start, kill }) => {
    await images(simulation.host, 'a');
    const { execute } = await start();
    await execute('blockdev-add', qcow2('a'));
    await kill();
    const { host } = simulation;
    const whole = simulation.contentOf(`${FOLDER}/state`);
    assert.ok(whole);
    const text = whole.toString('latin1');
    for (const [version, age] of [
      ['2', 'a newer'],
      ['0', 'an older'],
    ] as const) {
      await put(host, Buffer.from(text.replace('livedisk-state 1', `livedisk-state ${version}`), 'latin1'));
      await assert.rejects(start(), {
        message: `The state '${FOLDER}/state' is of version ${version}, of ${age} livedisk: this one has version 1`,
      });
      await kill();
    }
    const random = new SeededRandom(9);
    for (let round = 0; round < 200; round++) {
      const bytes = Buffer.from(whole);
      if (round % 3 === 0) await put(host, bytes.subarray(0, random.below(bytes.length)));
      else {
        const at = random.below(bytes.length);
        bytes[at] = ((bytes[at] ?? 0) + 1 + random.below(255)) % 256;
        await put(host, round % 3 === 1 ? bytes : Buffer.concat([bytes, Buffer.from('}')]));
      }
      await assert.rejects(start(), {
        message: /^The state '\/tmp\/state\/state' is (broken: |of version )/,
      });
      await kill();
    }
    await put(host, whole);
    await (await start()).engine.close();
  }));

/** The same JSON, members by their names. */
function sorted(text: string): string {
  const value: unknown = text === '' ? '' : JSON.parse(text);
  return JSON.stringify(value, (_, member: unknown) =>
    typeof member === 'object' && member !== null && !Array.isArray(member)
      ? Object.fromEntries(Object.entries(member).sort(([a], [b]) => (a < b ? -1 : 1)))
      : member,
  );
}

const CHANGES: ReadonlyArray<readonly [string, JsonObject]> = [
  ['blockdev-add', qcow2('a')],
  ['device_add', { driver: 'virtio-blk-pci', drive: 'a', id: 'v0' }],
  ['blockdev-snapshot-sync', overlay('a', 'b')],
  ['nbd-server-start', { addr: { type: 'unix', data: { path: '/tmp/nbd' } } }],
  ['block-export-add', { type: 'nbd', id: 'e', 'node-name': 'b' }],
  ['blockdev-add', { driver: 'null-co', 'node-name': 'n', size: 4096 }],
  ['blockdev-del', { 'node-name': 'n' }],
];

test(
  'power lost at any operation leaves the state before a command or the one after it',
  { timeout: 300_000 },
  async () => {
    /** The states that a run without a loss goes through, and how many operations it takes. */
    const run = async (
      seed: number,
      cutAt: number | undefined,
    ): Promise<{ kept: string[]; count: number; left: string }> => {
      const kept: string[] = [''];
      let begun = -1;
      let count = 0;
      let isCut = false;
      const simulation: Simulation = createSimulatedHost({
        seed,
        onOperation: ({ path }) => {
          if (begun < 0 || !path.startsWith(FOLDER) || isCut || count++ !== cutAt) return;
          isCut = true;
          simulation.powerLoss();
        },
      });
      const work = async (): Promise<void> => {
        await images(simulation.host, 'a');
        await simulation.host.files.syncDirectory('/tmp');
        begun = 0;
        const { engine, execute } = await boot(simulation.host);
        const bodyOf = (): string => formatJson(describeEngine(engine, PROGRAM));
        kept.push(bodyOf());
        for (const [command, args] of CHANGES) {
          await execute(command, args);
          kept.push(bodyOf());
        }
      };
      await simulation.run(() => Promise.race([work().catch(() => undefined), simulation.powerLost]));
      if (!isCut) return { kept, count, left: '' };
      simulation.reboot();
      let left = '';
      await simulation.run(async () => {
        const store = await StateStore.open(simulation.host, FOLDER);
        const saved = await store.read();
        left = saved === undefined ? '' : formatJson(saved);
        await store.close();
      });
      return { kept, count, left };
    };
    const { kept: all, count } = await run(11, undefined);
    const named = (text: string): string => sorted(text).replace(/#block\d+/g, '#block');
    const known = new Set(all.map(named));
    const seen = new Set<string>();
    assert.ok(count > 30);
    for (let cutAt = 0; cutAt < count; cutAt++) {
      const { kept, left } = await run(11, cutAt);
      assert.ok(known.has(named(left)), `cut at ${cutAt}: a state that never was: ${left}`);
      // What was answered is there; what was not may be.
      const at = all.map(named).lastIndexOf(named(left));
      const done = all.map(named).lastIndexOf(named(kept.at(-1) ?? ''));
      assert.ok(at >= done && at <= done + 1, `cut at ${cutAt}: state ${at} after ${done} commands`);
      seen.add(named(left));
    }
    assert.ok(seen.size > CHANGES.length - 2);
  },
);

test('a bitmap in a side file outlives crashes that follow one another, with no write between them', () =>
  simulated(12, async ({ simulation, start, kill }) => {
    const { files } = simulation.host;
    const file = await files.open('/tmp/side.raw', { write: true, create: true });
    await file.truncate(DISK_BYTES);
    await file.close();
    const first = await start();
    const raw = { driver: 'raw', 'node-name': 's', file: { driver: 'file', filename: '/tmp/side.raw' } };
    await first.execute('blockdev-add', raw);
    await first.execute('device_add', { driver: 'virtio-blk-pci', drive: 's', id: 'v0' });
    const ensure = { name: 'b', disks: [{ node: 's', file: '/tmp/side.bits' }] };
    const [made] = (await first.execute('x-bitmap-ensure', ensure)) as JsonObject[];
    await first.engine.host.clock.sleep(5000);
    await first.engine.devices.get('v0')?.backend.write(65536, Buffer.alloc(512, 7), 0);
    await kill();
    for (let crash = 0; crash < 3; crash++) {
      const { execute, told, engine } = await start();
      const [kept] = (await execute('x-bitmap-ensure', ensure)) as JsonObject[];
      assert.equal(kept?.['status'], 'usable', `crash ${crash}`);
      assert.deepEqual([kept['since'], kept['id']], [made?.['since'], made?.['id']], `crash ${crash}`);
      assert.deepEqual(told, []);
      const { extents } = (await execute('x-bitmap-extents', { node: 's', name: 'b' })) as {
        extents: JsonObject[];
      };
      assert.equal(extents.length, 1);
      await engine.host.clock.sleep(5000);
      await kill();
    }
  }));
