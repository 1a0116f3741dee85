import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

test('two images are compared, by names and options of every form', { skip }, async (t) => {
  const pair = new ToolPair(t);
  pair.prepare('qemu-img create -q -f raw v.raw 1M', 'qemu-img create -q -f qcow2 v.q 1M');
  await pair.alike(
    "io -f raw -c 'write -P 1 0 64k' -c 'read -P 1 0 64k' -c 'write -P 2 100k 700' -c 'flush' -c 'length' blkverify:v.raw:v.q",
  );
  for (const name of [
    'blkverify:v.raw:v.q',
    'blkverify:v.raw',
    'blkverify:',
    'blkverify:missing:v.q',
    'blkverify:v.raw:missing',
    '--image-opts driver=blkverify,raw.driver=file,raw.filename=v.raw,test.driver=qcow2,test.file.filename=v.q',
    '--image-opts driver=blkverify,raw.filename=v.raw',
    '--image-opts driver=blkverify,raw.filename=v.raw,test.filename=v.q',
    '--image-opts driver=blkverify,raw.filename=v.raw,test.file.filename=v.q',
    'null-aio://',
    'null-aio://x',
    '--image-opts driver=null-aio,latency-ns=5',
  ])
    await pair.alike(`img info ${name}`);
  await pair.alike('img create -f raw null-aio:// 1M');
  await pair.alike('img compare -f raw -F qcow2 v.raw v.q');
});
