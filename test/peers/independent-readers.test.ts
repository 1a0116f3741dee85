import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';
import { seededBelow } from '../kit/crash-states.js';
import { toolAnswer } from '../kit/tool-answer.js';
import { scratch } from './daemon.js';

/**
 * Readers of image formats that share no code with QEMU, as judges of what livedisk writes: 7-Zip reads the content, the
 * libyal tools (libqcow, libvmdk, libvhdi) the headers. Who is not installed is skipped.
 */

const KiB = 1024;
const MiB = 1024 * KiB;
/** Whole cylinders of a vpc's geometry, so that each format has the same size. */
const SIZE_BYTES = 68 * 17 * 4 * 512 * 4;

const isMissing = (program: string): boolean => spawnSync(program, ['-h']).error !== undefined;
const skipWithout = (program: string): string | false => isMissing(program) && `${program} is not installed`;

/** Data of all kinds: none, zeroes, what compresses, what does not. */
function content(seed: number): Buffer {
  const below = seededBelow(seed * 7177);
  const disk = Buffer.alloc(SIZE_BYTES);
  for (let i = 0; i < 40; i++) {
    const at = below(SIZE_BYTES / 512) * 512;
    const end = Math.min(SIZE_BYTES, at + (1 + below(400)) * 512);
    const values = [1, 3, 256][below(3)] ?? 1;
    for (let byte = at; byte < end; byte++) disk[byte] = values === 1 ? i : below(values);
  }
  return disk;
}

async function img(...words: string[]): Promise<string> {
  const { code, stdout, stderr } = await toolAnswer((out) =>
    imgMain(words, out, createRealHost(), allDrivers),
  );
  assert.equal(code, 0, `${words.join(' ')}: ${stderr}`);
  return stdout;
}

/** Makes an image of a random disk with the image tool; answers its path and the disk. */
async function make(
  t: TestContext,
  seed: number,
  format: string,
  words: readonly string[],
): Promise<{ path: string; disk: Buffer }> {
  const folder = scratch(t);
  const disk = content(seed);
  const raw = join(folder, 'disk.raw');
  writeFileSync(raw, disk);
  // 7-Zip finds what has no header at its beginning by its name.
  const path = join(folder, format === 'vpc' ? 'disk.vhd' : `disk.${format}`);
  await img('convert', '-f', 'raw', '-O', format, ...words, raw, path);
  return { path, disk };
}

const IMAGES: ReadonlyArray<readonly [format: string, ...words: string[]]> = [
  ['qcow2'],
  ['qcow2', '-c'],
  ['qcow2', '-o', 'compat=0.10,cluster_size=4k'],
  ['qcow2', '-c', '-o', 'cluster_size=32k'],
  ['qcow2', '-o', 'preallocation=metadata,refcount_bits=1'],
  ['vmdk'],
  // 7-Zip does not read streamOptimized without a footer, QEMU's neither.
  ['vdi'],
  ['vdi', '-o', 'static=on'],
  ['vpc', '-o', 'force_size=on'],
  ['vpc', '-o', 'subformat=fixed,force_size=on'],
  ['vhdx'],
  ['vhdx', '-o', 'subformat=fixed'],
];

for (const [index, [format, ...words]] of IMAGES.entries())
  test(
    `7-Zip reads ${[format, ...words].join(' ')} as it was written`,
    {
      skip: skipWithout('7z'),
    },
    async (t) => {
      const { path, disk } = await make(t, index + 1, format, words);
      const read = spawnSync('7z', ['e', '-so', path], { maxBuffer: 64 * MiB });
      assert.equal(read.status, 0, read.stderr.toString());
      assert.equal(read.stdout.length, disk.length);
      assert.ok(read.stdout.equals(disk), '7-Zip reads something else');
    },
  );

for (const [program, format, ...words] of [
  ['qcowinfo', 'qcow2'],
  ['qcowinfo', 'qcow2', '-o', 'compat=0.10'],
  ['vmdkinfo', 'vmdk'],
  ['vmdkinfo', 'vmdk', '-o', 'subformat=streamOptimized'],
  ['vhdiinfo', 'vpc', '-o', 'force_size=on'],
  ['vhdiinfo', 'vhdx'],
] as const)
  test(
    `${program} finds the size of ${[format, ...words].join(' ')}`,
    {
      skip: skipWithout(program),
    },
    async (t) => {
      const { path, disk } = await make(t, 1, format, words);
      const { status, stdout, stderr } = spawnSync(program, [basename(path)], {
        cwd: dirname(path),
        encoding: 'utf8',
      });
      assert.equal(status, 0, stderr);
      assert.match(stdout, new RegExp(`Media size\\s*:\\s.*\\(${disk.length} bytes\\)`));
    },
  );
