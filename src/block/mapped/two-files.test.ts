import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { formatConformance } from '../../../test/kit/conformance.js';
import { TestBed, withFolder } from '../../../test/kit/test-disk.js';
import {
  childRoleAt,
  isPlainAt,
  newTwoFileHeader,
  twoFileDriver,
} from '../../../test/kit/two-file-format.js';
import { fileDriver } from '../../drivers/file/index.js';
import { createRealHost } from '../../host/real.js';
import type { NodeOptions } from '../driver.js';
import { IoRequest } from '../request.js';

const CLUSTER = 2048;
const DISK = 9 * CLUSTER + 512;

async function create(bed: TestBed, sizeBytes: number, backing?: NodeOptions): Promise<NodeOptions> {
  const file = (content: string): NodeOptions => {
    const filename = bed.newPath('part');
    writeFileSync(filename, content);
    return { driver: 'file', filename };
  };
  const parts = { file: file(newTwoFileHeader(sizeBytes)), even: file(''), odd: file('') };
  return { driver: 'two-file', ...parts, ...(backing && { backing }) };
}

formatConformance({
  name: 'a format in three files, in part disguised',
  driver: twoFileDriver,
  unitBytes: CLUSTER,
  create,
  hasDataElsewhere: true,
});

/** A disk of which all is written, each cluster with another byte. */
function withFullDisk(
  body: (bed: TestBed, options: NodeOptions, content: Buffer) => Promise<void>,
): Promise<void> {
  return withFolder(async (folder) => {
    const bed = new TestBed(createRealHost(), [fileDriver, twoFileDriver], folder);
    const content = Buffer.alloc(DISK);
    for (let at = 0; at < DISK; at += CLUSTER) content.fill(1 + at / CLUSTER, at);
    await body(bed, await create(bed, DISK), content);
  });
}

test('offload is offered the bytes of each child that are the disk, and no others', () =>
  withFullDisk(async (bed, options, content) => {
    const disk = await bed.open(options);
    await disk.write(0, content);
    for (let at = 0; at < DISK;) {
      const located = await disk.node.io.locate(at, DISK - at);
      assert.equal(located.kind, isPlainAt(at) ? 'plain' : 'other', `at ${at}`);
      if (located.kind === 'plain') {
        const bytes = Buffer.alloc(located.lengthBytes);
        await located.io.read(IoRequest.ofBuffer(bytes), 0, bytes.length, located.offset);
        assert.deepEqual(bytes, content.subarray(at, at + bytes.length));
        located.release();
      }
      at += located.lengthBytes;
    }
    await disk.close();
  }));

test('block status says where plain bytes are, and nothing of others', () =>
  withFullDisk(async (bed, options, content) => {
    const disk = await bed.open(options);
    await disk.write(0, content);
    const seen = new Set<string>();
    for (let at = 0; at < DISK;) {
      const { data, zero, lengthBytes, hostOffset, hostChild } = await disk.backend.status(at, DISK - at);
      assert.ok(data && !zero && lengthBytes <= CLUSTER);
      const role = isPlainAt(at) ? childRoleAt(at) : 'nowhere';
      assert.equal(hostChild, role === 'nowhere' ? undefined : disk.node.child(role));
      assert.equal(hostOffset !== undefined, role !== 'nowhere');
      seen.add(role);
      at += lengthBytes;
    }
    assert.deepEqual([...seen].sort(), ['even', 'nowhere', 'odd']);
    await disk.close();
  }));

test('what is not plain is not in its file as it is', () =>
  withFullDisk(async (bed, options, content) => {
    const disk = await bed.open(options);
    const secret = 3 * CLUSTER;
    await disk.write(secret, content.subarray(secret, secret + CLUSTER));
    const stored = Buffer.alloc(CLUSTER);
    await disk.node.child('odd').read(0, stored);
    assert.deepEqual(stored, Buffer.alloc(CLUSTER, 0xa1));
    assert.deepEqual(await disk.read(secret, CLUSTER), content.subarray(secret, secret + CLUSTER));
    await disk.close();
  }));

test('a part of a cluster that is zeroed or written leaves the rest of the cluster where it is', () =>
  withFullDisk(async (bed, options) => {
    const disk = await bed.open(options);
    await disk.write(512, Buffer.alloc(512, 7));
    assert.equal(disk.node.child('even').lengthBytes, 1024, 'the part written');
    const kinds = async (): Promise<string> => {
      let text = '';
      for (let at = 0; at < CLUSTER; at += 512) {
        const { allocated, zero } = await disk.node.io.status(at, 512);
        text += allocated ? (zero ? 'z' : 'd') : '-';
      }
      return text;
    };
    assert.equal(await kinds(), '-d--');
    await disk.backend.writeZeroes(1024, 512, 0);
    assert.equal(await kinds(), '-dz-');
    await disk.backend.discard(512, 512);
    assert.equal(await kinds(), '-zz-');
    await disk.close();
  }));
