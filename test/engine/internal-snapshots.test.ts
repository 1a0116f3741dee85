import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';
import { toolAnswer } from '../kit/tool-answer.js';
import { EngineBed } from './engine-bed.js';

const SECTOR = 512;

async function img(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await toolAnswer((out) =>
    imgMain(args, out, createRealHost(), allDrivers),
  );
  assert.equal(code, 0, `${args.join(' ')}: ${stdout}${stderr}`);
  return stdout;
}

const names = (bed: EngineBed, node: string): string[] =>
  (bed.engine.graph.node(node).instance.snapshots?.list ?? []).map(({ name }) => name);

const hmp = async (bed: EngineBed, line: string): Promise<string> =>
  (await bed.execute('human-monitor-command', { 'command-line': line })) as string;

const take = (device: string, name: string): JsonObject => ({
  type: 'blockdev-snapshot-internal-sync',
  data: { device, name },
});

/** Waits until the job has concluded; answers its error, and dismisses it. */
async function outcome(bed: EngineBed, command: string, args: JsonObject): Promise<string | undefined> {
  await bed.execute(command, { 'job-id': 'j', ...args });
  const job = bed.engine.jobs.find('j');
  assert.ok(job);
  await job.concluded;
  const { error } = job;
  await bed.execute('job-dismiss', { id: 'j' });
  return error;
}

test('a snapshot taken while the guest writes is of one moment, and keeps it', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  const backend = bed.engine.devices.get('virtio0')?.backend;
  assert.ok(backend);
  let written = 0;
  let isOver = false;
  const guest = (async () => {
    while (!isOver) {
      const sector = Buffer.alloc(SECTOR);
      sector.writeUInt32LE(written + 1);
      await backend.write(((written * 37) % 4096) * SECTOR, sector);
      written++;
      // Writes into memory are done at once: nobody else would have a turn.
      if (written % 100 === 0) await new Promise(setImmediate);
    }
  })();
  const bounds = new Map<string, [number, number]>();
  for (const name of ['one', 'two', 'three']) {
    const before = written;
    while (written < before + 500) await new Promise((resolve) => setImmediate(resolve));
    const from = written;
    await bed.execute('blockdev-snapshot-internal-sync', { device: 'A', name });
    bounds.set(name, [from, written + 1]);
  }
  await bed.execute('blockdev-snapshot-delete-internal-sync', { device: 'A', name: 'two' });
  isOver = true;
  await guest;
  await bed.engine.close();
  for (const name of ['one', 'three']) {
    await img('convert', '-l', `snapshot.name=${name}`, '-O', 'raw', bed.path('A.qcow2'), bed.path('raw'));
    const content = readFileSync(bed.path('raw'));
    let last = 0;
    for (let at = 0; at < 4096 * SECTOR; at += SECTOR) last = Math.max(last, content.readUInt32LE(at));
    const [from, to] = bounds.get(name) ?? [0, 0];
    assert.ok(last >= from && last <= to, `${name}: ${last} of ${from} to ${to}`);
    // All before the last one are there.
    const expected = Buffer.alloc(4096 * SECTOR);
    for (let i = 0; i < last; i++) expected.writeUInt32LE(i + 1, ((i * 37) % 4096) * SECTOR);
    assert.ok(content.subarray(0, expected.length).equals(expected), name);
  }
  assert.match(await img('check', bed.path('A.qcow2')), /^No errors were found/);
});

test('a transaction that fails leaves no snapshot; one that does not has all at one moment', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('B');
  const abort = { type: 'abort', data: {} };
  await bed.refusal('transaction', { actions: [take('A', 's'), take('B', 's'), abort] });
  assert.deepEqual([names(bed, 'A'), names(bed, 'B')], [[], []]);
  assert.equal(
    await bed.refusal('transaction', { actions: [take('A', 's'), take('A', 's')] }),
    "Snapshot with name 's' already exists on device 'A'",
  );
  assert.deepEqual(names(bed, 'A'), []);
  await bed.execute('transaction', { actions: [take('A', 's'), take('B', 's')] });
  assert.deepEqual([names(bed, 'A'), names(bed, 'B')], [['s'], ['s']]);
  const info = await bed.execute('blockdev-snapshot-delete-internal-sync', { device: 'A', id: '1' });
  assert.equal((info as JsonObject)['name'], 's');
});

