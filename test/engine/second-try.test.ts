import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { Node } from '../../src/block/node.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

interface SecondTry {
  command: string;
  /** Refused, or fails half way. */
  wrong: JsonObject;
  /** With the same names; to be done after the failure as if that had not been. */
  right: JsonObject;
}

const NOWHERE = '/nonexistent/x.qcow2';
const job = { 'job-id': 'j' };
const file = (filename: string): JsonObject => ({ driver: 'file', filename });

/** On the chain A, B, C of a device, with disks E and F of the same size, `spare` longer, and a bitmap b on C. */
function triesOf(path: (name: string) => string): SecondTry[] {
  const full = { ...job, sync: 'full' };
  const snapshot = { 'node-name': 'C', 'snapshot-node-name': 'S', format: 'qcow2' };
  const good = { ...snapshot, 'snapshot-file': path('S.qcow2') };
  const incremental = { ...job, device: 'C', target: 'E', sync: 'incremental', bitmap: 'b' };
  const backup = { type: 'blockdev-backup', data: { ...full, device: 'C', target: 'E' } };
  const unix = (name: string): JsonObject => ({ addr: { type: 'unix', data: { path: name } } });
  const node = { driver: 'qcow2', 'node-name': 'new' };
  const opened = { ...node, file: file(path('unopened.qcow2')) };
  return [
    { command: 'nbd-server-start', wrong: unix('/nonexistent/s'), right: unix(path('second.sock')) },
    { command: 'blockdev-add', wrong: { ...node, file: file(NOWHERE) }, right: opened },
    { command: 'blockdev-add', wrong: { ...node, file: file(path('text')) }, right: opened },
    { command: 'blockdev-add', wrong: { ...opened, backing: 'nope' }, right: opened },
    { command: 'blockdev-add', wrong: { ...opened, backing: 'new' }, right: opened },
    { command: 'blockdev-snapshot-sync', wrong: { ...snapshot, 'snapshot-file': NOWHERE }, right: good },
    { command: 'blockdev-snapshot-sync', wrong: { ...good, 'snapshot-node-name': '1st' }, right: good },
    {
      command: 'blockdev-snapshot',
      wrong: { node: 'C', overlay: 'B' },
      right: { node: 'C', overlay: 'F' },
    },
    {
      command: 'drive-mirror',
      wrong: { ...full, device: 'C', target: NOWHERE, 'node-name': 'M' },
      right: { ...full, device: 'C', target: path('M.qcow2'), 'node-name': 'M' },
    },
    {
      command: 'drive-mirror',
      wrong: { ...full, device: 'C', target: path('M.qcow2'), 'node-name': 'M', granularity: 3 },
      right: { ...full, device: 'C', target: path('M.qcow2'), 'node-name': 'M' },
    },
    {
      command: 'drive-mirror',
      wrong: { ...full, 'job-id': '1st', device: 'C', target: path('M.qcow2'), 'node-name': 'M' },
      right: { ...full, device: 'C', target: path('M.qcow2'), 'node-name': 'M' },
    },
    {
      command: 'drive-backup',
      wrong: { ...full, device: 'C', target: NOWHERE },
      right: { ...full, device: 'C', target: path('M.qcow2') },
    },
    {
      command: 'drive-backup',
      wrong: { ...full, device: 'C', target: path('M.qcow2'), 'job-id': '1st' },
      right: { ...full, device: 'C', target: path('M.qcow2') },
    },
    {
      command: 'drive-backup',
      wrong: { ...job, device: 'C', target: path('M.qcow2'), sync: 'none', speed: -1 },
      right: { ...job, device: 'C', target: path('M.qcow2'), sync: 'none' },
    },
    {
      command: 'blockdev-mirror',
      wrong: { ...full, device: 'C', target: 'E', 'filter-node-name': 'A' },
      right: { ...full, device: 'C', target: 'E', 'filter-node-name': 'top' },
    },
    {
      command: 'blockdev-mirror',
      wrong: { ...full, device: 'C', target: 'E', speed: -1 },
      right: { ...full, device: 'C', target: 'E' },
    },
    {
      command: 'blockdev-mirror',
      wrong: { ...full, device: 'C', target: 'exported' },
      right: { ...full, device: 'C', target: 'E' },
    },
    {
      command: 'blockdev-backup',
      wrong: { ...full, device: 'C', target: 'spare' },
      right: { ...full, device: 'C', target: 'E' },
    },
    {
      command: 'blockdev-backup',
      wrong: { ...incremental, 'filter-node-name': 'A' },
      right: { ...incremental, 'filter-node-name': 'top' },
    },
    { command: 'blockdev-backup', wrong: { ...incremental, speed: -1 }, right: incremental },
    {
      command: 'block-stream',
      wrong: { ...job, device: 'C', 'filter-node-name': 'A' },
      right: { ...job, device: 'C', 'filter-node-name': 'top' },
    },
    { command: 'block-stream', wrong: { ...job, device: 'C', speed: -1 }, right: { ...job, device: 'C' } },
    {
      command: 'block-commit',
      wrong: { ...job, device: 'C', 'top-node': 'B', 'filter-node-name': 'A' },
      right: { ...job, device: 'C', 'top-node': 'B', 'filter-node-name': 'top' },
    },
    {
      command: 'block-commit',
      wrong: { ...job, device: 'C', speed: -1 },
      right: { ...job, device: 'C' },
    },
    {
      command: 'block-export-add',
      wrong: { type: 'nbd', id: 'e', name: 'x', 'node-name': 'C', writable: true },
      right: { type: 'nbd', id: 'e', name: 'x', 'node-name': 'C' },
    },
    {
      command: 'block-export-add',
      wrong: { type: 'nbd', id: 'e', name: 'other', 'node-name': 'C' },
      right: { type: 'nbd', id: 'e', name: 'x', 'node-name': 'C' },
    },
    {
      command: 'block_resize',
      wrong: { 'node-name': 'E', size: 2 ** 52 },
      right: { 'node-name': 'E', size: 2 * DISK_BYTES },
    },
    {
      command: 'block_resize',
      wrong: { 'node-name': 'exported', size: 2 * DISK_BYTES },
      right: { 'node-name': 'E', size: 2 * DISK_BYTES },
    },
    {
      command: 'block-dirty-bitmap-add',
      wrong: { node: 'C', name: 'n', granularity: 3 },
      right: { node: 'C', name: 'n' },
    },
    {
      command: 'transaction',
      wrong: {
        actions: [
          { type: 'blockdev-snapshot-sync', data: good },
          { type: 'abort', data: {} },
        ],
      },
      right: { actions: [{ type: 'blockdev-snapshot-sync', data: good }] },
    },
    {
      command: 'transaction',
      wrong: {
        actions: [backup, { type: 'blockdev-backup', data: { ...full, device: 'B', target: 'nope' } }],
      },
      right: { actions: [backup] },
    },
  ];
}

