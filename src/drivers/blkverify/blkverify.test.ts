import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createRealHost } from '../../host/real.js';
import { protocolConformance } from '../../../test/kit/conformance.js';
import { TestBed, withFolder } from '../../../test/kit/test-disk.js';
import { fileDriver } from '../file/index.js';
import { allDrivers } from '../index.js';
import { blkverifyDriver } from './index.js';

async function newFile(bed: TestBed, sizeBytes: number): Promise<{ driver: string; filename: string }> {
  const filename = bed.newPath('raw');
  await fileDriver.createFile?.(bed.host, filename, sizeBytes);
  return { driver: 'file', filename };
}

protocolConformance({
  name: 'blkverify',
  drivers: [fileDriver, blkverifyDriver],
  shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
  canGrow: false,
  create: async (bed, size) => ({
    driver: 'blkverify',
    raw: await newFile(bed, size),
    test: await newFile(bed, size),
  }),
});

test('what differs is told, and fails', () =>
  withFolder(async (folder) => {
    const bed = new TestBed(createRealHost(), allDrivers, folder);
    const lines: string[] = [];
    bed.graph.onDriverLine = (line) => void lines.push(line);
    const [raw, copy] = [await newFile(bed, 8192), await newFile(bed, 8192)];
    const disk = await bed.open({ driver: 'blkverify', raw, test: { ...copy, 'node-name': 'test' } });
    await disk.write(0, Buffer.alloc(8192, 1));
    assert.equal((await disk.read(4096, 1))[0], 1);
    await disk.node.child('test').write(5000, Buffer.alloc(1, 2), 0);
    await assert.rejects(disk.read(4096, 4096), { errno: 'EIO' });
    assert.deepEqual(lines, ['blkverify: read offset=4096 bytes=4096 contents mismatch at offset 5000']);
    assert.equal((await disk.read(0, 4096))[0], 1);
    assert.equal(disk.node.filename, `blkverify:${raw.filename}:${copy.filename}`);
    await disk.close();
  }));
