import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import { EngineBed, MiB } from '../../../test/engine/engine-bed.js';
import { parseDescriptor } from './descriptor.js';
import { HEADER_BYTES, parseSparseHeader, SECTOR_BYTES } from './sparse-header.js';

const DIRECTORY_AT = 56;

test('a stream with a footer is read, and not written: its footer would be found no more', async (t) => {
  const bed = new EngineBed(t);
  const filename = bed.path('stream.vmdk');
  await createImage(bed.engine.opener, filename, 'vmdk', {
    sizeBytes: 4 * MiB,
    options: { subformat: 'streamOptimized' },
  });
  const bytes = readFileSync(filename);
  const header = Buffer.from(bytes.subarray(0, HEADER_BYTES));
  const marker = Buffer.alloc(SECTOR_BYTES);
  marker.writeUInt32LE(3, 12);
  bytes.writeBigUInt64LE(2n ** 64n - 1n, DIRECTORY_AT);
  writeFileSync(filename, Buffer.concat([bytes, marker, header, Buffer.alloc(SECTOR_BYTES)]));
  const options = { driver: 'vmdk', file: { driver: 'file', filename } };
  assert.match(await bed.refusal('blockdev-add', { ...options, 'node-name': 'w' }), /must be read only/);
  await bed.execute('blockdev-add', { ...options, 'node-name': 'r', 'read-only': true });
  assert.equal(bed.engine.graph.node('r').lengthBytes, 4 * MiB);
});

test('a descriptor of many blank lines is looked through once', () => {
  const text = `# x\nversion=1\ncreateType="monolithicFlat"\n${'\n'.repeat(1_000_000)}`;
  assert.throws(() => parseDescriptor(Buffer.from(text)), /Failed to read CID/);
  assert.equal(parseDescriptor(Buffer.from(`${text} CID=0000beef\n`)).cid, 0xbeef);
});

test('a compressed grain has its bounds: all of it is in memory while a sector is read', () => {
  const header = Buffer.alloc(HEADER_BYTES);
  header.write('KDMV', 'latin1');
  header.writeUInt32LE(3, 4);
  header.writeUInt32LE(0x30001, 8);
  header.writeBigUInt64LE(2n ** 22n, 12);
  header.writeBigUInt64LE(0x20000n, 20);
  header.writeUInt32LE(512, 44);
  header.writeUInt16LE(1, 77);
  assert.equal(parseSparseHeader(header).grainSectors, 0x20000);
  header.writeBigUInt64LE(0x40000n, 20);
  assert.throws(() => parseSparseHeader(header), /Invalid granularity/);
});
