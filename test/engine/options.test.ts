import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { NodeOptions } from '../../src/block/driver.js';
import { driverOptions } from '../../src/schema/blockdev-options.js';
import { bool, defaulted, int, type JsonObject, required } from '../../src/schema/types.js';
import { allDrivers } from '../../src/drivers/index.js';
import { nullCoDriver } from '../../src/drivers/null-co/index.js';
import type { DriverDescription } from '../../src/block/driver.js';
import { EngineBed, MiB } from './engine-bed.js';
import { IoRequest } from '../../src/block/request.js';

const name = (options: JsonObject): string => `json:${JSON.stringify(options)}`;

/** A raw file of 4 MiB of zeroes, as which format drivers and windows of it are opened. */
async function rawFile(bed: EngineBed): Promise<string> {
  const filename = bed.path('r.raw');
  await createImage(bed.engine.opener, filename, 'raw', { sizeBytes: 4 * MiB });
  return filename;
}

test('a program’s options of the wrong type are refused, each by its name', async (t) => {
  const bed = new EngineBed(t);
  const filename = await rawFile(bed);
  const cases: Array<[NodeOptions, string]> = [
    [{ 'read-only': 'on' }, "Invalid parameter type for 'read-only', expected: boolean"],
    [{ 'force-share': 1 }, "Invalid parameter type for 'force-share', expected: boolean"],
    [{ 'auto-read-only': 'yes' }, "Invalid parameter type for 'auto-read-only', expected: boolean"],
    [{ cache: { direct: 'on' } }, "Invalid parameter type for 'cache.direct', expected: boolean"],
    [{ cache: 'none' }, "Invalid parameter type for 'cache', expected: object"],
    [{ 'detect-zeroes': 'banana' }, "Parameter 'detect-zeroes' does not accept value 'banana'"],
    [{ cache: { 'no-flush': true, typo: 1 } }, "Parameter 'cache.typo' is unexpected"],
    [{ discard: 'on' }, "Parameter 'discard' does not accept value 'on'"],
    [{ 'lock-ing': 'off' }, "Parameter 'lock-ing' is unexpected"],
    [{ aio: 7 }, "Invalid parameter type for 'aio', expected: string"],
    [{ 'drop-cache': false }, "Parameter 'drop-cache' is not supported by livedisk yet"],
  ];
  for (const [options, message] of cases) {
    const added = bed.engine.addNode({ driver: 'file', 'node-name': 'n', filename, ...options });
    await assert.rejects(added, { message }, JSON.stringify(options));
  }
  assert.equal(bed.engine.graph.nodes.size, 0);
});

test('what is wrong within a child is refused before anything is opened', async (t) => {
  const bed = new EngineBed(t);
  const file: NodeOptions = { driver: 'file', filename: await rawFile(bed) };
  const image = (child: NodeOptions): NodeOptions => ({
    driver: 'blkdebug',
    'node-name': 'n',
    image: { driver: 'raw', file: { ...file, ...child } },
  });
  const cases: Array<[NodeOptions, string]> = [
    [image({ foo: 1 }), "Parameter 'image.file.foo' is unexpected"],
    [
      image({ 'x-check-cache-dropped': true }),
      "Parameter 'image.file.x-check-cache-dropped' is not supported by livedisk yet",
    ],
    [
      { driver: 'qcow2', 'node-name': 'n', file, encrypt: { format: 'luks', key: 's' } },
      "Parameter 'encrypt.key' is unexpected",
    ],
    [
      { driver: 'qcow2', 'node-name': 'n', file, 'cache-clean-interval': 5 },
      "Parameter 'cache-clean-interval' is not supported by livedisk yet",
    ],
  ];
  for (const [options, message] of cases) {
    await assert.rejects(bed.engine.addNode(options), { message });
    assert.equal(await bed.refusal('blockdev-add', options), message);
  }
});

