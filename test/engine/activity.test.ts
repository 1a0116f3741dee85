import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, renameSync, truncateSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

/** Who an image belongs to: an engine that waits for a migration, and the one that has the image until then. */

const DIRTY_BIT = { at: 79, value: 1 };
const CORRUPT_BIT = { at: 79, value: 2 };
/** Of features that whoever does not know them forgets. */
const FEATURES_AT = 88;

async function options(bed: EngineBed, name: string, backing?: JsonObject): Promise<JsonObject> {
  const file = { driver: 'file', filename: bed.path(`${name}.qcow2`) };
  return { driver: 'qcow2', 'node-name': name, file, backing: backing ?? null };
}

/** [A] <-- [B] made and closed, and then open as inactive nodes of an engine with an NBD server. */
async function destination(t: TestContext, device = false): Promise<EngineBed> {
  const bed = new EngineBed(t, { incoming: true });
  for (const name of ['A', 'B', 'spare'])
    await createImage(bed.engine.opener, bed.path(`${name}.qcow2`), 'qcow2', {
      sizeBytes: DISK_BYTES,
      ...(name === 'B' && { backingFile: 'A.qcow2', backingFormat: 'qcow2' }),
    });
  await bed.execute('blockdev-add', await options(bed, 'B', await options(bed, 'A')));
  if (device) await bed.device('B');
  const data = { path: bed.path('nbd.sock') };
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data } });
  return bed;
}

const EXPORT = { type: 'nbd', id: 'x', 'node-name': 'B', writable: true };

/** Another engine, on the images of `bed`. */
async function source(t: TestContext, bed: EngineBed): Promise<EngineBed> {
  const other = new EngineBed(t);
  await other.execute('blockdev-add', await options(bed, 'B', await options(bed, 'A')));
  return other;
}

async function io(bed: EngineBed, command: string, node = 'B'): Promise<string> {
  const before = bed.printed.length;
  const line = `qemu-io ${node} "${command}"`;
  const said = await bed.execute('human-monitor-command', { 'command-line': line });
  return [...bed.printed.slice(before), said as string].join('\n');
}

function setByte(path: string, { at, value }: { at: number; value: number }): void {
  const bytes = readFileSync(path);
  bytes[at] = value;
  writeFileSync(path, bytes);
}

function activities({ engine }: EngineBed): string[] {
  return [...engine.graph.nodes.values()].map(({ activity }) => activity);
}

/** Why an activation fails, the words for it, and how the cause goes. */
const CAUSES: Array<
  [string, RegExp, (bed: EngineBed, t: TestContext) => Promise<() => Promise<void> | void>]
> = [
  [
    'it was not closed with lazy refcounts',
    /^Could not reopen qcow2 layer: qcow2: Image is dirty/,
    async (bed) => {
      setByte(bed.path('B.qcow2'), DIRTY_BIT);
      return () => setByte(bed.path('B.qcow2'), { ...DIRTY_BIT, value: 0 });
    },
  ],
  [
    'it is marked corrupt',
    /^Could not reopen qcow2 layer: qcow2: Image is corrupt; cannot be opened read\/write$/,
    async (bed) => {
      setByte(bed.path('B.qcow2'), CORRUPT_BIT);
      return () => setByte(bed.path('B.qcow2'), { ...CORRUPT_BIT, value: 0 });
    },
  ],
  [
    'it is no qcow2 image any more',
    /^Could not reopen qcow2 layer: Image is not in qcow2 format$/,
    async (bed) => {
      setByte(bed.path('B.qcow2'), { at: 0, value: 1 });
      return () => setByte(bed.path('B.qcow2'), { at: 0, value: 0x51 });
    },
  ],
  [
    'its backing file is broken',
    /^Could not reopen qcow2 layer: Image is not in qcow2 format$/,
    async (bed) => {
      setByte(bed.path('A.qcow2'), { at: 0, value: 1 });
      return () => setByte(bed.path('A.qcow2'), { at: 0, value: 0x51 });
    },
  ],
  [
    'another engine has it',
    /^Failed to get "write" lock$/,
    async (bed, t) => {
      const other = await source(t, bed);
      return () => other.engine.close();
    },
  ],
  [
    'another engine has its backing file',
    /^Failed to get shared "write" lock$/,
    async (bed, t) => {
      const other = new EngineBed(t);
      await other.execute('blockdev-add', await options(bed, 'A'));
      return () => other.engine.close();
    },
  ],
];

