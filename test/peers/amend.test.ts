import assert from 'node:assert/strict';
import { test } from 'node:test';
import { skipWithout } from './daemon.js';
import { ToolPair } from './tool-pair.js';

test('img amend answers as qemu-img does, and leaves the same image', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const pair = new ToolPair(context);
  pair.prepare(
    'qemu-img create -q -f qcow2 base.q 1M',
    'qemu-img create -q -f qcow2 -b base.q -F qcow2 a.q 1M',
    'qemu-img create -q -f qcow2 -o extended_l2=on e.q 1M',
    'qemu-img create -q -f qcow2 -o refcount_bits=32 r.q 1M',
    'qemu-img create -q -f raw r.raw 1M',
    "qemu-io -f qcow2 -c 'write -P 1 0 200k' base.q",
    "qemu-io -f qcow2 -c 'write -P 2 64k 100k' -c 'write -z 128k 64k' a.q",
  );
  const lines = `
    img amend a.q
    img amend -o compat=0.10
    img amend -o compat=0.10 a.q
    img info a.q
    img check a.q
    img amend -o lazy_refcounts=on a.q
    img amend -o compat=1.1,lazy_refcounts=on a.q
    img info a.q
    img amend -o lazy_refcounts=off a.q
    img info --output=json a.q
    img amend -o cluster_size=4k a.q
    img amend -o foo=1 a.q
    img amend -o refcount_bits=16 a.q
    img amend -o preallocation=full a.q
    img amend -o compat=0.42 a.q
    img amend -o size=2M a.q
    img info a.q
    img amend -o size=512k a.q
    img check a.q
    img amend -f raw -o size=2M r.raw
    img amend -o backing_file=base.q a.q
    img amend -o backing_fmt=raw a.q
    img amend -q -o compat=1.1 a.q
    img amend -p -o compat=1.1 a.q
    img amend -o compat=0.10 r.q
    img amend -o compat=0.10 e.q
    img amend -o size=1 -z a.q`;
  for (const line of lines.split('\n').map((text) => text.trim()))
    if (line !== '') await pair.alike(line, (text) => text.replace(/Image end offset: \d+/, 'end'));
  // The reader of the other side sees the same disk.
  pair.prepare('qemu-img check -q a.q', 'qemu-img convert -O raw a.q out');
  await pair.alike('img compare -F raw a.q out');
});

