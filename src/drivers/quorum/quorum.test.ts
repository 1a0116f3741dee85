import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DriverEvent, NodeOptions } from '../../block/driver.js';
import { createRealHost } from '../../host/real.js';
import { protocolConformance } from '../../../test/kit/conformance.js';
import { TestBed, type TestDisk, withFolder } from '../../../test/kit/test-disk.js';
import { blkdebugDriver } from '../blkdebug/index.js';
import { fileDriver } from '../file/index.js';
import { allDrivers } from '../index.js';
import { quorumDriver } from './index.js';

const SIZE = 8192;

async function newFile(bed: TestBed, sizeBytes: number): Promise<NodeOptions> {
  const filename = bed.newPath('raw');
  await fileDriver.createFile?.(bed.host, filename, sizeBytes);
  return { driver: 'file', filename };
}

for (const pattern of ['quorum', 'fifo'])
  protocolConformance({
    name: `quorum of three, read-pattern ${pattern}`,
    drivers: [fileDriver, quorumDriver],
    shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
    canGrow: false,
    runs: 8,
    create: async (bed, size) => ({
      driver: 'quorum',
      'vote-threshold': 2,
      'read-pattern': pattern,
      children: [await newFile(bed, size), await newFile(bed, size), await newFile(bed, size)],
    }),
  });

interface Group {
  disk: TestDisk;
  events: DriverEvent[];
  lines: string[];
  /** Changes what one child holds. */
  spoil: (index: number, value: number) => Promise<void>;
  holds: (index: number) => Promise<number>;
}

/** Children that hold 1 in all bytes, each below a blkdebug with these rules. */
async function withGroup(
  options: NodeOptions,
  rules: NodeOptions[],
  body: (group: Group) => Promise<void>,
): Promise<void> {
  await withFolder(async (folder) => {
    const bed = new TestBed(createRealHost(), [...allDrivers, blkdebugDriver], folder);
    const events: DriverEvent[] = [];
    const lines: string[] = [];
    bed.graph.onDriverEvent = (_node, event) => void events.push(event);
    bed.graph.onDriverLine = (line) => void lines.push(line);
    const files: string[] = [];
    const children: NodeOptions[] = [];
    for (const rule of rules) {
      const file = await newFile(bed, SIZE);
      files.push(file['filename'] as string);
      children.push({ driver: 'blkdebug', 'take-child-perms': ['write'], image: file, ...rule });
    }
    for (const filename of files) {
      const each = await bed.open({ driver: 'file', filename });
      await each.write(0, Buffer.alloc(SIZE, 1));
      await each.close();
    }
    const disk = await bed.open({ driver: 'quorum', children, ...options });
    const childIo = (index: number): Group['disk']['node']['io'] =>
      disk.node.child(`children.${index}`).node.child('image').node.io;
    const spoil = (index: number, value: number): Promise<void> =>
      disk.node.child(`children.${index}`).node.child('image').write(0, Buffer.alloc(1, value), 0);
    const holds = async (index: number): Promise<number> => {
      const byte = Buffer.alloc(1);
      await childIo(index).readBuffer(0, byte);
      return byte[0] as number;
    };
    try {
      await body({ disk, events, lines, spoil, holds });
    } finally {
      await disk.close();
    }
    assert.deepEqual([...bed.graph.nodes.keys()], []);
  });
}

const bad = (index: number, operation: string, more: object = {}): object => ({
  ...{ name: 'bad-child', role: `children.${index}`, operation, offset: 0, lengthBytes: 512 },
  ...more,
});
const NO_QUORUM = { name: 'no-quorum', offset: 0, lengthBytes: 512 };
const THREE = [{}, {}, {}];

test('what most children say is read, and who says otherwise is told', () =>
  withGroup({ 'vote-threshold': 2 }, THREE, async ({ disk, events, spoil, holds }) => {
    await spoil(1, 7);
    assert.equal((await disk.read(0, 512))[0], 1);
    assert.deepEqual(events, [bad(1, 'read')]);
    assert.equal(await holds(1), 7);
  }));

