import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import { createRealHost } from '../../host/real.js';
import { loopDevice } from '../../../test/kit/loop-device.js';
import { TestBed, withFolder } from '../../../test/kit/test-disk.js';
import { allDrivers } from '../index.js';

const MiB = 1024 * 1024;

test('what is no device is refused, in QEMU’s words', () =>
  withFolder(async (folder) => {
    const bed = new TestBed(createRealHost(), allDrivers, folder);
    const path = (name: string): string => join(folder, name);
    writeFileSync(path('file'), Buffer.alloc(4096));
    mkdirSync(path('folder'));
    const requires = (name: string): string =>
      `'host_device' driver requires '${path(name)}' to be either a character or block device`;
    const missing = `Could not open '${path('nope')}': No such file or directory`;
    for (const [name, reading, writing] of [
      ['file', requires('file'), requires('file')],
      ['folder', requires('folder'), `Could not open '${path('folder')}': Is a directory`],
      ['nope', missing, missing],
    ] as const) {
      const options = { driver: 'host_device', filename: path(name) };
      await assert.rejects(bed.open(options, { readOnly: true }), { message: reading });
      await assert.rejects(bed.open(options), { message: writing });
    }
    const unnamed = { message: "The 'host_device' block driver requires a file name" };
    await assert.rejects(bed.open({ driver: 'host_device', filename: '' }), unnamed);
    await assert.rejects(bed.open({ driver: 'host_device', filename: '/dev/null' }), { kind: 'unsupported' });
  }));

test('a device is read and written, and keeps its size', (context) =>
  withFolder(async (folder) => {
    const path = join(folder, 'disk');
    writeFileSync(path, Buffer.alloc(MiB, 1));
    const device = loopDevice(context, path);
    if (device === undefined) return;
    const bed = new TestBed(createRealHost(), allDrivers, folder);
    const disk = await bed.open({ driver: 'raw', file: { driver: 'host_device', filename: device } });
    assert.equal(disk.node.lengthBytes, MiB);
    assert.deepEqual(await disk.read(4096, 4096), Buffer.alloc(4096, 1));
    await disk.write(512, Buffer.alloc(1024, 2));
    await disk.backend.writeZeroes(8192, 8192, 0);
    await assert.rejects(disk.backend.truncate(2 * MiB), { message: 'Cannot grow device files' });
    await disk.backend.truncate(MiB / 2);
    assert.equal(disk.node.lengthBytes, MiB);
    await disk.backend.flush();
    await disk.close();
    const expected = Buffer.alloc(MiB, 1).fill(2, 512, 1536).fill(0, 8192, 16384);
    assert.ok(readFileSync(path).equals(expected));
  }));

test('a path by itself is a device’s where a device lies there; a file it is not', (context) =>
  withFolder(async (folder) => {
    const path = join(folder, 'disk');
    writeFileSync(path, Buffer.alloc(4 * MiB, 1));
    const device = loopDevice(context, path);
    if (device === undefined) return;
    const bed = new TestBed(createRealHost(), allDrivers, folder);
    const { opener } = bed;
    const driverOf = async (name: string): Promise<string> => {
      const node = await opener.openImage(name, 'raw', { readOnly: true });
      const { driver } = node.child('file').node;
      assert.equal(node.filename, device);
      await bed.graph.collect([node]);
      return driver.name;
    };
    for (const name of [device, `host_device:${device}`, `json:{"file.filename":"${device}","driver":"raw"}`])
      assert.equal(await driverOf(name), 'host_device', name);
    const refusal = { message: `'file' driver requires '${device}' to be a regular file` };
    await assert.rejects(driverOf(`file:${device}`), refusal);
    await assert.rejects(bed.open({ driver: 'file', filename: device }), refusal);
    assert.equal(bed.graph.nodes.size, 0);
  }));

test('an image is made on a device that has room for it, and nothing of an older one is found there', (context) =>
  withFolder(async (folder) => {
    const path = join(folder, 'disk');
    writeFileSync(path, Buffer.alloc(4 * MiB, 1));
    const device = loopDevice(context, path);
    if (device === undefined) return;
    const bed = new TestBed(createRealHost(), allDrivers, folder);
    await createImage(bed.opener, device, 'qcow2', { sizeBytes: 64 * MiB });
    assert.equal(await bed.opener.probeFormat(device), 'qcow2');
    const disk = await bed.open({ driver: 'qcow2', file: { driver: 'host_device', filename: device } });
    await disk.write(0, Buffer.alloc(65536, 7));
    await disk.close();
    const tooLarge = { message: 'Cannot grow device files' };
    await assert.rejects(createImage(bed.opener, device, 'raw', { sizeBytes: 8 * MiB }), tooLarge);
    await createImage(bed.opener, device, 'raw', { sizeBytes: MiB });
    assert.equal(await bed.opener.probeFormat(device), 'raw');
    assert.equal(bed.graph.nodes.size, 0);
  }));
