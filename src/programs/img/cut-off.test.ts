import assert from 'node:assert/strict';
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { img } from '../../../test/kit/img-tool.js';
import { withFolder } from '../../../test/kit/test-disk.js';
import { KiB, MiB } from '../../base/limits.js';

const DISK_BYTES = 8 * MiB;

/** Formats whose images are read although their file is too short, with the status and findings of a check. */
const FORMATS: ReadonlyArray<{
  format: string;
  options?: string;
  file?: string;
  check: number;
  finding: RegExp;
}> = [
  { format: 'qcow2', check: 2, finding: /region exceeding the end of the file/ },
  { format: 'vdi', check: 2, finding: /ERROR: block index 7 lies behind the end of the file, is 7\n/ },
  { format: 'parallels', check: 2, finding: /ERROR cluster 7 is outside image\n/ },
  { format: 'vmdk', check: 1, finding: /ERROR: cluster offset for sector \d+ points after EOF\n/ },
  {
    format: 'vmdk',
    options: 'subformat=twoGbMaxExtentSparse',
    file: '-s001',
    check: 1,
    finding: /points after EOF\n/,
  },
  { format: 'vmdk', options: 'subformat=monolithicFlat', file: '-flat', check: 0, finding: /is cut off/ },
];

for (const { format, options, file = '', check, finding } of FORMATS) {
  test(`whoever reads a ${format} (${options ?? 'default'}) that was cut off hears of it, once`, () =>
    withFolder(async (folder) => {
      const [raw, image, copy] = [join(folder, 'raw'), join(folder, 'image.x'), join(folder, 'copy')];
      const data = Buffer.alloc(DISK_BYTES, 1);
      writeFileSync(raw, data);
      const how = options === undefined ? [] : ['-o', options];
      assert.equal((await img('convert', '-f', 'raw', '-O', format, ...how, raw, image)).code, 0);
      const [whole, storage] = [statSync, join(folder, `image${file}.x`)];
      const convert = (): ReturnType<typeof img> => img('convert', '-f', format, '-O', 'raw', image, copy);
      assert.deepEqual(await convert(), { code: 0, stdout: '', stderr: '' });

      const left = whole(storage).size - 3 * MiB;
      truncateSync(storage, left);
      const warning = `qemu-img: warning: '${storage}' is cut off: what its image has behind the end of the file reads as zeroes\n`;
      assert.deepEqual(await convert(), { code: 0, stdout: '', stderr: warning });
      const copied = readFileSync(copy);
      assert.ok(copied.subarray(0, DISK_BYTES - 4 * MiB).equals(data.subarray(0, DISK_BYTES - 4 * MiB)));
      assert.ok(copied.subarray(DISK_BYTES - 2 * MiB).every((byte) => byte === 0));
      for (const words of [['map'], ['compare', '-F', 'raw']]) {
        const others = words[0] === 'compare' ? [image, raw] : [image];
        const { code, stderr } = await img(...words, '-f', format, ...others);
        assert.deepEqual([code, stderr], [words[0] === 'compare' ? 1 : 0, warning]);
      }
      const explained = await img('explain', '-f', format, image);
      assert.match(explained.stdout, /WRONG: its file was cut off: what is missing reads as zeroes\n/);
      const checked = await img('check', '-f', format, image);
      assert.equal(checked.code, check);
      assert.match(checked.stderr, finding);
    }));
}

test('of what is preallocated the file says where it has data, and where it ends', () =>
  withFolder(async (folder) => {
    const [raw, image] = [join(folder, 'raw'), join(folder, 'image.x')];
    writeFileSync(raw, Buffer.alloc(4 * MiB, 1));
    for (const [format, options, storage, start] of [
      ['vdi', 'static=on', image, 1024],
      ['vmdk', 'subformat=monolithicFlat', join(folder, 'image-flat.x'), 0],
    ] as const) {
      const made = await img('convert', '-f', 'raw', '-O', format, '-o', options, raw, image);
      assert.equal(made.code, 0);
      truncateSync(storage, start + MiB);
      const { stdout } = await img('map', '--output=json', '-f', format, image);
      const parts = JSON.parse(stdout) as Array<{ start: number; length: number; zero: boolean }>;
      assert.deepEqual(
        parts.map((part) => [part.start, part.length, part.zero]),
        [
          [0, MiB, false],
          [MiB, 3 * MiB, true],
        ],
      );
    }
  }));

test('an image whose last cluster is in its file in part is whole', () =>
  withFolder(async (folder) => {
    const [raw, image] = [join(folder, 'raw'), join(folder, 'image')];
    writeFileSync(raw, Buffer.alloc(MiB, 1));
    assert.equal((await img('convert', '-f', 'raw', '-O', 'qcow2', raw, image)).code, 0);
    truncateSync(image, statSync(image).size - 60 * KiB);
    const { stderr } = await img('map', '-f', 'qcow2', image);
    assert.equal(stderr, '');
  }));

test('compressed clusters are shorter in their file than they are', () =>
  withFolder(async (folder) => {
    const [raw, image] = [join(folder, 'raw'), join(folder, 'image')];
    writeFileSync(raw, Buffer.alloc(MiB, 1));
    for (const words of [
      ['-O', 'vmdk', '-o', 'subformat=streamOptimized'],
      ['-O', 'qcow2', '-c'],
    ]) {
      assert.equal((await img('convert', '-f', 'raw', ...words, raw, image)).code, 0);
      for (const command of [
        ['convert', '-O', 'raw', image, join(folder, 'copy')],
        ['map', '--output=json', image],
      ])
        assert.equal((await img(...command)).stderr, '');
    }
  }));

test('a qed that was cut off is read up to there, and its repair keeps a cluster that is there in part', () =>
  withFolder(async (folder) => {
    const [raw, image] = [join(folder, 'raw'), join(folder, 'image')];
    const data = Buffer.alloc(DISK_BYTES, 1);
    writeFileSync(raw, data);
    assert.equal((await img('convert', '-f', 'raw', '-O', 'qed', raw, image)).code, 0);
    truncateSync(image, statSync(image).size - MiB - 512);
    const seen = DISK_BYTES - MiB - 512;
    const compare = (): ReturnType<typeof img> => img('compare', '-f', 'qed', '-F', 'raw', image, raw);
    const difference = { code: 1, stdout: `Content mismatch at offset ${seen}!\n`, stderr: '' };
    assert.deepEqual(await compare(), difference);
    const { stdout, code } = await img('check', '-f', 'qed', image);
    assert.deepEqual([code, /^(\d+) errors/m.exec(stdout)?.[1]], [2, '17']);
    assert.equal((await img('check', '-f', 'qed', '-r', 'all', image)).code, 0);
    assert.deepEqual(await compare(), difference);
  }));
