import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DmgChunk, dmgImage, zlibChunk } from '../../../test/kit/dmg-image.js';
import { formatShelf } from '../../../test/kit/format-images.js';

/** Opens that image to be read. */
async function open(image: Buffer) {
  const shelf = formatShelf();
  shelf.put('image', image);
  return shelf.open('image', { driver: 'dmg', readOnly: true });
}

const TEXT = Buffer.alloc(1024, 'text');

test('what compresses an image and is not there is named', async () => {
  for (const [kind, name] of [
    [DmgChunk.lzfse, 'LZFSE'],
    [DmgChunk.lzma, 'LZMA'],
  ] as const) {
    const image = dmgImage({ partitions: [[zlibChunk(TEXT), { kind, sectors: 2, bytes: TEXT }]] });
    const message = `The image is compressed by ${name}, which livedisk lacks`;
    await assert.rejects(open(image), { kind: 'unsupported', message });
  }
});

test('what no table knows, and what the file has not, is no data', async () => {
  const partitions = [[zlibChunk(TEXT), { kind: DmgChunk.comment, sectors: 1 }, zlibChunk(TEXT)]];
  const disk = await open(dmgImage({ partitions }));
  assert.deepEqual(await disk.read(0, 1024), TEXT);
  await assert.rejects(disk.read(1024, 512), { errno: 'EIO' });
  assert.deepEqual(await disk.read(1536, 1024), TEXT);
  await disk.close();
  const long = { kind: DmgChunk.raw, sectors: 20, bytes: TEXT };
  const short = await open(dmgImage({ partitions: [[{ ...long, kind: DmgChunk.zlib }]] }));
  await assert.rejects(short.read(0, 512), { errno: 'EIO' });
  await short.close();
});
