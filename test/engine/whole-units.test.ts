import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { test } from 'node:test';
import { imageOf } from '../kit/tool-answer.js';
import { EngineBed } from './engine-bed.js';

const REFUSAL = {
  kind: 'permission',
  message:
    "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment",
};

test('who may not make an image longer may not write to one that ends within a unit', async (context) => {
  const bed = new EngineBed(context);
  const { engine } = bed;
  const filename = imageOf(bed.folder, 'raw', 4608);
  const add = (name: string, align: number) =>
    engine.addNode({ driver: 'blkdebug', 'node-name': name, align, image: { driver: 'file', filename } });
  await add('large', 4096);
  await assert.rejects(engine.addDevice('large', { id: 'a' }), REFUSAL);
  await engine.execute('blockdev-del', { 'node-name': 'large' });
  await add('small', 512);
  await engine.addDevice('small', { id: 'b' });
});

test('a sector that ends past the file makes it no longer than the sector', async (context) => {
  const bed = new EngineBed(context);
  const { engine } = bed;
  const filename = imageOf(bed.folder, 'raw', 1000);
  const file = { driver: 'file', filename, cache: { direct: true } };
  const isThere = await engine.addNode({ driver: 'raw', 'node-name': 'disk', file }).catch(() => undefined);
  if (!isThere) return context.skip('this file system has no O_DIRECT');
  try {
    await engine.addDevice('disk', { id: 'virtio0' });
  } catch (error) {
    assert.deepEqual({ ...REFUSAL, ...(error as object) }, { ...(error as object), ...REFUSAL });
    return context.skip('the units of O_DIRECT here are larger than a sector');
  }
  await bed.guest('write -P 7 600 424');
  assert.equal(statSync(filename).size, 1024);
});
