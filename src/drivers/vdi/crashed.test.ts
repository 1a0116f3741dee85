import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import { EngineBed, MiB } from '../../../test/engine/engine-bed.js';
import { FieldAt } from './header.js';

test('blocks that a crash has left counted, and without an entry, are given out again', async (t) => {
  const bed = new EngineBed(t);
  const filename = bed.path('a.vdi');
  await createImage(bed.engine.opener, filename, 'vdi', { sizeBytes: 3 * MiB });
  const bytes = readFileSync(filename);
  bytes.writeUInt32LE(3, FieldAt.allocatedBlocks);
  writeFileSync(filename, Buffer.concat([bytes, Buffer.alloc(3 * MiB, 0xee)]));
  const disk = { driver: 'vdi', file: { driver: 'file', filename } };
  await bed.execute('blockdev-add', { ...disk, 'node-name': 'A' });
  await bed.device('A');
  for (let i = 0; i < 3; i++) await bed.guest(`write -P ${i + 1} ${i}M 64k`);
  for (let i = 0; i < 3; i++) {
    await bed.guest(`read -P ${i + 1} ${i}M 64k`);
    await bed.guest(`read -P 0 ${i * MiB + 64 * 1024} 960k`);
  }
  const found = await bed.engine.graph.node('A').instance.check?.('none', () => undefined);
  assert.equal(found?.corruptions, 0);
});
