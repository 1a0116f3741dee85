import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { canCompressZstd } from '../../src/codec/index.js';
import { EngineBed } from '../engine/engine-bed.js';
import { run } from './daemon.js';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

const ZSTD = canCompressZstd()
  ? ['-o compression_type=zstd', '-o compression_type=zstd,cluster_size=2M']
  : [];

/** Cluster sizes, refcounts of one bit, and a disk that ends within a cluster. */
const IMAGES = [
  '',
  '-o cluster_size=512',
  '-o cluster_size=4k',
  '-o cluster_size=2M',
  '-o refcount_bits=1',
  '-o compat=0.10',
  ...ZSTD,
];

/** Of both: nothing wrong with the image, the same clusters compressed, the same content. */
function same(pair: ToolPair, name: string, what: string): void {
  const facts = (['ours', 'theirs'] as const).map((side) => {
    const check = pair.shell(
      side,
      `qemu-img check --output=json -f qcow2 ${name} | grep -v '"image-end-offset"'`,
    );
    const { 'fragmented-clusters': _where, ...rest } = JSON.parse(check) as Record<string, unknown>;
    return rest;
  });
  assert.deepEqual(facts[0], facts[1], what);
  assert.match(pair.shell('ours', `qemu-img compare ${name} ../theirs/${name}`), /identical/, what);
}

const REQUESTS = [
  'write -c 512 100',
  'write -c 100 512',
  'write -c -P 1 0 2M',
  'write -c -P 2 0 2M',
  'write -P 3 1000k 3k',
  'write -z 2M 2M',
  'write -c -P 4 2M 2M',
  'write -c -P 5 4M 100k',
  'write -P 6 0 4M',
  'discard 0 4M',
  'write -c -P 7 0 4M',
  'read -P 7 0 4M',
];

for (const creation of IMAGES) {
  test(`compressed writes are QEMU's (${creation || 'usual image'})`, { skip }, async (t) => {
    const pair = new ToolPair(t);
    pair.prepare(`qemu-img create -q -f qcow2 ${creation} a.q 4196k`);
    for (const request of REQUESTS) {
      // A version 2 image has no zero clusters, and QEMU leaves holes.
      if (creation.includes('0.10') && request.includes('-z')) continue;
      await pair.alike(`io -f qcow2 -c '${request}' a.q`);
      same(pair, 'a.q', request);
    }
  });

  test(
    `what goes through the filter is compressed as QEMU compresses it (${creation || 'usual image'})`,
    { skip },
    async (t) => {
      const pair = new ToolPair(t);
      pair.prepare(`qemu-img create -q -f qcow2 ${creation} a.q 4196k`);
      const filter = 'driver=compress,file.driver=qcow2,file.file.filename=a.q';
      for (const request of [
        'write -P 1 0 3k',
        'write -P 2 2M 2M',
        'write -P 3 0 1',
        'write -z 0 2M',
        'write -P 4 4M 100k',
        'write -P 5 100 700k',
        'discard 2M 2M',
        'read 0 4196k',
      ]) {
        await pair.alike(`io --image-opts -c '${request}' ${filter}`);
        same(pair, 'a.q', request);
      }
    },
  );
}

test('convert -c writes what QEMU writes', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare(
    'qemu-img create -q -f raw a.raw 5000k',
    "qemu-io -f raw -c 'write -P 1 0 700k' -c 'write -P 2 900k 10k' -c 'write -P 0 2M 100k' -c 'write -P 3 4999k 1k' a.raw",
    'head -c 200000 /dev/zero | openssl enc -aes-128-ctr -K 00 -iv 00 > random',
    'dd if=random of=a.raw bs=1k seek=3000 conv=notrunc status=none',
  );
  const compared = 'a.q';
  for (const options of [
    '',
    '-o cluster_size=4k',
    '-o cluster_size=1M',
    '-S 0',
    '-m 1 -W',
    '-o compat=0.10',
    ...ZSTD,
  ]) {
    await pair.alike(`img convert -c -f raw -O qcow2 ${options} a.raw a.q`);
    same(pair, compared, options);
    assert.match(pair.shell('ours', 'qemu-img compare -f raw -F qcow2 a.raw a.q'), /identical/);
  }
  await pair.alike('img convert -c -f raw -O raw a.raw b.raw');
  await pair.alike('img convert -c -C -f raw -O qcow2 a.raw b.q');
  await pair.alike('img info --image-opts driver=compress,file.driver=raw,file.file.filename=a.raw');
  await pair.alike(
    'img info --image-opts driver=compress,file.driver=compress,file.file.driver=qcow2,file.file.file.filename=a.q',
  );
});

test('backups are compressed, by the job and by what a guest makes it copy first', { skip }, async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  await bed.image('T', { discard: 'unmap' });
  const backup = { device: 'B', sync: 'full', compress: true };
  await bed.execute('blockdev-backup', { ...backup, 'job-id': 'j', target: 'T' });
  await bed.guest('write -P 0x77 2M 3M');
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  await bed.execute('drive-backup', {
    ...backup,
    'job-id': 'k',
    target: bed.path('U.qcow2'),
    format: 'qcow2',
  });
  await bed.event('BLOCK_JOB_COMPLETED', 'k');
  await bed.execute('blockdev-del', { 'node-name': 'T' });
  for (const [name, pattern] of [
    ['T', '0x11'],
    ['U', '0x77'],
  ]) {
    const check = run(bed.folder, 'qemu-img', 'check', `${name}.qcow2`);
    assert.match(check, /No errors were found[^]*100.00% compressed clusters/);
    const reads = ['-c', `read -P ${pattern} 2M 2M`, '-c', 'read -P 0x21 1M 1M'];
    assert.doesNotMatch(run(bed.folder, 'qemu-io', '-f', 'qcow2', ...reads, `${name}.qcow2`), /failed/);
  }
});

test('a target that cannot compress is refused in the words of QEMU', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.engine.addNode({ driver: 'null-co', 'node-name': 'n', size: 8 * 1024 * 1024 });
  const backup = { device: 'A', sync: 'full', compress: true, 'job-id': 'j', target: 'n' };
  assert.equal(await bed.refusal('blockdev-backup', backup), 'Compression is not supported for this drive ');
});