test('a child that says otherwise is mended, where that is asked for', () =>
  withGroup({ 'vote-threshold': 2, 'rewrite-corrupted': true }, THREE, async (group) => {
    await group.spoil(2, 7);
    assert.equal((await group.disk.read(0, 512))[0], 1);
    assert.deepEqual(group.events, [bad(2, 'read')]);
    assert.equal(await group.holds(2), 1);
    await group.disk.read(0, 512);
    assert.equal(group.events.length, 1);
  }));

test('without enough children that agree nothing is read', () =>
  withGroup({ 'vote-threshold': 2 }, THREE, async ({ disk, events, spoil }) => {
    await spoil(1, 7);
    await spoil(2, 8);
    await assert.rejects(disk.read(0, 512), { errno: 'EIO' });
    assert.deepEqual(events, [NO_QUORUM]);
    // Where they agree they are read.
    assert.equal((await disk.read(512, 512))[0], 1);
  }));

test('a child that fails is told with its error; too many fail the request with theirs', () => {
  const failing = (iotype: string): NodeOptions => ({
    'inject-error': [{ event: 'none', iotype, errno: 28 }],
  });
  return withGroup({ 'vote-threshold': 2 }, [{}, failing('read'), {}], async ({ disk, events }) => {
    assert.equal((await disk.read(0, 512))[0], 1);
    assert.deepEqual(events, [bad(1, 'read', { error: 'No space left on device' })]);
  }).then(() =>
    withGroup({ 'vote-threshold': 2 }, [failing('write'), {}, failing('write')], async (group) => {
      const { disk, events } = group;
      await assert.rejects(disk.write(0, Buffer.alloc(512, 2)), { errno: 'ENOSPC' });
      const error = 'No space left on device';
      assert.deepEqual(events, [bad(0, 'write', { error }), bad(2, 'write', { error }), NO_QUORUM]);
    }),
  );
});

test('a flush that enough children have done is done', async () => {
  const failing = { 'inject-error': [{ event: 'none', iotype: 'flush' }] };
  const told = (index: number): object =>
    bad(index, 'flush', { lengthBytes: 0, error: 'Input/output error' });
  // One of them may fail, and is told each time; closing flushes too.
  await withGroup({ 'vote-threshold': 2 }, [{}, {}, failing], async ({ disk, events }) => {
    await disk.backend.flush();
    assert.deepEqual(events, [told(2)]);
  });
});

test('one after the other is asked until one answers', () =>
  withGroup(
    { 'vote-threshold': 1, 'read-pattern': 'fifo' },
    [{ 'inject-error': [{ event: 'none', iotype: 'read' }] }, {}, {}],
    async ({ disk, events, spoil }) => {
      await spoil(2, 7);
      assert.equal((await disk.read(0, 512))[0], 1);
      assert.deepEqual(events, [bad(0, 'read', { error: 'Input/output error' })]);
    },
  ));

test('two children are compared, and the place where they differ is told', () =>
  withGroup({ 'vote-threshold': 2, blkverify: true }, [{}, {}], async ({ disk, lines, spoil }) => {
    await spoil(1, 7);
    await assert.rejects(disk.read(0, 512), { errno: 'EIO' });
    assert.deepEqual(lines, ['quorum: offset=0 bytes=512 contents mismatch at offset 0']);
  }));

test('writes that come while a child is mended are not lost', () =>
  withGroup({ 'vote-threshold': 2, 'rewrite-corrupted': true }, THREE, async (group) => {
    const { disk, spoil, holds } = group;
    for (let value = 2; value < 40; value++) {
      await spoil(1, 200);
      await Promise.all([disk.read(0, 512), disk.write(0, Buffer.alloc(512, value)), disk.read(0, 512)]);
      assert.deepEqual([await holds(0), await holds(1), await holds(2)], [value, value, value]);
    }
  }));
