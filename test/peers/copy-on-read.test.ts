import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test, type TestContext } from 'node:test';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;

/** Three layers: data, zeroes and holes in the lower two; the top is empty, and a bit longer. */
function layers(t: TestContext, ...creation: string[]): ToolPair {
  const pair = new ToolPair(t);
  pair.prepare(
    'qemu-img create -q -f qcow2 base.q 1M',
    "qemu-io -c 'write -P 1 0 512k' -c 'write -P 0 512k 64k' base.q",
    'qemu-img create -q -f qcow2 -b base.q -F qcow2 mid.q',
    "qemu-io -c 'write -P 2 0 128k' -c 'write -z 128k 64k' mid.q",
    `qemu-img create -q -f qcow2 ${creation.join(' ')} -b mid.q -F qcow2 top.q 1100k`,
  );
  return pair;
}

/** Which parts of the top are its own, of data or zeroes; both have the same. */
function sameMap(pair: ToolPair, what: string): string {
  const [ours = '', theirs] = (['ours', 'theirs'] as const).map((side) =>
    pair
      .shell(side, 'qemu-img map --output=json top.q; qemu-img check -q top.q')
      .replace(/, "offset": \d+/g, ''),
  );
  assert.equal(ours, theirs, what);
  const compare = `qemu-img compare top.q ../theirs/top.q`;
  assert.match(pair.shell('ours', compare), /identical/);
  return ours;
}

const READS = [
  ['read 0 1'],
  ['read 100k 60k'],
  ['read -P 2 0 64k', 'read -P 0 128k 64k'],
  ['read 500k 80k', 'read 1050k 512'],
  ['read 0 1100k'],
  ['write -P 9 70k 3k', 'read 0 256k', 'write -z 128k 64k', 'read 1M 76k'],
];

for (const creation of ['', '-o cluster_size=4k', '-o compat=0.10']) {
  for (const reads of READS) {
    const what = `${reads.join('; ')} (new image: ${creation || 'usual'})`;
    test(`what is read is copied as QEMU copies it: ${what}`, { skip }, async (t) => {
      const commands = reads.map((read) => `-c '${read}'`).join(' ');
      const pair = layers(t, creation);
      await pair.alike(`io -C ${commands} top.q`);
      assert.match(sameMap(pair, what), /"depth": 0/);
      pair.prepare(`qemu-img create -q -f qcow2 ${creation} -b mid.q -F qcow2 top.q 1100k`);
      const filter = 'driver=copy-on-read,file.driver=qcow2,file.file.filename=top.q';
      await pair.alike(`io --image-opts ${commands} ${filter}`);
      assert.match(sameMap(pair, what), /"depth": 0/);
    });
  }
}

test('nothing is copied into what is read-only', { skip }, async (t) => {
  const pair = layers(t);
  await pair.alike("io -C -r -c 'read 0 1' top.q");
  await pair.alike('img info --image-opts driver=copy-on-read,file.driver=qcow2,file.file.filename=top.q');
});