/** All that a command may leave behind. */
function shapeOf(bed: EngineBed): unknown {
  const { graph, jobs, exports, devices } = bed.engine;
  const nodes = [...graph.nodes.values()].map((node) => ({
    name: node.name,
    parents: [...node.parents].map(({ parent, role, perm, shared, frozen }) => {
      return [parent instanceof Node ? parent.name : parent.description, role, perm, shared, frozen];
    }),
    state: [node.readOnly, node.isClosing, node.isBlocked, node.monitorOwned, node.quiesceCount, node.gate],
    bitmaps: node.dirtyBitmaps.map(({ name, busy, enabled, dirtyBytes }) => [
      name,
      busy,
      enabled,
      dirtyBytes,
    ]),
    length: node.lengthBytes,
    backing: node.backingFilename,
  }));
  return {
    nodes: nodes.sort((a, b) => (a.name < b.name ? -1 : 1)),
    backends: [...graph.backends].map(({ description, quiesceCount }) => [description, quiesceCount]),
    jobs: jobs.list().map(({ id }) => id),
    exports: exports.list(),
    devices: [...devices.keys()],
  };
}

async function newBed(...[context]: ConstructorParameters<typeof EngineBed>): Promise<EngineBed> {
  const bed = new EngineBed(context);
  await bed.chain('A', 'B', 'C');
  writeFileSync(bed.path('text'), 'no image');
  for (const name of ['E', 'F', 'exported', 'unopened', 'spare']) await bed.image(name);
  await bed.execute('blockdev-del', { 'node-name': 'unopened' });
  await bed.execute('block_resize', { 'node-name': 'spare', size: 2 * DISK_BYTES });
  await bed.execute('block-dirty-bitmap-add', { node: 'C', name: 'b' });
  return bed;
}

async function serve(bed: EngineBed): Promise<void> {
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd.sock') } } });
  const common = { type: 'nbd', writable: true };
  await bed.execute('block-export-add', { ...common, id: 'user', 'node-name': 'exported', name: 'other' });
}

for (const [index, { command, wrong }] of triesOf((name) => name).entries()) {
  test(`${command} ${JSON.stringify(wrong)} fails, leaves nothing behind, and is done the second time`, async (t) => {
    const bed = await newBed(t);
    if (command !== 'nbd-server-start') await serve(bed);
    const own = triesOf((name) => bed.path(name))[index];
    assert.ok(own);
    const before = shapeOf(bed);
    await bed.refusal(command, own.wrong);
    assert.deepEqual(shapeOf(bed), before);
    await bed.execute(command, own.right);
  });
}

test('a device whose endpoint cannot listen leaves nothing behind, and is there the second time', async (t) => {
  const bed = await newBed(t);
  const before = shapeOf(bed);
  const endpoint = (path: string): { type: 'unix'; path: string } => ({ type: 'unix', path });
  const add = (path: string): Promise<unknown> =>
    bed.engine.addDevice('E', { id: 'second', endpoint: endpoint(path) });
  await assert.rejects(add('/nonexistent/s'));
  assert.deepEqual(shapeOf(bed), before);
  await add(bed.path('second.sock'));
  assert.equal(bed.engine.devices.has('second'), true);
});
