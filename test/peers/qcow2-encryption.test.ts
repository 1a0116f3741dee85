import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratch, skipWithout } from './daemon.js';
import { ours, qemu, SECRETS } from './encrypted-tools.js';
import { ToolPair } from './tool-pair.js';

const creation = (way: string): string =>
  `encrypt.format=${way},encrypt.key-secret=s${way === 'luks' ? ',encrypt.iter-time=10' : ''}`;

for (const [way, more] of [
  ['luks', ''],
  ['luks', ',extended_l2=on,cluster_size=16k'],
  ['luks', ',compat=0.10,cluster_size=4k'],
  ['aes', ''],
  ['aes', ',cluster_size=512'],
] as const)
  test(`encrypted images go back and forth: ${way}${more}`, async (context) => {
    if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
    const folder = scratch(context);
    for (const [maker, path] of [
      [ours, join(folder, 'ours')],
      [qemu, join(folder, 'theirs')],
    ] as const) {
      await maker('img', 'create', '-q', ...SECRETS, '-f', 'qcow2', '-o', creation(way) + more, path, '2M');
      const named = `driver=qcow2,file.filename=${path},encrypt.format=${way},encrypt.key-secret=s`;
      const disk = [...SECRETS, '--image-opts', named];
      const zeroes = ['-c', 'write -z 70000 777', '-c', 'write -P 1 1M 64k', '-c', 'discard 1M 64k'];
      await ours('io', ...disk, '-c', 'write -P 7 3k 170k', ...zeroes);
      qemu('io', ...disk, '-c', 'write -P 9 1000 500', '-c', 'write -P 8 400k 300k');
      const read = [...['-c', 'read -P 9 1000 500'], ...['-c', 'read -P 8 400k 300k']];
      const older = [...['-c', 'read -P 7 71000 50k'], ...['-c', 'read -P 0 70000 777']];
      assert.doesNotMatch(await ours('io', ...disk, ...read, ...older), /verification failed/);
      assert.doesNotMatch(qemu('io', ...disk, ...read, ...older), /verification failed/);
      assert.match(qemu('img', 'check', ...disk), /No errors were found/);
      assert.match(await ours('img', 'check', ...disk), /No errors were found/);
      await ours('img', 'resize', '-q', ...disk, '3M');
      await ours('img', 'resize', '-q', '--shrink', ...disk, '410k');
      await ours('img', 'resize', '-q', ...disk, '3M');
      const after = [...['-c', 'read -P 8 400k 10k'], ...['-c', 'read -P 0 410k 1M']];
      assert.doesNotMatch(qemu('io', ...disk, ...after), /verification failed/);
      assert.match(qemu('img', 'check', ...disk), /No errors were found/);
    }
  });

test('what is said of encrypted images is what QEMU says', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const pair = new ToolPair(context);
  for (const [name, way] of [
    ['l.q', 'luks'],
    ['a.q', 'aes'],
  ] as const) {
    const path = pair.path('ours', name);
    await ours('img', 'create', '-q', ...SECRETS, '-f', 'qcow2', '-o', creation(way), path, '1M');
    copyFileSync(path, pair.path('theirs', name));
  }
  pair.prepare('qemu-img create -q -f qcow2 p.q 1M');
  const s = SECRETS.join(' ');
  const luks = '--image-opts driver=qcow2,file.filename=l.q,encrypt.format=luks';
  const lines = `
    img info l.q
    img info --output=json l.q
    img info --output=json a.q
    img check l.q
    img check ${s} ${luks},encrypt.key-secret=s
    img map --output=json ${s} ${luks},encrypt.key-secret=s
    img create ${s} -f qcow2 -o encryption=on x.q 1M
    img create ${s} -f qcow2 -o encrypt.format=luks x.q 1M
    img create ${s} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.foo=1 x.q 1M
    img create ${s} -f qcow2 -o encrypt.format=luks,encrypt.key-secret=nope x.q 1M
    img create ${s} -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s x.q 1M
    img create -f qcow2 -o help
    img measure ${s} -O qcow2 --size 1G -o encrypt.format=aes,encrypt.key-secret=s
    img amend ${s} -o encrypt.state=active,encrypt.new-secret=s p.q
    img amend ${s} -o encrypt.state=active,encrypt.new-secret=s --image-opts driver=qcow2,file.filename=a.q,encrypt.format=aes,encrypt.key-secret=s
    img amend ${s} -o encrypt.state=inactive,encrypt.keyslot=0 ${luks},encrypt.key-secret=s
    img amend ${s} -o encrypt.format=luks ${luks},encrypt.key-secret=s
    img amend ${s} -o encrypt.state=active,encrypt.new-secret=t,encrypt.keyslot=9 ${luks},encrypt.key-secret=s
    img convert -c ${s} -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s p.q x.q
    img compare ${s} ${luks},encrypt.key-secret=s driver=qcow2,file.filename=p.q
    img check ${s} ${luks},encrypt.key-secret=bad
    img check ${s} --image-opts driver=qcow2,file.filename=a.q,encrypt.format=luks,encrypt.key-secret=s
    img check ${s} --image-opts driver=qcow2,file.filename=p.q,encrypt.format=luks,encrypt.key-secret=s`;
  for (const line of lines
    .split('\n')
    .map((text) => text.trim())
    .filter((text) => text !== ''))
    await pair.alike(line);
});

test('an image is converted to an encrypted one, and its passwords change', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(context);
  const [raw, path] = [join(folder, 'raw'), join(folder, 'image')];
  qemu('img', 'create', '-q', '-f', 'raw', raw, '3M');
  qemu('io', '-f', 'raw', '-c', 'write -P 5 100k 2M', raw);
  await ours('img', 'convert', ...SECRETS, '-f', 'raw', '-O', 'qcow2', '-o', creation('luks'), raw, path);
  const named = (secret: string): string[] => [
    ...SECRETS,
    '--image-opts',
    `driver=qcow2,file.filename=${path},encrypt.format=luks,encrypt.key-secret=${secret}`,
  ];
  qemu('img', 'compare', ...named('s'), `driver=raw,file.filename=${raw}`);
  const add = 'encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=10';
  await ours('img', 'amend', ...named('s'), '-o', add);
  qemu('img', 'amend', ...named('t'), '-o', 'encrypt.state=inactive,encrypt.old-secret=s');
  await ours('img', 'compare', ...named('t'), `driver=raw,file.filename=${raw}`);
  await assert.rejects(ours('img', 'check', ...named('s')), /Invalid password/);
});