for (const [what, words, cause] of CAUSES) {
  test(`an image is not ours while ${what}: each try says so, and none changes anything`, async (t) => {
    const bed = await destination(t, true);
    const mend = await cause(bed, t);
    const said = new Set<string>();
    for (let i = 0; i < 2; i++) {
      said.add(await bed.refusal('block-export-add', EXPORT));
      said.add(await bed.refusal('nbd-server-add', { device: 'B', writable: true }));
      said.add(await bed.refusal('cont'));
      assert.deepEqual(new Set(activities(bed)), new Set(['inactive']));
      assert.match(await io(bed, 'write 0 64k'), /^Block node is read-only$/m);
      assert.match(await io(bed, 'read -P 0 0 64k'), /^read 65536\/65536/m);
    }
    assert.equal(said.size, 1, [...said].join('\n'));
    assert.match([...said][0] ?? '', words);
    await mend();
    await bed.execute('block-export-add', EXPORT);
    assert.match(await io(bed, 'write -P 9 0 64k'), /^wrote/m);
    await io(bed, 'flush');
    assert.deepEqual(new Set(activities(bed)), new Set(['active']));
    await bed.engine.close();
    const reader = await source(t, bed);
    assert.match(await io(reader, 'read -P 9 0 64k'), /^read/m);
  });
}

test('after a failed activation no lock stays: others may write every image of the chain', async (t) => {
  const bed = await destination(t);
  setByte(bed.path('B.qcow2'), CORRUPT_BIT);
  await bed.refusal('block-export-add', EXPORT);
  setByte(bed.path('B.qcow2'), { ...CORRUPT_BIT, value: 0 });
  const other = await source(t, bed);
  assert.match(await io(other, 'write -P 4 1M 64k'), /^wrote/m);
  await other.engine.close();
  const base = new EngineBed(t);
  await base.execute('blockdev-add', await options(bed, 'A'));
  assert.match(await io(base, 'write -P 5 2M 64k', 'A'), /^wrote/m);
  await base.engine.close();
  await bed.execute('cont');
  for (const check of ['read -P 4 1M 64k', 'read -P 5 2M 64k'])
    assert.doesNotMatch(await io(bed, check), /failed/);
});

test('what another engine has made of an image is what is activated', async (t) => {
  const bed = await destination(t, true);
  const other = await source(t, bed);
  await io(other, 'write -P 6 7M 64k');
  await other.execute('block_resize', { 'node-name': 'B', size: 2 * DISK_BYTES });
  await io(other, 'write -P 7 12M 64k');
  await other.engine.close();
  await bed.execute('block-dirty-bitmap-add', { node: 'B', name: 'all' });
  assert.equal(bed.engine.graph.node('B').lengthBytes, DISK_BYTES);
  await bed.execute('cont');
  assert.equal(bed.engine.graph.node('B').lengthBytes, 2 * DISK_BYTES);
  assert.doesNotMatch(await io(bed, 'read -P 7 12M 64k'), /failed/);
  await bed.guest('write -P 8 15M 64k');
  await bed.guest('read -P 6 7M 64k');
  assert.equal(bed.engine.graph.node('B').findBitmap('all')?.dirtyBytes, 65536);
});

test('an image that becomes ours does not say any more that it has features that we do not know', async (t) => {
  const bed = await destination(t);
  setByte(bed.path('B.qcow2'), { at: FEATURES_AT, value: 0xff });
  await bed.execute('cont');
  await bed.engine.close();
  assert.equal(readFileSync(bed.path('B.qcow2'))[FEATURES_AT], 0);
});

test('an image that was put in the place of another stays out', async (t) => {
  const bed = await destination(t);
  copyFileSync(bed.path('B.qcow2'), bed.path('new.qcow2'));
  renameSync(bed.path('new.qcow2'), bed.path('B.qcow2'));
  // As in QEMU, the file that was opened is the image.
  await bed.execute('block-export-add', EXPORT);
  assert.match(await io(bed, 'write -P 9 0 64k'), /^wrote/m);
  assert.doesNotMatch(await io(bed, 'read -P 9 0 64k'), /failed/);
});

test('a file that is opened again to be written is read again too', async (t) => {
  const bed = new EngineBed(t, { incoming: true });
  const filename = bed.path('B.qcow2');
  const make = (path: string): Promise<void> =>
    createImage(bed.engine.opener, path, 'qcow2', { sizeBytes: DISK_BYTES });
  await make(filename);
  const file = { driver: 'file', filename, 'auto-read-only': true };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'B', file });
  // Another image comes to the same place, with tables of its own.
  await make(bed.path('new'));
  const other = new EngineBed(t);
  const otherFile = { driver: 'file', filename: bed.path('new') };
  await other.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'B', file: otherFile });
  await io(other, 'write -P 7 0 3M');
  await other.engine.close();
  renameSync(bed.path('new'), filename);
  await bed.execute('cont');
  assert.doesNotMatch(await io(bed, 'read -P 7 0 3M'), /failed/);
  await io(bed, 'write -P 8 5M 1M');
  await bed.engine.close();
  const reader = new EngineBed(t);
  await reader.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'B', file });
  for (const check of ['read -P 7 0 3M', 'read -P 8 5M 1M']) assert.match(await io(reader, check), /^read/m);
  assert.deepEqual(
    reader.printed.filter((line) => /failed/.test(line)),
    [],
  );
});

