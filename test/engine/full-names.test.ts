import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import type { NodeOptions } from '../../src/block/driver.js';
import type { JsonObject } from '../../src/schema/types.js';
import { createImage } from '../../src/block/create.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';
import { cases, COMMANDS, contentsOf, flush, SHAPES } from './graph-shapes.js';

/** What a new engine shows that opens the image by its name. */
async function reopened(bed: EngineBed, filename: string, format: string): Promise<Buffer> {
  const { opener, graph } = bed.engine;
  const node = await opener.openImage(filename, format, { readOnly: true, forceShare: true });
  const bytes = Buffer.alloc(node.lengthBytes);
  await node.io.readBuffer(0, bytes);
  await graph.collect([node]);
  return bytes;
}

for (const [shape, command] of cases()) {
  test(`a header that ${command} writes describes ${shape}`, async (t) => {
    const bed = new EngineBed(t);
    await SHAPES[shape]?.(bed);
    const made = await COMMANDS[command]?.(bed);
    assert.ok(made);
    const expected = await contentsOf(bed, made.node);
    await flush(bed);
    assert.ok((await reopened(bed, made.file, 'qcow2')).equals(expected), 'other data after reopening');
  });
}

for (const [shape, make] of Object.entries(SHAPES)) {
  test(`a filename opens ${shape} again`, async (t) => {
    const bed = new EngineBed(t);
    await make(bed);
    await flush(bed);
    const { filename, driver } = bed.engine.graph.node('n');
    assert.ok((await reopened(bed, filename, driver.name)).equals(await contentsOf(bed, 'n')));
  });
}

test('names are as QEMU writes them', async (t) => {
  const bed = new EngineBed(t);
  const P = bed.folder;
  const qcow2 = (name: string): NodeOptions => ({
    ...{ driver: 'qcow2', file: { driver: 'file', filename: bed.path(name) } },
  });
  const nameOf = async (options: NodeOptions): Promise<string> => {
    await bed.engine.addNode({ ...options, 'node-name': 'x', 'read-only': true });
    const nodes = (await bed.execute('query-named-block-nodes', { flat: true })) as JsonObject[];
    const { file } = nodes.find((node) => node['node-name'] === 'x') ?? {};
    await bed.execute('blockdev-del', { 'node-name': 'x' });
    return (file as string).replaceAll(P, 'P');
  };
  await bed.chain('A', 'B');
  writeFileSync(bed.path('raw'), Buffer.alloc(2 * MiB));
  const raw = { driver: 'file', filename: bed.path('raw'), 'read-only': true };
  const share = { 'read-only': true, 'force-share': true };
  const file = (name: string): NodeOptions => ({
    ...{ driver: 'file', filename: bed.path(name), ...share },
  });
  const json = (text: string): string => `json:${text}`;
  for (const [options, name] of [
    [{ ...qcow2('B.qcow2'), ...share }, 'P/B.qcow2'],
    [{ ...qcow2('A.qcow2'), ...share, discard: 'unmap', cache: { 'no-flush': true } }, 'P/A.qcow2'],
    [
      { ...qcow2('B.qcow2'), ...share, backing: null },
      json('{"backing": null, "driver": "qcow2", "file": {"driver": "file", "filename": "P/B.qcow2"}}'),
    ],
    [
      { ...qcow2('A.qcow2'), ...share, backing: { driver: 'raw', file: raw, size: 4096 } },
      json(
        '{"backing": {"driver": "raw", "size": 4096, "file": {"driver": "file", "filename": "P/raw"}}, ' +
          '"driver": "qcow2", "file": {"driver": "file", "filename": "P/A.qcow2"}}',
      ),
    ],
    [{ driver: 'raw', file: raw }, 'P/raw'],
    [{ driver: 'raw', file: file('A.qcow2') }, 'P/A.qcow2'],
    [
      { driver: 'raw', file: raw, offset: 0 },
      json('{"offset": 0, "driver": "raw", "file": {"driver": "file", "filename": "P/raw"}}'),
    ],
    [
      { driver: 'raw', file: { driver: 'raw', file: raw } },
      json('{"driver": "raw", "file": {"driver": "raw", "file": {"driver": "file", "filename": "P/raw"}}}'),
    ],
    [{ driver: 'raw', file: { driver: 'blkdebug', image: raw } }, 'blkdebug::P/raw'],
    [
      { driver: 'blkdebug', image: raw, align: 4096, 'inject-error': [{ event: 'read_aio', errno: 5 }] },
      json(
        '{"image": {"driver": "file", "filename": "P/raw"}, "driver": "blkdebug", "inject-error.0.errno": 5, ' +
          '"inject-error.0.event": "read_aio", "align": 4096}',
      ),
    ],
    [{ driver: 'null-co' }, 'null-co://'],
    [
      { driver: 'null-co', size: 4096, 'read-zeroes': true },
      json('{"read-zeroes": true, "driver": "null-co", "size": 4096}'),
    ],
  ] as ReadonlyArray<[NodeOptions, string]>)
    assert.equal(await nameOf(options), name);
});

