import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileDriver } from './index.js';
import { createRealHost } from '../../host/real.js';
import { onMounted } from '../../../test/kit/mounted.js';

test('a file without copy-on-write is marked so on btrfs', async (t) => {
  const ran = await onMounted(['mkfs.btrfs', '-q'], async (folder) => {
    const host = createRealHost();
    for (const noCopyOnWrite of [true, false]) {
      const path = join(folder, `${noCopyOnWrite}`);
      await fileDriver.createFile?.(host, path, 65536, { noCopyOnWrite });
      const [attributes = ''] = String(spawnSync('lsattr', [path]).stdout).split(' ');
      assert.equal(attributes.includes('C'), noCopyOnWrite, attributes);
    }
  });
  if (!ran) t.skip('no btrfs can be mounted here');
});

test('elsewhere there is nothing to mark', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-nocow-'));
  try {
    const file = await createRealHost().files.open(join(folder, 'a'), { write: true, create: true });
    file.forbidCopyOnWrite();
    await file.truncate(4096);
    assert.equal(file.sizeBytes(), 4096);
    await file.close();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