test('a window named by strings is the window: reads and writes go where it says', async (t) => {
  const bed = new EngineBed(t);
  const filename = await rawFile(bed);
  const windows: JsonObject[] = [
    { driver: 'raw', offset: '1048576', size: '65536', file: { driver: 'file', filename } },
    { driver: 'raw', offset: '1M', size: '64k', 'file.filename': filename },
    { offset: 1048576, size: 65536, 'file.filename': filename },
    { driver: 'raw', offset: '0x100000', size: 65536, 'file.driver': 'file', 'file.filename': filename },
  ];
  for (const [index, window] of windows.entries()) {
    await bed.execute('blockdev-add', {
      driver: 'null-co',
      'node-name': 'source',
      size: 64 * 1024,
      'read-zeroes': true,
    });
    await bed.execute('drive-mirror', {
      'job-id': 'm',
      device: 'source',
      target: name(window),
      'node-name': 'target',
      mode: 'existing',
      sync: 'full',
    });
    const target = bed.engine.graph.node('target');
    assert.equal(target.lengthBytes, 64 * 1024, JSON.stringify(window));
    assert.equal(target.children.get('file')?.node.filename, filename);
    await bed.event('BLOCK_JOB_READY', 'm');
    await target.io.write(IoRequest.ofBuffer(Buffer.alloc(512, index + 1)), 0, 512, 0, 0);
    await bed.execute('block-job-cancel', { device: 'm', force: true });
    await bed.event('BLOCK_JOB_CANCELLED', 'm');
    bed.events.length = 0;
    await bed.execute('blockdev-del', { 'node-name': 'source' });
    const bytes = readFileSync(filename);
    assert.deepEqual([bytes[0], bytes[MiB]], [0, index + 1], JSON.stringify(window));
  }
});

test('a backing name of options in a header is opened by them, or not at all', async (t) => {
  const bed = new EngineBed(t);
  const filename = await rawFile(bed);
  const { opener } = bed.engine;
  const node = await opener.open({ driver: 'file', filename }, { readOnly: false });
  await node.io.write(IoRequest.ofBuffer(Buffer.alloc(512, 7)), 0, 512, MiB, 0);
  await bed.engine.graph.collect([node]);
  const child = { filename };
  const cases: Array<[JsonObject, string | undefined]> = [
    [{ driver: 'raw', offset: '1M', file: child }, undefined],
    [{ offset: '1M', 'file.filename': filename }, undefined],
    [
      { driver: 'raw', offset: 'x', file: child },
      "Parameter 'offset' expects a non-negative number below 2^64",
    ],
    [{ driver: 'raw', offest: '1M', file: child }, "Block format 'raw' does not support the option 'offest'"],
    [{ driver: 'raw', 'read-only': 'maybe', file: child }, "Parameter 'read-only' expects 'on' or 'off'"],
    [
      { driver: 'raw', 'file.filename': filename, 'file.cache.direct': 'maybe' },
      "Parameter 'cache.direct' expects 'on' or 'off'",
    ],
    [{ filename }, 'Must specify either driver or file'],
  ];
  for (const [backing, problem] of cases) {
    const path = bed.path('o.qcow2');
    await createImage(opener, path, 'qcow2', {
      sizeBytes: MiB,
      backingFile: name(backing),
      backingFormat: 'raw',
    });
    const overlay = { driver: 'qcow2', 'node-name': 'o', file: { driver: 'file', filename: path } };
    if (problem !== undefined && 'driver' in backing) {
      const message = `Could not open backing file: ${problem}`;
      await assert.rejects(bed.engine.addNode(overlay), { message });
      continue;
    }
    if (problem !== undefined) continue;
    const opened = await bed.engine.addNode(overlay);
    const buffer = Buffer.alloc(512);
    const below = opened.children.get('backing');
    assert.ok(below);
    await below.read(0, buffer);
    assert.deepEqual(buffer, Buffer.alloc(512, 7), JSON.stringify(backing));
    await bed.execute('blockdev-del', { 'node-name': 'o' });
  }
});

