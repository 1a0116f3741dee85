import assert from 'node:assert/strict';
import { chmodSync, statSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { ALL_PERMISSIONS } from '../../src/block/permissions.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createSimulatedHost } from '../../src/host/simulated.js';
import { Engine } from '../../src/monitor/engine.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

interface Told {
  words: string[];
  refused: string[];
  bytes: number;
  zero: number;
  ends: string[];
  invalid: string[];
  space?: { path: string; needed: number; free: number };
  link?: { node: string; 'round-trip': number; rate?: number };
}

async function dryRun(bed: EngineBed, command: string, args: JsonObject): Promise<Told> {
  const answer = (await bed.execute(command, { ...args, 'x-dry-run': true })) as JsonObject;
  return answer['x-dry-run'] as unknown as Told;
}

/** All that queries tell of what a dry run is not to change. */
async function everything(bed: EngineBed): Promise<JsonValue[]> {
  const answers: JsonValue[] = [bed.engine.graph.generateName().replace(/\d{3}$/, '')];
  for (const query of ['query-named-block-nodes', 'x-debug-query-block-graph', 'query-jobs', 'query-block'])
    answers.push(await bed.execute(query));
  return answers;
}

/**
 * The chain of job-progress.test.ts: on 8 MiB, A holds data up to 4 MiB, B the second MiB, C the third, and zeroes in the
 * fourth. D is empty. T is a new target.
 */
async function newBed(t: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.guest('write -z 3M 1M');
  await bed.snapshot('C', 'D');
  await bed.image('T');
  return bed;
}

interface Case {
  command: string;
  args: JsonObject;
  ends: string[];
}

const CASES: { [name: string]: Case } = {
  stream: { command: 'block-stream', args: { device: 'D' }, ends: ['C', 'B', 'A'] },
  'stream onto a base': {
    command: 'block-stream',
    args: { device: 'D', 'base-node': 'A' },
    ends: ['C', 'B'],
  },
  commit: { command: 'block-commit', args: { device: 'D', 'top-node': 'C' }, ends: ['C', 'B'] },
  'active commit': { command: 'block-commit', args: { device: 'D' }, ends: ['D', 'C', 'B'] },
  mirror: {
    command: 'blockdev-mirror',
    args: { device: 'D', target: 'T', sync: 'full' },
    ends: ['D', 'C', 'B', 'A'],
  },
  backup: { command: 'blockdev-backup', args: { device: 'D', target: 'T', sync: 'full' }, ends: [] },
  'backup of a top': {
    command: 'blockdev-backup',
    args: { device: 'D', target: 'T', sync: 'top' },
    ends: [],
  },
};

for (const [name, { command, args, ends }] of Object.entries(CASES))
  test(`the dry run of a ${name} changes nothing and tells the numbers that the job then has`, async (t) => {
    const bed = await newBed(t);
    const before = await everything(bed);
    const events = bed.events.length;
    const told = await dryRun(bed, command, { ...args, 'job-id': 'j' });
    assert.deepEqual(await everything(bed), before);
    assert.equal(bed.events.length, events, 'an event was sent');
    assert.deepEqual(told.refused, []);
    assert.deepEqual(told.ends, ends);
    assert.ok(told.space, 'the target is a file');
    const sizeBefore = statSync(told.space.path).blocks * 512;
    await bed.execute(command, { ...args, 'job-id': 'j', 'auto-dismiss': false, 'auto-finalize': false });
    const job = bed.engine.jobs.find('j');
    assert.ok(job);
    if (ends.includes('D')) {
      await bed.event('BLOCK_JOB_READY', 'j');
      job.complete();
    }
    while (job.status !== 'pending') await new Promise((resolve) => setImmediate(resolve));
    const { dataBytes, zeroBytes } = job.progress();
    assert.deepEqual([told.bytes, told.zero], [dataBytes, zeroBytes]);
    job.finalize();
    await job.concluded;
    const grown = statSync(told.space.path).blocks * 512 - sizeBefore;
    assert.ok(Math.abs(grown - told.space.needed) <= MiB / 4, `${grown} for ${told.space.needed}`);
    const layers = await bed.layers();
    for (const gone of ends) assert.ok(!layers.includes(gone), `${gone} is still there`);
  });

test('what is in the way of a job is told in the words of its refusal, all of it at once', async (t) => {
  const bed = await newBed(t);
  await bed.execute('blockdev-backup', { device: 'D', target: 'T', sync: 'full', 'job-id': 'one', speed: 1 });
  const backup = { device: 'D', target: 'T', sync: 'full', 'job-id': 'one' };
  const [told] = (await dryRun(bed, 'blockdev-backup', backup)).refused;
  assert.equal(told, await bed.refusal('blockdev-backup', backup));
  for (const [command, args] of [
    ['block-stream', { device: 'D', 'base-node': 'X' }],
    ['block-commit', { device: 'X' }],
    ['block-commit', { device: 'D', 'base-node': 'D' }],
    ['blockdev-mirror', { device: 'D', target: 'D', sync: 'full' }],
    ['blockdev-mirror', { device: 'A', target: 'T', sync: 'full' }],
    ['blockdev-snapshot', { node: 'D', overlay: 'C' }],
    ['blockdev-snapshot-sync', { 'node-name': 'D', 'snapshot-file': bed.path('new') }],
    ['drive-mirror', { device: 'A', target: bed.path('new'), sync: 'full' }],
    ['drive-backup', { device: 'X', target: bed.path('new'), sync: 'full' }],
  ] as const) {
    const { refused } = await dryRun(bed, command, args);
    assert.deepEqual(refused, [await bed.refusal(command, args)], command);
  }
});

test('conflicts of permissions are found without a change', async (t) => {
  const bed = await newBed(t);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('socket') } } });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'T', writable: true });
  const mirror = { device: 'D', target: 'T', sync: 'full', 'job-id': 'j' };
  const { refused } = await dryRun(bed, 'blockdev-mirror', mirror);
  assert.deepEqual(refused, [await bed.refusal('blockdev-mirror', mirror)]);
  assert.match(refused[0] ?? '', /^Permission conflict on node 'T'/);
});