test('a raw file that another process has made longer is as long as it is when it becomes ours', async (t) => {
  const bed = new EngineBed(t, { incoming: true });
  writeFileSync(bed.path('r'), Buffer.alloc(MiB));
  const file = { driver: 'file', filename: bed.path('r') };
  await bed.execute('blockdev-add', { driver: 'raw', 'node-name': 'r', file });
  truncateSync(bed.path('r'), 3 * MiB);
  await bed.execute('cont');
  assert.equal(bed.engine.graph.node('r').lengthBytes, 3 * MiB);
  assert.match(await io(bed, 'write 2M 1M', 'r'), /^wrote/m);
});

/** Every command that writes or starts a job, on the disk of a guest that is still elsewhere. */
const READ_ONLY = 'Block node is read-only';
const REFUSED: Array<[string, JsonObject, string]> = [
  ['block-stream', { 'job-id': 'j', device: 'B' }, `Could not create node: ${READ_ONLY}`],
  ['block-commit', { 'job-id': 'j', device: 'B' }, READ_ONLY],
  ['blockdev-mirror', { 'job-id': 'j', device: 'B', target: 'spare', sync: 'full' }, READ_ONLY],
  ['blockdev-mirror', { 'job-id': 'j', device: 'spare', target: 'B', sync: 'full' }, READ_ONLY],
  ['drive-mirror', { 'job-id': 'j', device: 'B', target: 'PATH/t', sync: 'full' }, READ_ONLY],
  [
    'blockdev-backup',
    { 'job-id': 'j', device: 'B', target: 'spare', sync: 'none' },
    `Could not create node: ${READ_ONLY}`,
  ],
  [
    'drive-backup',
    { 'job-id': 'j', device: 'B', target: 'PATH/t', sync: 'full' },
    `Could not create node: ${READ_ONLY}`,
  ],
  [
    'block_resize',
    { 'node-name': 'B', size: 2 * DISK_BYTES },
    "Permission 'resize' unavailable on inactive node",
  ],
  ['change-backing-file', { device: 'B', 'image-node-name': 'B', 'backing-file': 'x' }, READ_ONLY],
];

for (const device of [false, true]) {
  test(`an inactive image takes no jobs and no writes${device ? ', with a guest for it' : ''}`, async (t) => {
    const bed = await destination(t, device);
    await bed.execute('blockdev-add', await options(bed, 'spare'));
    const before = readFileSync(bed.path('B.qcow2'));
    for (const [command, args, words] of REFUSED) {
      const given = JSON.parse(JSON.stringify(args).replaceAll('PATH', bed.folder)) as JsonObject;
      assert.equal(await bed.refusal(command, given), words, command);
    }
    for (const command of ['write 0 64k', 'write -z 0 64k', 'discard 0 64k', 'truncate 9M'])
      assert.match(await io(bed, command), /Block node is read-only/, command);
    if (device) await assert.rejects(bed.guest('write 0 64k'));
    const job = { 'job-id': 'c', options: { driver: 'qcow2', file: 'spare', size: 65536 } };
    await bed.execute('blockdev-create', job);
    await bed.engine.jobs.find('c')?.concluded;
    assert.equal(bed.engine.jobs.find('c')?.error, READ_ONLY);
    assert.deepEqual(readFileSync(bed.path('B.qcow2')), before);
    // Bitmaps, reading exports and overlays are fine.
    await bed.execute('block-dirty-bitmap-add', { node: 'B', name: 'b' });
    await bed.snapshot('B', 'C');
    assert.deepEqual(new Set(activities(bed)), new Set(['inactive']));
  });
}

test('an export that only reads does not need the image to be ours', async (t) => {
  const bed = await destination(t);
  await source(t, bed);
  await bed.execute('block-export-add', { ...EXPORT, writable: false });
  assert.equal(bed.engine.graph.node('B').activity, 'inactive');
});

test("a guest's disk is written once it is ours, also before the guest has come", async (t) => {
  const bed = await destination(t, true);
  await bed.execute('block-export-add', EXPORT);
  await bed.guest('write -P 3 0 64k');
  await bed.guest('read -P 3 0 64k');
});