test('what cannot have a snapshot says so, before anything is done', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.engine.addNode({ driver: 'null-co', 'node-name': 'n', size: 1024 });
  const refused = (device: string, name: string): Promise<string> =>
    bed.refusal('blockdev-snapshot-internal-sync', { device, name });
  assert.equal(
    await refused('n', 's'),
    "Block format 'null-co' used by device 'n' does not support internal snapshots",
  );
  assert.equal(await refused('A', ''), 'Name is empty');
  await bed.execute('blockdev-reopen', {
    options: [
      {
        driver: 'qcow2',
        'node-name': 'A',
        'read-only': true,
        file: bed.engine.graph.node('A').child('file').node.name,
      },
    ],
  });
  assert.equal(await refused('A', 's'), "Device 'A' is read only");
});

test('an image below another one has no snapshots taken or deleted: who stands on it would not go back with it', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  await bed.execute('blockdev-snapshot-internal-sync', { device: 'A', name: 's' });
  const overlay = { 'node-name': 'A', 'snapshot-file': bed.path('B'), 'snapshot-node-name': 'B' };
  await bed.execute('blockdev-snapshot-sync', { ...overlay, format: 'qcow2' });
  for (const name of ['s', 't', '']) {
    const refused = 'Need a root block node';
    assert.equal(await bed.refusal('blockdev-snapshot-internal-sync', { device: 'A', name }), refused);
    assert.equal(await bed.refusal('blockdev-snapshot-delete-internal-sync', { device: 'A', name }), refused);
    assert.equal(await bed.refusal('transaction', { actions: [take('A', name)] }), refused);
  }
  assert.deepEqual(names(bed, 'A'), ['s']);
});

test('savevm and loadvm take the disks there and back; delvm frees them', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('B');
  await bed.device('A');
  await bed.guest('write -P 1 0 64k');
  assert.equal(await hmp(bed, 'info snapshots'), 'There is no snapshot available.\r\n');
  assert.equal(await hmp(bed, 'savevm one'), '');
  await bed.guest('write -P 2 0 64k');
  assert.equal(await hmp(bed, 'savevm two'), '');
  await bed.execute('blockdev-snapshot-internal-sync', { device: 'A', name: 'alone' });
  const table = await hmp(bed, 'info snapshots');
  assert.match(
    table,
    /^List of snapshots present on all disks:\r\nID .*\r\n-- +one +\d+ B .*\r\n-- +two .*\r\n\r\nList of partial \(non-loadable\) snapshots on 'A':\r\nID .*\r\n3 +alone /,
  );
  assert.equal(await hmp(bed, 'loadvm one'), '');
  await bed.guest('read -P 1 0 64k');
  assert.equal(await hmp(bed, 'loadvm two'), '');
  await bed.guest('read -P 2 0 64k');
  assert.equal(bed.engine.runState.status, 'running');
  const stops = bed.events.filter(({ event }) => event === 'STOP').length;
  assert.equal(bed.events.filter(({ event }) => event === 'RESUME').length, stops);
  assert.equal(stops, 4);
  assert.equal(await hmp(bed, 'delvm one'), '');
  assert.deepEqual([names(bed, 'A'), names(bed, 'B')], [['two', 'alone'], ['two']]);
  // Again: the former one goes.
  assert.equal(await hmp(bed, 'savevm two'), '');
  assert.deepEqual(names(bed, 'B'), ['two']);
  assert.equal(
    await hmp(bed, 'loadvm alone'),
    "Error: Snapshot 'alone' does not exist in one or more devices\r\n",
  );
  assert.equal(bed.engine.runState.status, 'restore-vm');
});