test('a name that says read-only is not written', async (t) => {
  const bed = new EngineBed(t);
  const filename = await rawFile(bed);
  for (const readOnly of ['on', true]) {
    const options = { driver: 'raw', 'read-only': readOnly, 'file.filename': filename };
    const node = await bed.engine.opener.openImage(name(options), undefined, { readOnly: false });
    assert.equal(node.readOnly, true);
    assert.deepEqual(node.options, { 'read-only': true });
    await bed.engine.graph.collect([node]);
  }
});

test('backing is left out by null, and by an empty name with a warning', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.snapshot('A', 'B').catch(() => undefined);
  const warnings: string[] = [];
  bed.engine.opener.onWarning = (text) => warnings.push(text);
  const file = { driver: 'file', filename: bed.path('B.qcow2') };
  for (const backing of [null, '']) {
    await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'b', file, backing });
    assert.equal(bed.engine.graph.node('b').children.has('backing'), false);
    await bed.execute('blockdev-del', { 'node-name': 'b' });
  }
  assert.deepEqual(warnings, ['Use of "backing": "" is deprecated; use "backing": null instead']);
});

test('what a node was opened with stays with it, typed, beside what follows from it', async (t) => {
  const bed = new EngineBed(t);
  const filename = await rawFile(bed);
  const options = { driver: 'raw', offset: '512', cache: { direct: 'off' }, 'file.filename': filename };
  const node = await bed.engine.opener.openImage(name(options), undefined, { readOnly: true });
  assert.deepEqual(node.options, { cache: { direct: false }, offset: 512 });
  assert.deepEqual(
    [node.settings.cache, node.settings['force-share']],
    [{ direct: false, 'no-flush': false }, false],
  );
  const file = node.child('file').node;
  assert.deepEqual(file.options, { filename });
  assert.deepEqual(
    { ...file.settings },
    {
      filename,
      locking: 'auto',
      aio: 'threads',
      'force-share': false,
      cache: { direct: false, 'no-flush': false },
    },
  );
  await bed.engine.graph.collect([node]);
});

test('cache options are those of the file below too, unless it has its own', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.execute('blockdev-del', { 'node-name': 'A' });
  const add = (cache: JsonObject, own?: JsonObject): Promise<unknown> =>
    bed.execute('blockdev-add', {
      driver: 'qcow2',
      'node-name': 'n',
      cache,
      file: { driver: 'file', filename: bed.path('A.qcow2'), ...(own && { cache: own }) },
    });
  const cacheOfFile = (): unknown => bed.engine.graph.node('n').child('file').node.settings.cache;
  await add({ 'no-flush': true });
  assert.deepEqual(cacheOfFile(), { direct: false, 'no-flush': true });
  await bed.execute('blockdev-del', { 'node-name': 'n' });
  await add({ 'no-flush': true }, { 'no-flush': false });
  assert.deepEqual(cacheOfFile(), { direct: false, 'no-flush': false });
});

test('a program’s own driver is there for blockdev-add, with its options', async (t) => {
  const options = driverOptions({ blocks: required(int), noisy: defaulted(bool, false) });
  const seen: unknown[] = [];
  const own: DriverDescription<typeof options> = {
    name: 'blocks',
    kind: 'protocol',
    options,
    open: (context, settings) => {
      seen.push([settings.blocks, settings.noisy]);
      const usual = { ...settings, size: settings.blocks * 512, 'latency-ns': 0, 'read-zeroes': true };
      return nullCoDriver.open(context, usual);
    },
  };
  const bed = new EngineBed(t, { drivers: [...allDrivers, own] });
  const add = { driver: 'raw', 'node-name': 'n', file: { driver: 'blocks', blocks: 4 } };
  await bed.execute('blockdev-add', add);
  assert.equal(bed.engine.graph.node('n').lengthBytes, 2048);
  assert.deepEqual(seen, [[4, false]]);
  const wrong = { ...add, file: { driver: 'blocks', blocks: '4' } };
  assert.equal(
    await bed.refusal('blockdev-add', wrong),
    "Invalid parameter type for 'file.blocks', expected: integer",
  );
  assert.ok(JSON.stringify(await bed.execute('query-qmp-schema')).includes('"noisy"'));
});
