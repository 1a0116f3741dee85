import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import type { NodeOptions } from '../../block/driver.js';
import { Permission } from '../../block/permissions.js';
import { IoRequest } from '../../block/request.js';
import { resizeImage } from '../../block/resize.js';
import { createRealHost } from '../../host/real.js';
import { filterConformance } from '../../../test/kit/conformance.js';
import { TestBed, type TestDisk, withFolder } from '../../../test/kit/test-disk.js';
import { allDrivers } from '../index.js';
import { preallocateDriver } from './index.js';

const KiB = 1024;
const SIZES = { 'prealloc-size': 64 * KiB, 'prealloc-align': 4 * KiB };

filterConformance('preallocate', [preallocateDriver], (file) => ({ driver: 'preallocate', ...SIZES, file }));

async function withImage(body: (bed: TestBed, filename: string) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const bed = new TestBed(createRealHost(), allDrivers, folder);
    const filename = bed.newPath('qcow2');
    await createImage(bed.opener, filename, 'qcow2', { sizeBytes: 4096 * KiB });
    await body(bed, filename);
    assert.deepEqual([...bed.graph.nodes.keys()], []);
  });
}

const over = (filename: string, more: NodeOptions = SIZES): NodeOptions => ({
  driver: 'qcow2',
  file: { driver: 'preallocate', ...more, file: { driver: 'file', filename } },
});

const sizeOf = (filename: string): number => statSync(filename).size;

test('a growing image has space ahead of it, which is given back at its end', () =>
  withImage(async (bed, filename) => {
    const disk = await bed.open(
      over(filename, { 'prealloc-size': 1024 * KiB, 'prealloc-align': 1024 * KiB }),
    );
    await disk.write(0, Buffer.alloc(256 * KiB, 3));
    await disk.backend.flush();
    assert.equal(sizeOf(filename) % (1024 * KiB), 0);
    const { lengthBytes } = disk.node.child('file');
    assert.ok(lengthBytes < sizeOf(filename), 'the image sees the end of its data');
    const before = sizeOf(filename);
    await disk.write(256 * KiB, Buffer.alloc(256 * KiB, 4));
    assert.equal(sizeOf(filename), before, 'it grows into the space that is there');
    const { length } = await disk.readAll();
    assert.equal(length, 4096 * KiB);
    const end = disk.node.child('file').lengthBytes;
    await disk.close();
    assert.equal(sizeOf(filename), end);
    const again = await bed.open({ driver: 'qcow2', file: { driver: 'file', filename } }, { readOnly: true });
    assert.equal((await again.read(300 * KiB, 1))[0], 4);
    await again.close();
  }));

async function writeBehindEnd(disk: TestDisk, lengthBytes: number): Promise<void> {
  const { io, lengthBytes: end } = disk.node;
  await io.write(IoRequest.ofBuffer(Buffer.alloc(lengthBytes, 5)), 0, lengthBytes, end, 0, true);
}

test('when no user may make it longer any more, the file ends with its data; users that come then begin there', () =>
  withImage(async (bed, filename) => {
    const options = { driver: 'preallocate', ...SIZES, file: { driver: 'file', filename } };
    const disk = await bed.open(options);
    const reader = await bed.attach(disk.node, { readOnly: true });
    const start = sizeOf(filename);
    await writeBehindEnd(disk, 1024);
    assert.ok(sizeOf(filename) >= start + 64 * KiB);
    await bed.graph.transaction((transaction) =>
      transaction.setPermissions(disk.backend, Permission.consistentRead | Permission.write, 15),
    );
    assert.equal(sizeOf(filename), start + 1024);
    assert.equal(reader.lengthBytes, start + 1024);
    await bed.graph.transaction((transaction) => transaction.setPermissions(disk.backend, 11, 15));
    await writeBehindEnd(disk, 512);
    assert.equal(reader.lengthBytes, start + 1536);
    await disk.backend.truncate(start + 512);
    assert.equal(sizeOf(filename), start + 512);
    await reader.close();
    await disk.close();
  }));

test('clusters that are given to a disk without space have none, also where there is space ahead', () =>
  withImage(async (bed, filename) => {
    const ahead = { 'prealloc-size': 32768 * KiB, 'prealloc-align': 1024 * KiB };
    const disk = await bed.open(over(filename, ahead));
    await disk.write(0, Buffer.alloc(1024 * KiB, 3));
    await resizeImage(disk.backend, 16384 * KiB, 'metadata');
    assert.ok(sizeOf(filename) >= 32768 * KiB);
    await disk.close();
    assert.ok(sizeOf(filename) > 13 * 1024 * KiB);
    const usedBytes = statSync(filename).blocks * 512;
    assert.ok(usedBytes < 4096 * KiB, `${usedBytes} bytes are taken`);
    const again = await bed.open({ driver: 'qcow2', file: { driver: 'file', filename } }, { readOnly: true });
    const content = await again.readAll();
    assert.ok(content.subarray(0, 1024 * KiB).every((byte) => byte === 3));
    assert.ok(content.subarray(1024 * KiB).every((byte) => byte === 0));
    await again.close();
  }));

test('nobody else may resize the file while it is ahead of its data', () =>
  withImage(async (bed, filename) => {
    const file = { driver: 'file', 'node-name': 'file', filename };
    const disk = await bed.open({ driver: 'preallocate', file });
    const node = disk.node.child('file').node;
    await assert.rejects(bed.attach(node, { perm: Permission.resize }), {
      message: /permissions 'resize' are both required by a test .* and unshared by node/,
    });
    await disk.close();
  }));
