import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { onMounted } from '../../test/kit/mounted.js';
import { createRealHost } from './real.js';
import { writeBuffer } from './whole-buffers.js';

test('what was written to a file that ext4 maps block by block is data at once', async (t) => {
  const ran = await onMounted(['mkfs.ext4', '-q', '-O', '^extents,^64bit'], async (folder) => {
    const file = await createRealHost().files.open(join(folder, 'a'), { write: true, create: true });
    await file.truncate(2 ** 23);
    // Far enough in the file for an indirect block.
    await writeBuffer(file, 2 ** 22, Buffer.alloc(4096, 1));
    for (let at = 0; at <= 2 ** 22;) {
      const { isHole, lengthBytes } = await file.extentAt(at, 2 ** 23 - at);
      if (isHole) assert.ok(at + lengthBytes <= 2 ** 22, `a hole of ${lengthBytes} bytes at ${at}`);
      at += lengthBytes;
    }
    await file.close();
  });
  if (!ran) t.skip('no such ext4 can be mounted here');
});