test('a target of another size is told before the job fails of it', async (t) => {
  const bed = await newBed(t);
  const filename = bed.path('S.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: 2 * DISK_BYTES });
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'S', file: { driver: 'file', filename } });
  const { refused } = await dryRun(bed, 'blockdev-mirror', { device: 'D', target: 'S', sync: 'full' });
  assert.match(refused.join(), /different sizes: 8388608 and 16777216 bytes/);
});

test('images that stand on what a commit changes are told', async (t) => {
  const bed = await newBed(t);
  const backing = { backingFile: bed.path('B.qcow2'), backingFormat: 'qcow2' };
  const other = bed.path('other.qcow2');
  await createImage(bed.engine.opener, other, 'qcow2', { sizeBytes: DISK_BYTES, ...backing });
  const commit = { device: 'D', 'top-node': 'C', 'job-id': 'j' };
  const told = await dryRun(bed, 'block-commit', commit);
  assert.deepEqual(told.invalid.length, 1);
  assert.match(told.invalid[0] ?? '', /other\.qcow2 stands on/);
  assert.deepEqual(told.refused, []);
  const guarded = await dryRun(bed, 'block-commit', { ...commit, 'x-protect-shared-bases': true });
  assert.match(guarded.refused.join(), /Shared bases are protected/);
});

test('a new target is not made; its room, format and folder are looked at', async (t) => {
  const bed = await newBed(t);
  const job = { device: 'D', 'job-id': 'j' };
  const target = bed.path('new.qcow2');
  const told = await dryRun(bed, 'drive-mirror', { ...job, target, sync: 'full', format: 'qcow2' });
  assert.deepEqual(told.refused, []);
  assert.deepEqual([told.bytes, told.zero], [3 * MiB, 5 * MiB]);
  assert.throws(() => statSync(target), /ENOENT/);
  const room = told.space?.needed ?? 0;
  assert.ok(room > 3 * MiB && room < 3.3 * MiB, String(room));
  writeFileSync(target, 'something');
  const over = await dryRun(bed, 'drive-backup', { ...job, target, sync: 'top', format: 'qcow2' });
  assert.match(over.words.join(), /is lost/);
  assert.equal(statSync(target).size, 9);
  const none = await dryRun(bed, 'drive-backup', { ...job, target: bed.path('no/x'), sync: 'full' });
  assert.match(none.refused.join(), /No such file or directory/);
  const format = await dryRun(bed, 'drive-backup', { ...job, target, sync: 'full', format: 'none' });
  assert.match(format.refused.join(), /Unknown file format 'none'/);
});