// ---- and back

test('an image goes to another engine and comes back, with what both have written', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  const top = bed.engine.graph.node('A');
  assert.match(await io(bed, 'write -P 1 0 1M', 'A'), /^wrote/m);
  await bed.engine.inactivate(top);
  await bed.engine.inactivate(top);
  assert.match(await io(bed, 'write 0 64k', 'A'), /Block node is read-only/);
  assert.equal(await io(bed, 'flush', 'A'), '');
  const other = new EngineBed(t);
  await other.execute('blockdev-add', await options(bed, 'A'));
  assert.doesNotMatch(await io(other, 'read -P 1 0 1M', 'A'), /failed/);
  await io(other, 'write -P 2 1M 1M', 'A');
  const taken = { kind: 'busy', message: 'Failed to get "write" lock' };
  await assert.rejects(bed.engine.activate(top), taken);
  await assert.rejects(bed.engine.addDevice('A', { id: 'v' }), taken);
  assert.equal(bed.engine.devices.size, 0);
  await other.engine.close();
  await bed.engine.addDevice('A', { id: 'v' });
  assert.doesNotMatch(await io(bed, 'read -P 2 1M 1M', 'A'), /failed/);
});

test('what somebody writes, or stands on, is not given away', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const [a, b] = [bed.engine.graph.node('A'), bed.engine.graph.node('B')];
  await assert.rejects(bed.engine.inactivate(b), { kind: 'busy', message: /guest that runs/ });
  await bed.execute('stop');
  await assert.rejects(bed.engine.inactivate(a), { message: 'Node has active parent node' });
  await bed.execute('block-stream', { 'job-id': 's', device: 'B', speed: 1 });
  await assert.rejects(bed.engine.inactivate(b), { message: 'Node has active parent node' });
  await bed.execute('job-cancel', { id: 's' });
  await bed.event('BLOCK_JOB_CANCELLED', 's');
  await bed.image('other');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  await bed.execute('block-export-add', { ...EXPORT, 'node-name': 'other' });
  const other = bed.engine.graph.node('other');
  const message = 'Failed to inactivate node: Operation not permitted';
  await assert.rejects(bed.engine.inactivate(other), { message });
  assert.deepEqual(new Set(activities(bed)), new Set(['active']));
  await bed.engine.inactivate(b);
  const raw = { driver: 'raw', 'node-name': 'r', file: 'B' };
  assert.equal(await bed.refusal('blockdev-add', raw), "Inactive 'B' can't be a file child of active 'r'");
  await assert.rejects(bed.guest('write 0 64k'));
  await bed.execute('cont');
  await bed.guest('write -P 5 0 64k');
});

test('blockdev-set-active gives nodes away and takes them back, one with all below it or every node', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.image('B', { backing: 'A' });
  await bed.image('C');
  const setActive = (args: JsonObject): Promise<unknown> => bed.execute('blockdev-set-active', args);
  const states = (): string =>
    ['A', 'B', 'C'].filter((name) => bed.engine.graph.node(name).activity === 'active').join('');
  await setActive({ active: false });
  assert.equal(states(), '');
  await setActive({ active: true });
  assert.equal(states(), 'ABC');
  for (let again = 0; again < 2; again++) {
    await setActive({ 'node-name': 'B', active: false });
    assert.equal(states(), 'C');
  }
  await setActive({ 'node-name': 'A', active: true });
  assert.equal(states(), 'AC');
  await setActive({ 'node-name': 'B', active: true });
  const refusal = (args: JsonObject): Promise<string> => bed.refusal('blockdev-set-active', args);
  assert.equal(await refusal({}), "Parameter 'active' is missing");
  assert.equal(
    await refusal({ 'node-name': 'nope', active: true }),
    "Failed to find node with node-name='nope'",
  );
  assert.equal(await refusal({ 'node-name': 'A', active: false }), 'Node has active parent node');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
  await bed.execute('block-export-add', { ...EXPORT, 'node-name': 'C' });
  const why = 'Operation not permitted';
  assert.equal(await refusal({ 'node-name': 'C', active: false }), `Failed to inactivate node: ${why}`);
  assert.equal(await refusal({ active: false }), `Failed to inactivate all nodes: ${why}`);
  assert.equal(states(), 'ABC');
  await bed.execute('block-export-del', { id: EXPORT.id, mode: 'hard' });
  await bed.execute('block-export-add', { type: 'nbd', id: 'reader', 'node-name': 'C' });
  await setActive({ active: false });
  assert.equal(states(), '');
});
