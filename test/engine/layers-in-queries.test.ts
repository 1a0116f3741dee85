import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { JsonObject } from '../../src/schema/types.js';
import { EngineBed } from './engine-bed.js';

/** "drv:file" of a query's image and all below it. */
function imageLayers(bed: EngineBed, info: JsonObject): string[] {
  const layers: string[] = [];
  for (
    let at = info['image'] as JsonObject | undefined;
    at;
    at = at['backing-image'] as JsonObject | undefined
  )
    layers.push(`${at['format'] as string}:${(at['filename'] as string).replaceAll(`${bed.folder}/`, '')}`);
  return layers;
}

async function ofDisk(bed: EngineBed): Promise<JsonObject> {
  const [disk] = (await bed.execute('query-block')) as Array<{ inserted: JsonObject }>;
  assert.ok(disk);
  return disk.inserted;
}

async function ofNode(bed: EngineBed, name: string): Promise<JsonObject> {
  const nodes = (await bed.execute('query-named-block-nodes')) as JsonObject[];
  return nodes.find((node) => node['node-name'] === name) ?? assert.fail(`no node ${name}`);
}

const C = 'qcow2:C.qcow2';
const B = 'qcow2:B.qcow2';
const A = 'qcow2:A.qcow2';
const SLOW = { 'job-id': 'j', speed: 65536 };

async function busyChain(bed: EngineBed, command: string, args: JsonObject): Promise<void> {
  await bed.chain('A', 'B', 'C');
  await bed.image('T');
  await bed.execute(command, { device: 'C', ...SLOW, ...args });
}

async function cancel(bed: EngineBed): Promise<void> {
  await bed.execute('job-cancel', { id: 'j' });
  await bed.event('BLOCK_JOB_CANCELLED', 'j');
}

test("a job's filter without a name is a layer for those who ask for nodes, and none for those who ask for disks", async (t) => {
  const bed = new EngineBed(t);
  await busyChain(bed, 'block-commit', { 'top-node': 'B' });
  const disk = await ofDisk(bed);
  assert.deepEqual([disk['node-name'], disk['backing_file_depth']], ['C', 2]);
  assert.deepEqual(imageLayers(bed, disk), [C, B, A]);
  const node = await ofNode(bed, 'C');
  const layers = [C, 'commit_top:B.qcow2', B, A];
  assert.deepEqual([node['backing_file_depth'], imageLayers(bed, node)], [3, layers]);
  assert.equal(node['backing_file'], bed.path('B.qcow2'));
  await cancel(bed);
});

test("a job's filter that has a name is a layer for all", async (t) => {
  const bed = new EngineBed(t);
  await busyChain(bed, 'blockdev-mirror', { target: 'T', sync: 'full', 'filter-node-name': 'flt' });
  const layers = ['mirror_top:C.qcow2', C, B, A];
  for (const info of [await ofDisk(bed), await ofNode(bed, 'flt')]) {
    assert.deepEqual([info['node-name'], info['drv'], info['backing_file_depth']], ['flt', 'mirror_top', 3]);
    assert.deepEqual(imageLayers(bed, info), layers);
    assert.equal(info['backing_file'], undefined);
  }
  await cancel(bed);
});

test('the filter of a backup is a layer for all, with a name or without', async (t) => {
  const bed = new EngineBed(t);
  await busyChain(bed, 'blockdev-backup', { target: 'T', sync: 'full' });
  const disk = await ofDisk(bed);
  assert.match(disk['node-name'] as string, /^#block/);
  assert.deepEqual(imageLayers(bed, disk), ['copy-before-write:C.qcow2', C, B, A]);
  assert.equal(disk['backing_file_depth'], 3);
  await cancel(bed);
  assert.equal((await ofDisk(bed))['node-name'], 'C');
});

test('the filter of a stream that has a name is named with its options', async (t) => {
  const bed = new EngineBed(t);
  await busyChain(bed, 'block-stream', { 'filter-node-name': 'flt' });
  const image = `{"driver": "qcow2", "file": {"driver": "file", "filename": "${bed.path('C.qcow2')}"}}`;
  assert.equal((await ofDisk(bed))['file'], `json:{"driver": "copy-on-read", "file": ${image}}`);
  await cancel(bed);
});

test('what changes the chain changes what is told of it', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.execute('block-commit', { device: 'C', 'job-id': 'j', 'top-node': 'B', 'backing-file': 'told' });
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  const disk = await ofDisk(bed);
  const file = (name: string): string =>
    `"driver": "qcow2", "file": {"driver": "file", "filename": "${bed.path(name)}"}}`;
  assert.equal(disk['file'], `json:{"backing": {${file('A.qcow2')}, ${file('C.qcow2')}`);
  assert.equal(disk['backing_file'], bed.path('A.qcow2'));
  assert.equal(disk['backing_file_depth'], 1);
  // An overlay whose header names nothing.
  await bed.image('O');
  await bed.execute('blockdev-snapshot', { node: 'C', overlay: 'O' });
  const overlay = await ofDisk(bed);
  assert.equal(overlay['backing_file'], disk['file']);
  assert.match(overlay['file'] as string, /^json:\{"backing": \{"backing": \{"driver": "qcow2"/);
  assert.equal(overlay['backing_file_depth'], 2);
});

test('bitmaps are listed newest first', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  for (const name of ['first', 'second']) await bed.execute('block-dirty-bitmap-add', { node: 'A', name });
  const bitmaps = (await ofDisk(bed))['dirty-bitmaps'] as JsonObject[];
  assert.deepEqual(
    bitmaps.map(({ name }) => name),
    ['second', 'first'],
  );
});
