import assert from 'node:assert/strict';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { scratch, skipWithout } from './daemon.js';
import { ours, qemu, SECRETS } from './encrypted-tools.js';
import { ToolPair } from './tool-pair.js';

const named = (path: string, secret = 's'): string[] => [
  '--image-opts',
  `driver=luks,key-secret=${secret},file.filename=${path}`,
];

const WAYS = [
  '',
  ',cipher-alg=aes-128',
  ',cipher-alg=aes-192,hash-alg=sha1',
  ',ivgen-alg=plain,hash-alg=sha512',
  ',cipher-mode=cbc',
  ',cipher-mode=cbc,ivgen-alg=essiv,cipher-alg=aes-128',
  ',cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5',
  ',cipher-mode=ctr,hash-alg=sha384',
  ',cipher-mode=ecb,hash-alg=ripemd160',
  ',ivgen-alg=essiv,hash-alg=md5',
  ',ivgen-hash-alg=sha224,hash-alg=sha224',
];

for (const way of WAYS)
  test(`volumes of LUKS go back and forth: default${way}`, async (context) => {
    if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
    const folder = scratch(context);
    for (const [maker, path] of [
      [ours, join(folder, 'ours')],
      [qemu, join(folder, 'theirs')],
    ] as const) {
      const options = `key-secret=s,iter-time=10${way}`;
      await maker('img', 'create', '-q', ...SECRETS, '-f', 'luks', '-o', options, path, '1M');
      const disk = [...SECRETS, ...named(path)];
      await ours('io', ...disk, '-c', 'write -P 7 3k 170k', '-c', 'write -z 70000 777');
      assert.match(qemu('io', ...disk, '-c', 'read -P 7 3k 64k', '-c', 'read -P 0 70000 777'), /^read/);
      qemu('io', ...disk, '-c', 'write -P 9 1000 500', '-c', 'write -P 8 400k 300k');
      const read = ['-c', 'read -P 9 1000 500', '-c', 'read -P 8 400k 300k', '-c', 'read -P 7 71000 50k'];
      assert.doesNotMatch(await ours('io', ...disk, ...read), /verification failed/);
      assert.doesNotMatch(qemu('io', ...disk, ...read), /verification failed/);
    }
  });

test('passwords that one side sets or erases are so for the other', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const path = join(scratch(context), 'image');
  const options = 'key-secret=s,iter-time=10';
  await ours('img', 'create', '-q', ...SECRETS, '-f', 'luks', '-o', options, path, '64k');
  const amend = [...SECRETS, '-o'];
  await ours('img', 'amend', ...amend, 'state=active,new-secret=t,keyslot=6,iter-time=10', ...named(path));
  qemu('io', ...SECRETS, ...named(path, 't'), '-c', 'write -P 3 0 64k');
  qemu('img', 'amend', ...amend, 'state=inactive,old-secret=s', ...named(path, 't'));
  const read = ['-c', 'read -P 3 0 64k'];
  assert.doesNotMatch(await ours('io', ...SECRETS, ...named(path, 't'), ...read), /failed/);
  await assert.rejects(ours('io', ...SECRETS, ...named(path), ...read), /Invalid password/);
  qemu('img', 'amend', ...amend, 'state=active,new-secret=s,iter-time=10', ...named(path, 't'));
  await ours('img', 'amend', ...amend, 'state=inactive,keyslot=6', ...named(path));
  assert.doesNotMatch(qemu('io', ...SECRETS, ...named(path), ...read), /failed/);
});

/** A volume of ours, the same on both sides. */
async function pairOf(context: TestContext): Promise<ToolPair> {
  const pair = new ToolPair(context);
  const path = pair.path('ours', 'a.luks');
  const options = 'key-secret=s,iter-time=10,cipher-mode=cbc,ivgen-alg=essiv';
  await ours('img', 'create', '-q', ...SECRETS, '-f', 'luks', '-o', options, path, '256k');
  copyFileSync(path, pair.path('theirs', 'a.luks'));
  return pair;
}

test('what is said of volumes of LUKS is what QEMU says', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const pair = await pairOf(context);
  const secrets = SECRETS.join(' ');
  const opts = '--image-opts driver=luks,file.filename=a.luks';
  const lines = `
    img info a.luks
    img info --output=json a.luks
    img info ${secrets} ${opts},key-secret=s
    img check a.luks
    img check ${secrets} ${opts},key-secret=s
    img map --output=json ${secrets} ${opts},key-secret=s
    img compare ${secrets} ${opts},key-secret=s driver=luks,file.filename=a.luks,key-secret=s
    img compare ${secrets} ${opts},key-secret=s driver=luks,file.filename=a.luks,key-secret=bad
    img resize ${secrets} ${opts},key-secret=s +512k
    img resize ${secrets} ${opts},key-secret=s 256k
    img resize --shrink ${secrets} ${opts},key-secret=s 256k
    img info ${secrets} ${opts},key-secret=s
    img resize a.luks 1M
    img rebase -u -b x -F raw a.luks
    img create -f luks x.luks 1M
    img create -f luks -o key-secret=nope x.luks 1M
    img create -f luks -b a.luks x.luks 1M
    img create ${secrets} -f luks -o key-secret=s,ivgen-alg=essiv,ivgen-hash-alg=sha512 x.luks 1M
    img create -f luks -o help
    img create -f luks -o help x
    img measure -O luks --size 1G
    img convert -f raw -O luks a.luks x.luks
    io ${opts} -c 'read 0 512'
    io ${secrets} ${opts},key-secret=bad -c 'read 0 512'
    io ${opts},key-secret=nope -c 'read 0 512'`;
  for (const line of lines
    .split('\n')
    .map((text) => text.trim())
    .filter((text) => text !== ''))
    await pair.alike(line);
});

test('changes of passwords that cannot be are refused in the same words', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const pair = await pairOf(context);
  const head = `img amend ${SECRETS.join(' ')} --image-opts driver=luks,file.filename=a.luks,key-secret=s -o`;
  for (const change of [
    'state=active,new-secret=t,keyslot=9',
    'state=active,new-secret=t,keyslot=0',
    'state=active,new-secret=t,old-secret=s',
    'state=active,new-secret=nope',
    'state=active',
    'state=inactive',
    'state=inactive,keyslot=5',
    'state=inactive,keyslot=0',
    'state=inactive,old-secret=bad',
    'state=inactive,old-secret=s',
    'state=inactive,old-secret=t,keyslot=0',
    'state=inactive,iter-time=10,keyslot=0',
    'state=inactive,new-secret=t',
    'new-secret=t',
    'state=foo',
    'state=active,keyslot=x',
    'key-secret=s',
    'size=2M',
    'bogus=1',
  ])
    await pair.alike(`${head} ${change}`);
});

test('an image is converted to and from volumes of LUKS', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(context);
  const [raw, luks, back] = ['raw', 'luks', 'back'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  qemu('img', 'create', '-q', '-f', 'raw', raw, '3M');
  qemu('io', '-f', 'raw', '-c', 'write -P 5 100k 2M', raw);
  const options = ['-o', 'key-secret=s,iter-time=10'];
  await ours('img', 'convert', ...SECRETS, '-f', 'raw', '-O', 'luks', ...options, raw, luks);
  qemu('img', 'compare', ...SECRETS, ...named(luks), `driver=raw,file.filename=${raw}`);
  await ours('img', 'convert', ...SECRETS, '-O', 'raw', ...named(luks), back);
  qemu('img', 'compare', '-f', 'raw', '-F', 'raw', raw, back);
});
