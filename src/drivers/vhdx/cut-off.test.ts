import assert from 'node:assert/strict';
import { statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { withFolder } from '../../../test/kit/test-disk.js';
import { img } from '../../../test/kit/img-tool.js';
import { MiB } from '../../base/limits.js';

test('a vhdx whose file was cut off is no image with zeroes in it, but can be checked', () =>
  withFolder(async (folder) => {
    const [raw, image, copy] = ['raw', 'image', 'copy'].map((name) => join(folder, name));
    assert.ok(raw !== undefined && image !== undefined && copy !== undefined);
    writeFileSync(raw, Buffer.alloc(3 * MiB, 1));
    const made = await img('convert', '-f', 'raw', '-O', 'vhdx', '-o', 'block_size=1M', raw, image);
    assert.equal(made.code, 0, made.stderr);
    const end = statSync(image).size;
    for (const [length, what] of [
      [end - 512, `entry 2 end offset ${end - 1}`],
      [end - MiB, `entry 2 start offset ${end - MiB}`],
      [end - 3 * MiB, `entry 0 start offset ${end - 3 * MiB}`],
    ] as const) {
      truncateSync(image, length);
      const text = `VHDX BAT ${what} points after end of file (${length}). Image has probably been truncated.`;
      for (const command of [['info'], ['map'], ['convert', '-O', 'raw']]) {
        const words = command[0] === 'convert' ? [image, copy] : [image];
        const { code, stderr } = await img(...command, '-f', 'vhdx', ...words);
        assert.deepEqual([code, stderr], [1, `qemu-img: Could not open '${image}': ${text}\n`]);
      }
      assert.equal((await img('check', '-f', 'vhdx', image)).code, 2);
    }
  }));

test('a vhdx whose file ends with the disk, within its last block, is whole', () =>
  withFolder(async (folder) => {
    const [raw, image, copy] = ['raw', 'image', 'copy'].map((name) => join(folder, name));
    assert.ok(raw !== undefined && image !== undefined && copy !== undefined);
    writeFileSync(raw, Buffer.alloc(9 * MiB, 1));
    const made = await img('convert', '-f', 'raw', '-O', 'vhdx', '-o', 'block_size=8M', raw, image);
    assert.equal(made.code, 0, made.stderr);
    const end = statSync(image).size - 7 * MiB;
    truncateSync(image, end);
    assert.equal((await img('check', '-f', 'vhdx', image)).code, 0);
    const copied = await img('convert', '-f', 'vhdx', '-O', 'raw', image, copy);
    assert.deepEqual([copied.code, copied.stderr], [0, '']);
    assert.equal((await img('compare', '-f', 'raw', '-F', 'raw', raw, copy)).code, 0);
    truncateSync(image, end - 512);
    assert.equal((await img('check', '-f', 'vhdx', image)).code, 2);
    const { stderr } = await img('info', '-f', 'vhdx', image);
    assert.match(
      stderr,
      new RegExp(`entry 1 end offset ${end - 1} points after end of file \\(${end - 512}\\)`),
    );
  }));