test('a name that is too long for a header is refused in the words of QEMU, and cut in queries', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('n0');
  for (let i = 0; i < 60; i++) {
    await bed.image(`m${i}`);
    const { filename } = bed.engine.graph.node(`m${i}`);
    await bed.execute('blockdev-del', { 'node-name': `m${i}` });
    await bed.engine.addNode({
      ...{ driver: 'qcow2', 'node-name': `n${i + 1}`, file: { driver: 'file', filename }, backing: `n${i}` },
    });
  }
  const { filename } = bed.engine.graph.node('n60');
  assert.match(filename, /^json:\{"backing": \{"backing": .*\.\.\.$/);
  assert.equal(filename.length, 4095);
  const overlay = { 'snapshot-file': bed.path('s'), 'snapshot-node-name': 's' };
  assert.equal(
    await bed.refusal('blockdev-snapshot-sync', { 'node-name': 'n60', ...overlay }),
    `Could not assign backing file '${filename}' with format 'qcow2': Invalid argument`,
  );
  assert.equal(
    await bed.refusal('change-backing-file', {
      ...{ device: 'n60', 'image-node-name': 'n60', 'backing-file': 'x'.repeat(1024) },
    }),
    `Could not change backing file to '${'x'.repeat(1024)}': Invalid argument`,
  );
});

test('a filter that a job has put in is a part of names where the user has named it', async (t) => {
  for (const filter of [undefined, 'F']) {
    const bed = new EngineBed(t);
    const layer = (name: string): NodeOptions => ({
      driver: 'qcow2',
      'node-name': name,
      file: { driver: 'file', filename: bed.path(`${name}.qcow2`) },
    });
    for (const name of ['base', 'mid', 'top'])
      await createImage(bed.engine.opener, bed.path(`${name}.qcow2`), 'qcow2', { sizeBytes: DISK_BYTES });
    const nothing = { driver: 'null-co', 'node-name': 'nothing', size: DISK_BYTES };
    const backing = { ...layer('mid'), backing: { ...layer('base'), backing: nothing } };
    await bed.engine.addNode({ ...layer('top'), backing });
    const options = { 'job-id': 'j', device: 'top', 'top-node': 'mid', 'base-node': 'base', speed: 1 };
    await bed.execute('block-commit', { ...options, ...(filter && { 'filter-node-name': filter }) });
    const nodes = (await bed.execute('query-named-block-nodes', {})) as Array<{
      'node-name': string;
      file: string;
    }>;
    const filename = nodes.find((node) => node['node-name'] === 'top')?.file ?? '';
    // What can be opened again is without it.
    assert.ok(!bed.engine.graph.node('top').filename.includes('commit_top'));
    const named = JSON.parse(filename.slice('json:'.length)) as {
      backing: { driver: string; backing?: object };
    };
    assert.equal(named.backing.driver, filter === undefined ? 'qcow2' : 'commit_top');
    const mid = filter === undefined ? named.backing : named.backing.backing;
    assert.equal((mid as { driver: string }).driver, 'qcow2');
  }
});
