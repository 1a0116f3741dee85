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
