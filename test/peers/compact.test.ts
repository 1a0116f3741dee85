import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';
import { seededBelow } from '../kit/crash-states.js';
import { toolAnswer } from '../kit/tool-answer.js';
import { scratch, skipWithout } from './daemon.js';
import { ours, qemu, SECRETS } from './encrypted-tools.js';

const DISK_BYTES = 8 * 1024 * 1024;

/** Images by what they are made with, and whether some of what is in them is compressed. */
const KINDS: ReadonlyArray<readonly [options: string, isCompressed: boolean]> = [
  ['cluster_size=64k', false],
  ['cluster_size=64k', true],
  ['cluster_size=4k,refcount_bits=1', true],
  ['cluster_size=512', false],
  ['compat=0.10,cluster_size=16k', true],
  ['extended_l2=on,cluster_size=64k', true],
  ['compression_type=zstd,cluster_size=64k', true],
  ['preallocation=metadata,cluster_size=32k', false],
  ['lazy_refcounts=on,refcount_bits=64', false],
];

/** What qemu-io does to make holes. */
function wear(seed: number, isCompressed: boolean): string[] {
  const below = seededBelow(seed);
  const commands: string[] = [];
  for (let step = 0; step < 40; step++) {
    const at = below(DISK_BYTES / 65536) * 65536;
    const length = Math.min((1 + below(24)) * 65536, DISK_BYTES - at);
    if (step % 3 === 2) commands.push(`discard ${at} ${length}`);
    else if (isCompressed && step % 2 === 0)
      commands.push(`discard ${at} 64k`, `write -c -P ${step} ${at} 64k`);
    else commands.push(`write -P ${step + 1} ${at + below(2) * 777} ${length - 777}`);
  }
  return [...commands, `discard 0 ${DISK_BYTES / 4}`].flatMap((command) => ['-c', command]);
}

const snapshotsOf = (image: string): string[] =>
  qemu('img', 'snapshot', '-l', image)
    .split('\n')
    .map((line) => /^\d+\s+(\S+)/.exec(line)?.[1])
    .filter((name) => name !== undefined);

const hashOf = (...source: string[]): string =>
  spawnSync('sh', ['-c', 'qemu-img convert -O raw "$@" /dev/stdout | sha256sum', 'sh', ...source], {
    encoding: 'utf8',
  }).stdout;

for (const [index, [options, isCompressed]] of KINDS.entries())
  test(`an image of qemu-img's that was made compact: ${options}${isCompressed ? ', compressed' : ''}`, async (context) => {
    if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
    const folder = scratch(context);
    const [image, former] = [join(folder, 'image'), join(folder, 'former')];
    const hasMore = !options.includes('refcount_bits=1') && !options.includes('512');
    qemu('img', 'create', '-q', '-f', 'qcow2', '-o', options, image, String(DISK_BYTES));
    qemu('io', ...wear(index, isCompressed), image);
    if (hasMore) qemu('img', 'snapshot', '-c', 'first', image);
    if (hasMore && !options.includes('0.10')) qemu('img', 'bitmap', '--add', image, 'bits');
    qemu('io', ...wear(100 + index, isCompressed), image);
    if (hasMore) qemu('img', 'snapshot', '-c', 'second', image);
    qemu('io', ...wear(200 + index, isCompressed), image);
    if (hasMore) qemu('img', 'snapshot', '-d', 'first', image);
    copyFileSync(image, former);
    await ours('img', 'compact', '-q', image);
    assert.match(qemu('img', 'check', image), /No errors were found/);
    assert.match(qemu('img', 'compare', image, former), /identical/);
    assert.deepEqual(snapshotsOf(image), snapshotsOf(former));
    for (const name of snapshotsOf(image))
      assert.equal(hashOf('-l', name, image), hashOf('-l', name, former), name);
    const bitmapsOf = (of: string): unknown =>
      (
        JSON.parse(qemu('img', 'info', '--output=json', of)) as {
          'format-specific': { data: { bitmaps?: unknown } };
        }
      )['format-specific'].data.bitmaps;
    assert.deepEqual(bitmapsOf(image), bitmapsOf(former));
    assert.ok(
      statSync(image).size < statSync(former).size,
      `${statSync(former).size} ${statSync(image).size}`,
    );
    // QEMU goes on writing, where it finds room.
    for (const disk of [image, former]) qemu('io', ...wear(300 + index, isCompressed), disk);
    assert.match(qemu('img', 'check', image), /No errors were found/);
    assert.match(qemu('img', 'compare', image, former), /identical/);
  });

test('an encrypted image is as encrypted as before, and shows the same', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(context);
  for (const format of ['luks', 'aes']) {
    const image = join(folder, format);
    const iterTime = format === 'luks' ? ',encrypt.iter-time=10' : '';
    const creation = `encrypt.format=${format},encrypt.key-secret=s${iterTime}`;
    qemu('img', 'create', '-q', ...SECRETS, '-f', 'qcow2', '-o', creation, image, String(DISK_BYTES));
    const named = `driver=qcow2,file.filename=${image},encrypt.format=${format},encrypt.key-secret=s`;
    const disk = [...SECRETS, '--image-opts', named];
    qemu('io', ...disk, ...wear(1, false));
    const before = hashOf(...disk);
    const formerBytes = statSync(image).size;
    await ours('img', 'compact', '-q', ...disk);
    assert.match(qemu('img', 'check', ...disk), /No errors were found/);
    assert.equal(hashOf(...disk), before);
    assert.ok(statSync(image).size < formerBytes);
  }
});

test('images that cannot be compacted are refused by name', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(context);
  const [image, raw] = [join(folder, 'image'), join(folder, 'raw')];
  const refusal = async (...words: string[]): Promise<string> => {
    const main = toolAnswer((out) => imgMain(['compact', ...words], out, createRealHost(), allDrivers));
    const { code, stderr } = await main;
    assert.equal(code, 1);
    return stderr;
  };
  qemu('img', 'create', '-q', '-f', 'qcow2', '-o', `data_file=${raw},data_file_raw=on`, image, '1M');
  assert.match(await refusal(image), /Could not compact .*: Its data is in another file/);
  assert.match(await refusal('-f', 'raw', raw), /Images of format 'raw' are not compacted/);
});
