import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bochsImage } from '../../../test/kit/bochs-image.js';
import { DiskShelf } from '../../../test/kit/recorded-disk.js';
import { bochsDriver } from '../bochs/index.js';
import { encodeDynamicHeader, encodeFooter } from '../vpc/footer.js';
import { LARGEST } from '../vpc/geometry.js';
import { vpcDriver } from '../vpc/index.js';

const KiB = 1024;

test('a table whose entries lie across pages of ours is read', async () => {
  const content = Buffer.alloc(64 * KiB);
  for (let i = 0; i < content.length; i += 512) content.fill(1 + (i % 251), i, i + 512);
  for (const headerBytes of [16 * KiB - 1, 16 * KiB - 2, 16 * KiB - 3]) {
    const shelf = new DiskShelf([bochsDriver]);
    shelf.put('image', bochsImage(content, { headerBytes }));
    const disk = await shelf.open('image', { driver: 'bochs', readOnly: true });
    assert.ok((await disk.read(0, content.length)).equals(content), `header of ${headerBytes} bytes`);
    await disk.close();
  }
});

test('a vpc whose table is not aligned is read, and not written', async () => {
  const footer = encodeFooter({
    ...{ sizeBytes: 64 * KiB, geometry: LARGEST, isFixed: false, isBySize: true },
    ...{ unixSeconds: 2e9, uuid: Buffer.alloc(16, 7) },
  });
  const table = { blockBytes: 4096, bitmapBytes: 512, tableOffset: 1537, tableEntries: 16 };
  const header = encodeDynamicHeader(table);
  const shelf = new DiskShelf([vpcDriver]);
  shelf.put('image', Buffer.concat([footer, header, Buffer.alloc(1024, 0xff), footer]));
  const disk = await shelf.open('image', { driver: 'vpc', readOnly: true });
  assert.ok((await disk.read(0, 64 * KiB)).equals(Buffer.alloc(64 * KiB)));
  await disk.close();
  await assert.rejects(shelf.open('image', { driver: 'vpc' }), /is only read/);
});
