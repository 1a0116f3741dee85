import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileDriver } from './index.js';
import { createRealHost } from '../../host/real.js';

const run = (command: string, ...args: string[]): ReturnType<typeof spawnSync> => spawnSync(command, args);

/** Calls `body` with a folder on a new btrfs; false where this machine lets us have none. */
async function onBtrfs(body: (folder: string) => Promise<void>): Promise<boolean> {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-btrfs-'));
  const [device, mounted] = [join(folder, 'device'), join(folder, 'mounted')];
  try {
    writeFileSync(device, '');
    mkdirSync(mounted);
    if (run('truncate', '-s', '200M', device).status !== 0) return false;
    if (run('mkfs.btrfs', '-q', device).status !== 0) return false;
    if (run('mount', '-o', 'loop', device, mounted).status !== 0) return false;
    try {
      await body(mounted);
    } finally {
      run('umount', '-l', mounted);
    }
    return true;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test('a file without copy-on-write is marked so on btrfs', async (t) => {
  const ran = await onBtrfs(async (folder) => {
    const host = createRealHost();
    for (const noCopyOnWrite of [true, false]) {
      const path = join(folder, `${noCopyOnWrite}`);
      await fileDriver.createFile?.(host, path, 65536, { noCopyOnWrite });
      const [attributes = ''] = String(run('lsattr', path).stdout).split(' ');
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
