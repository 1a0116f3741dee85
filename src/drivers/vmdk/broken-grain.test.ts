import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { withFolder } from '../../../test/kit/test-disk.js';
import { img } from '../../../test/kit/img-tool.js';
import { KiB } from '../../base/limits.js';

test('a compressed grain that was cut off or changed is no data', () =>
  withFolder(async (folder) => {
    const [raw, image, copy] = ['raw', 'image', 'copy'].map((name) => join(folder, name));
    assert.ok(raw !== undefined && image !== undefined && copy !== undefined);
    const content = Buffer.concat([Buffer.alloc(64 * KiB, 1), Buffer.alloc(64 * KiB, 2)]);
    writeFileSync(raw, content);
    const made = await img('convert', '-O', 'vmdk', '-o', 'subformat=streamOptimized', raw, image);
    assert.equal(made.code, 0, made.stderr);
    const whole = readFileSync(image);
    // The second grain's marker: its first sector, and how long its stream is.
    let marker = 64 * KiB;
    while (whole.readBigUInt64LE(marker) !== 128n) marker += 512;
    const end = marker + 12 + whole.readUInt32LE(marker + 8);
    const changed = Buffer.from(whole);
    changed.writeUInt8(255 - changed.readUInt8(end - 1), end - 1);
    for (const broken of [whole.subarray(0, end - 3), changed]) {
      writeFileSync(image, broken);
      const { code, stderr } = await img('convert', '-f', 'vmdk', '-O', 'raw', image, copy);
      assert.deepEqual([code, stderr.slice(0, 39)], [1, 'qemu-img: error while reading at byte 0']);
    }
    writeFileSync(image, whole);
    assert.equal((await img('convert', '-f', 'vmdk', '-O', 'raw', image, copy)).code, 0);
    assert.deepEqual(readFileSync(copy), content);
  }));