test('a file system with too little room for a copy is told before, with both numbers', async () => {
  const simulation = createSimulatedHost({ seed: 5 });
  await simulation.run(async () => {
    const { host } = simulation;
    const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
    for (const name of ['source', 'target']) {
      const filename = `/tmp/${name}`;
      await createImage(engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
      await engine.addNode({ driver: 'qcow2', 'node-name': name, file: { driver: 'file', filename } });
    }
    const guest = engine.graph.createBackend({ description: 'a guest', perm: 2, shared: ALL_PERMISSIONS });
    const source = engine.graph.node('source');
    await engine.graph.transaction((transaction) => void transaction.attach(guest, 'root', source));
    await guest.write(0, Buffer.alloc(4 * MiB, 1));
    simulation.limitSpace({ capacityBytes: simulation.usedBytes + 2 * MiB, tells: 'early' });
    const backup = { device: 'source', target: 'target', sync: 'full', 'job-id': 'j' } as const;
    const told = (await engine.execute('blockdev-backup', { ...backup, 'x-dry-run': true }))['x-dry-run'];
    assert.match(
      told?.refused.join() ?? '',
      /'\/tmp\/target' has too little room: 4\.\d MiB are needed, 2\.0 MiB/,
    );
    simulation.limitSpace({ capacityBytes: simulation.usedBytes + 5 * MiB, tells: 'early' });
    const fits = (await engine.execute('blockdev-backup', { ...backup, 'x-dry-run': true }))['x-dry-run'];
    assert.deepEqual(fits?.refused, []);
    simulation.limitSpace(undefined);
    await engine.graph.retire(guest);
    await engine.close();
  });
});

test('a file that this program may not write to is told', { skip: process.getuid?.() === 0 }, async (t) => {
  const bed = await newBed(t);
  chmodSync(bed.path('T.qcow2'), 0o444);
  const { refused } = await dryRun(bed, 'blockdev-mirror', { device: 'D', target: 'T', sync: 'full' });
  assert.match(refused.join(), /may not be written to/);
});

test('a target over a network is asked, and how fast it answers is told', async (t) => {
  const bed = await newBed(t);
  const server = { type: 'unix', path: bed.path('socket') };
  const { type, path } = server;
  await bed.execute('nbd-server-start', { addr: { type, data: { path } } });
  await bed.execute('block-export-add', {
    type: 'nbd',
    id: 'e',
    'node-name': 'T',
    name: 'e',
    writable: true,
  });
  await bed.execute('blockdev-add', { driver: 'nbd', 'node-name': 'N', server, export: 'e' });
  const backup = { device: 'D', target: 'N', sync: 'full', 'job-id': 'j' };
  const told = await dryRun(bed, 'blockdev-backup', backup);
  assert.deepEqual(told.refused, []);
  assert.equal(told.link?.node, 'N');
  assert.ok((told.link?.['round-trip'] ?? 0) > 0);
  assert.equal(told.link?.rate, undefined, 'nothing is there to be read');
  await bed.execute('human-monitor-command', { 'command-line': 'qemu-io T "write 0 4M"' });
  assert.ok(((await dryRun(bed, 'blockdev-backup', backup)).link?.rate ?? 0) > 0);
  await bed.execute('nbd-server-stop');
  assert.match((await dryRun(bed, 'blockdev-backup', backup)).refused.join(), /does not answer/);
});

test('x-dry-run is refused for an action of a transaction', async (t) => {
  const bed = await newBed(t);
  const data = { device: 'D', target: 'T', sync: 'full', 'job-id': 'j', 'x-dry-run': true };
  const text = await bed.refusal('transaction', { actions: [{ type: 'blockdev-backup', data }] });
  assert.match(text, /'x-dry-run' cannot be used/);
});
