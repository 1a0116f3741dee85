import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { PROGRAM, skipWithout } from './daemon.js';
import { ToolPair } from './tool-pair.js';

/** Images that qemu-img has compressed (convert -c), read and written by both. */

/** Text, noise, zeroes and holes. */
const CONTENT = [
  'truncate -s 3M raw',
  'seq 1 90000 | dd of=raw conv=notrunc status=none',
  'dd if=../noise of=raw bs=64k seek=12 conv=notrunc status=none',
  'seq 7 30000 | dd of=raw bs=64k seek=30 conv=notrunc status=none',
];
const KINDS = [
  'compat=0.10',
  'compat=1.1,cluster_size=512',
  'compression_type=zstd,cluster_size=512',
  'compat=1.1,cluster_size=4096',
  'compression_type=zstd',
  'cluster_size=2M',
  'compression_type=zstd,cluster_size=2M',
];

/** Of `img check` the first line: how much is fragmented depends on where clusters are put. */
const verdict = (text: string): string => text.split('\n', 1)[0] ?? '';

function packed(pair: ToolPair, kind: string, more = ''): void {
  pair.shell('ours', 'head -c 300000 /dev/urandom > ../noise');
  pair.prepare(...CONTENT, `qemu-img convert -c -O qcow2 -o ${kind} ${more} raw packed`);
}

for (const kind of KINDS) {
  test(`compressed images (${kind}) are read`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const pair = new ToolPair(t);
    packed(pair, kind);
    for (const line of [
      'img info packed',
      'img check packed',
      'img map --output=json packed',
      'img compare packed raw',
      'img convert -O raw packed out',
      'img compare out raw',
      'img convert -O qcow2 packed plain',
      'img compare plain packed',
      "io -r -c 'read -v 65000 1100' -c 'read 0 3M' -c 'read -v 786000 600' packed",
      'img create -q -f qcow2 -b packed -F qcow2 over',
      "io -c 'write -P 3 1000 70000' -c 'read -v 900 200' over",
      'img compare over packed',
    ])
      await pair.alike(line);
    pair.shell('ours', 'qemu-img compare packed raw; cmp out raw');
    // As users have it: the threads' file is beside the program.
    const { status, stderr } = spawnSync(
      process.execPath,
      [PROGRAM, 'img', 'convert', '-O', 'raw', 'packed', 'built'],
      {
        cwd: pair.path('ours', '.'),
        encoding: 'utf8',
      },
    );
    assert.equal(status, 0, stderr);
    pair.shell('ours', 'cmp built raw');
  });

  test(`compressed images (${kind}) are written, and let go of what nobody uses`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const pair = new ToolPair(t);
    packed(pair, kind);
    for (const requests of [
      ['write -P 3 1000 70000'],
      ['write -P 4 0 1', 'write -P 5 511 2', 'write -P 6 2097151 2'],
      ['write -z 131072 65536', 'write -z -u 200000 100000'],
      ['write -P 7 1M 512k'],
      ['write -P 8 3145000 728'],
    ]) {
      const line = requests.map((request) => `-c '${request}'`).join(' ');
      await pair.alike(`io -f qcow2 ${line} packed`);
      await pair.alike('img check packed', verdict);
      pair.prepare('qemu-img check -q packed', 'qemu-img convert -O raw packed content');
      pair.shell('ours', 'cmp content ../theirs/content');
    }
    await pair.alike("io -f qcow2 -c 'discard 0 3M' packed");
    pair.prepare('qemu-img check -q packed');
    // All that was compressed is replaced: nothing may be left behind.
    packed(pair, kind);
    await pair.alike("io -f qcow2 -c 'write -P 9 0 3M' packed");
    pair.prepare('qemu-img check -q packed');
    await pair.alike('img check packed', verdict);
  });
}

test('compressed clusters that a snapshot shares stay as they were', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const pair = new ToolPair(t);
  packed(pair, 'cluster_size=4096');
  pair.prepare('qemu-img snapshot -c s packed');
  for (const requests of [
    ['write -P 3 1000 70000', 'write -z 200000 100000', 'discard 400k 100k'],
    ['write -P 3 0 3M'],
  ]) {
    await pair.alike(`io -f qcow2 ${requests.map((request) => `-c '${request}'`).join(' ')} packed`);
    await pair.alike('img check packed', verdict);
  }
  pair.prepare('qemu-img check -q packed', 'qemu-img convert -l s -O raw packed then', 'cmp then raw');
});

for (const type of ['zlib', 'zstd'])
  test(`broken ${type} data is an error, also where it claims to lie behind the end`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const pair = new ToolPair(t);
    pair.prepare(
      'seq 1 100000 | head -c 256K > raw',
      `qemu-img convert -c -O qcow2 -o compression_type=${type} raw packed`,
      // Data begins behind the header, the refcount table, a refcount block, the L1 and an L2 table.
      "printf '\\377' | dd of=packed bs=1 seek=327680 conv=notrunc status=none",
    );
    await pair.alike("io -r -c 'read 0 1' -c 'read 0 256k' -c 'read 64k 1k' packed");
    pair.prepare('truncate -s 327680 packed');
    await pair.alike("io -r -c 'read 0 512' -c 'read 192k 64k' packed");
  });