test('snapshots of a machine as jobs: what they refuse is told at their end', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('B');
  await bed.device('A');
  const places = { vmstate: 'A', devices: ['A', 'B'] };
  assert.equal(await outcome(bed, 'snapshot-save', { tag: 's', ...places }), undefined);
  assert.equal(
    await outcome(bed, 'snapshot-save', { tag: 's', ...places }),
    "Snapshot 's' already exists in one or more devices",
  );
  assert.equal(
    await outcome(bed, 'snapshot-save', { tag: 't', vmstate: 'x', devices: ['A'] }),
    "vmstate block device 'x' does not exist",
  );
  assert.equal(
    await outcome(bed, 'snapshot-save', { tag: 't', vmstate: 'A', devices: [] }),
    'At least one device is required for snapshot',
  );
  await bed.guest('write -P 7 0 64k');
  assert.equal(await outcome(bed, 'snapshot-load', { tag: 's', ...places }), undefined);
  await bed.guest('read -P 0 0 64k');
  await bed.execute('blockdev-snapshot-internal-sync', { device: 'A', name: 'disk' });
  assert.equal(
    await outcome(bed, 'snapshot-load', { tag: 'disk', vmstate: 'A', devices: ['A'] }),
    'This is a disk-only snapshot. Revert to it  offline using qemu-img',
  );
  assert.equal(await outcome(bed, 'snapshot-delete', { tag: 's', devices: ['A', 'B'] }), undefined);
  assert.deepEqual([names(bed, 'A'), names(bed, 'B')], [['disk'], []]);
});

test("the state of QEMU's own machine is refused by name, and nothing has changed", async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  const snapshots = bed.engine.graph.node('A').instance.snapshots;
  assert.ok(snapshots);
  const vmState = Buffer.from('QEVM\0\0\0\x03'.padEnd(5000, '.'), 'latin1');
  await snapshots.take({ name: 'q', dateSec: 1, dateNsec: 0, clockNs: 0n, icount: -1n, vmState });
  await bed.guest('write -P 3 0 64k');
  assert.equal(
    await hmp(bed, 'loadvm q'),
    "Error: The VM state of snapshot 'q' is QEMU's, which is not supported by livedisk\r\n" +
      'Go back to its disks offline with livedisk img snapshot -a\r\n',
  );
  await bed.execute('cont');
  await bed.guest('read -P 3 0 64k');
});

test('nobody goes back below those who rely on what the disk holds now, or on its size', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const places = { tag: 's', vmstate: 'A', devices: ['A'] };
  await bed.image('B');
  assert.equal(await outcome(bed, 'snapshot-save', places), undefined);
  const load = (): Promise<string | undefined> => outcome(bed, 'snapshot-load', places);
  const refused = (why: string): string => `Could not load snapshot 's' on 'A': ${why}`;

  await bed.execute('blockdev-add', {
    driver: 'copy-before-write',
    'node-name': 'cbw',
    file: 'A',
    target: 'B',
  });
  assert.equal(await load(), refused('Device has active dirty bitmaps'));
  await bed.execute('blockdev-del', { 'node-name': 'cbw' });
  assert.equal(await load(), undefined);

  await bed.snapshot('A', 'C');
  const top = { tag: 't', vmstate: 'C', devices: ['C'] };
  assert.equal(await outcome(bed, 'snapshot-save', top), undefined);
  await bed.execute('block-stream', { 'job-id': 'stream', device: 'C', speed: 1 });
  assert.match((await outcome(bed, 'snapshot-load', top)) ?? '', /is busy: .*stream/);
  await bed.execute('job-cancel', { id: 'stream' });
  await bed.event('BLOCK_JOB_CANCELLED', 'stream');
  assert.equal(await outcome(bed, 'snapshot-load', top), undefined);

  await bed.execute('block_resize', { 'node-name': 'C', size: 128 * 1024 * 1024 });
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'C' });
  assert.match((await outcome(bed, 'snapshot-load', top)) ?? '', /had another size, on which/);
  await bed.execute('block-export-del', { id: 'e' });
  assert.equal(await outcome(bed, 'snapshot-load', top), undefined);
});