test('bitmaps outlive img amend both ways, and none is lost to version 2', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const pair = new ToolPair(context);
  pair.prepare(
    'qemu-img create -q -f qcow2 b.q 4M',
    'qemu-img bitmap --add -g 64k b.q open',
    'qemu-img bitmap --add b.q shut',
    'qemu-img bitmap --disable b.q shut',
    "qemu-io -f qcow2 -c 'write -P 2 1M 256k' b.q",
  );
  // After its advice QEMU goes on in the same line.
  const withoutEnd = (text: string): string =>
    text
      .replace(/Image end offset: \d+/, 'end')
      .replace(/to fix\.\n*/, 'to fix.')
      .trimStart();
  for (const line of [
    'img amend -o lazy_refcounts=on b.q',
    'img info b.q',
    'img check b.q',
    'img amend -o compat=1.1,lazy_refcounts=off b.q',
    'img amend -o size=8M b.q',
    'img info b.q',
    'img check b.q',
  ])
    await pair.alike(line, withoutEnd);
  // The reader of the other side finds the same bitmaps, and what they hold.
  const held = 'qemu-img info b.q | grep -c name: ; qemu-img map b.q | tail -n +2 | wc -l';
  pair.alikeInShell(held);
  // QEMU drops them, with their clusters leaked; here they are kept.
  const [theirs, ours] = await pair.answers('img amend -o compat=0.10 b.q');
  assert.equal(theirs.code, 0);
  assert.deepEqual([ours.code, ours.stderr], [1, 'qemu-img: Cannot downgrade an image that keeps bitmaps\n']);
  assert.equal(pair.shell('ours', 'qemu-img check -q b.q; qemu-img info b.q | grep -c name:').trim(), '2');
  // What QEMU has made of its own image is read here too, without bitmaps, and taken back to version 3.
  pair.shell('theirs', 'cp b.q ../ours/dropped.q; cp b.q dropped.q');
  for (const line of ['img check dropped.q', 'img amend -o compat=1.1 dropped.q', 'img info dropped.q'])
    await pair.alike(line, withoutEnd);
  // Without bitmaps an image goes down and up again, and takes new ones.
  pair.shell('ours', 'qemu-img bitmap --remove b.q open; qemu-img bitmap --remove b.q shut');
  pair.shell('theirs', 'cp ../ours/b.q b.q');
  for (const line of [
    'img amend -o compat=0.10 b.q',
    'img bitmap --add b.q late',
    'img amend -o compat=1.1 b.q',
    'img bitmap --add b.q late',
    'img info b.q',
    'img check b.q',
  ])
    await pair.alike(line, (text) => withoutEnd(text).replace(/#block\d+/g, '#block'));
});

test('refcounts of another width, and data files, as qemu-img changes them', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  const pair = new ToolPair(context);
  pair.prepare(
    'qemu-img create -q -f qcow2 a.q 8M',
    'qemu-img create -q -f qcow2 -o cluster_size=512 small.q 1M',
    'qemu-img create -q -f qcow2 -o compat=0.10 old.q 8M',
    'qemu-img create -q -f qcow2 -b a.q -F qcow2 over.q',
    'qemu-img create -q -f qcow2 -o data_file=d.raw d.q 8M',
    'qemu-img create -q -f qcow2 -o data_file=dr.raw,data_file_raw=on dr.q 8M',
    'qemu-img create -q -f raw e.raw 8M',
    "qemu-io -f qcow2 -c 'write -P 1 0 3M' a.q",
    "qemu-io -f qcow2 -c 'write -P 1 0 700k' -c 'discard 100k 200k' small.q",
    'cp a.q a.was; cp small.q small.was',
  );
  const lines = `
    img amend -o refcount_bits=32 a.q
    img check a.q
    img info a.q
    img amend -o refcount_bits=8 a.q
    img check a.q
    img compare a.q a.was
    img amend -o refcount_bits=64 small.q
    img check small.q
    img amend -o refcount_bits=1 small.q
    img check small.q
    img compare small.q small.was
    img amend -o refcount_bits=3 a.q
    img amend -o refcount_bits=0 a.q
    img amend -o refcount_bits=128 a.q
    img amend -o refcount_bits=x a.q
    img amend -o refcount_bits=64,size=16M a.q
    img info a.q
    img snapshot -c one a.q
    img snapshot -c two a.q
    img amend -o refcount_bits=1 a.q
    img check a.q
    img amend -o refcount_bits=2 a.q
    img check a.q
    img snapshot -d one a.q
    img snapshot -a two a.q
    img check a.q
    img amend -o compat=0.10 a.q
    img amend -o compat=0.10,refcount_bits=8 a.q
    img snapshot -d two a.q
    img amend -o compat=0.10,refcount_bits=16 a.q
    img info a.q
    img check a.q
    img amend -o refcount_bits=8 a.q
    img amend -o refcount_bits=8,compat=1.1 old.q
    img info old.q
    img check old.q
    img amend -o data_file=e.raw a.q
    img amend -o data_file= a.q
    img amend -o data_file_raw=on a.q
    img amend -o data_file_raw=off a.q
    img amend -o data_file_raw=on,data_file=x a.q
    img amend -o data_file_raw=on,refcount_bits=3 old.q
    img amend -o compat=0.42,refcount_bits=3 old.q
    img amend -o compat=0.42,lazy_refcounts=x old.q
    img amend -o size=x,foo=1 old.q
    img amend -o foo=1,size=x old.q
    img amend -o compat=0.10,lazy_refcounts=on,backing_file=y old.q
    img amend -o compat=0.10,refcount_bits=8,backing_file=y old.q
    img amend -o compat=0.10,size=16M,lazy_refcounts=on old.q
    img info old.q
    img amend -o backing_file=a.q over.q
    img amend -o backing_file=a.q,backing_fmt=qcow2 over.q
    img amend -o backing_fmt= over.q
    img amend -o backing_file= old.q
    img amend -o data_file_raw=off dr.q
    img info dr.q
    img amend -o data_file_raw=on dr.q
    img check dr.q
    img amend -o data_file=e.raw,size=16M d.q
    img info d.q
    img info -f raw d.raw
    img amend -o data_file=e.raw d.q
    img amend -o data_file=e.raw,compat=0.10 d.q
    img amend -o data_file= d.q
    img info d.q
    img amend -o data_file=e.raw d.q
    img amend -o help -f qcow2`;
  for (const line of lines.split('\n').map((text) => text.trim()))
    if (line !== '') await pair.alike(line, (text) => text.replace(/Image end offset: \d+/, 'end'));
  // Each side's image is the other's too.
  for (const name of ['a.q', 'small.q', 'old.q'])
    pair.shell('ours', `qemu-img check -q ${name}; cp ${name} ../theirs/from-ours`);
  await pair.alike('img compare small.q small.was');
});
