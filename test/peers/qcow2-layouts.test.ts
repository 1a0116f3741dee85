import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { test } from 'node:test';
import { seededBelow } from '../kit/crash-states.js';
import { PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { ToolPair } from './tool-pair.js';
import { canCompressZstd } from '../../src/codec/index.js';

const KiB = 1024;
const SIZE = 3 * 1024 * KiB;

const OPTIONS = [
  'extended_l2=on',
  'extended_l2=on,cluster_size=16k',
  'extended_l2=on,preallocation=metadata,cluster_size=32k',
  'data_file=data',
  'data_file=data,data_file_raw=on,cluster_size=4k',
  'data_file=data,extended_l2=on',
  'preallocation=metadata',
  'preallocation=falloc,cluster_size=4k',
  'preallocation=full',
  ...(canCompressZstd() ? ['compression_type=zstd,extended_l2=on'] : []),
];

/** Commands of qemu-io, some of them on parts of subclusters. */
function history(seed: number): string[] {
  const below = seededBelow(seed * 7919);
  return Array.from({ length: 12 }, (_, i) => {
    // What becomes of parts of clusters that are discarded is each one's own.
    const isDiscard = below(5) === 0;
    const unit = isDiscard ? 64 * KiB : below(2) === 0 ? 512 : 4096;
    const at = below(Math.floor((SIZE - 300 * KiB) / unit)) * unit;
    const length = (1 + below(Math.floor((200 * KiB) / unit))) * unit;
    if (isDiscard) return `discard ${at} ${length}`;
    const how = ['write -z -u', 'write -z', `write -P ${i + 1}`, `write -P ${i + 100}`][below(4)] ?? '';
    return `${how} ${at} ${length}`;
  });
}

test('images of every layout by livedisk, by QEMU and by both in turn: the same content, and no leak', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io')) return;
  for (const [i, options] of OPTIONS.entries()) {
    const steps = history(21 + i);
    const contents = (['ours', 'theirs', 'both'] as const).map((who) => {
      const folder = scratch(context);
      const tool = (isOurs: boolean, name: string, ...words: string[]): string =>
        isOurs
          ? run(folder, process.execPath, PROGRAM, name, ...words)
          : run(folder, `qemu-${name}`, ...words);
      const create = ['create', '-q', '-f', 'qcow2', '-o', options, 'image', String(SIZE)];
      tool(who !== 'theirs', 'img', ...create);
      steps.forEach((step, at) => {
        const isOurs = who === 'ours' || (who === 'both' && at % 2 === 0);
        tool(isOurs, 'io', '-f', 'qcow2', '-c', step, 'image');
      });
      if (who === 'both') {
        tool(true, 'img', 'compare', 'image', 'image');
        run(folder, 'qemu-img', 'resize', '-q', 'image', String(SIZE + 64 * KiB));
        tool(true, 'io', '-f', 'qcow2', '-c', `truncate ${SIZE}`, 'image');
      }
      for (const isOurs of [true, false])
        assert.match(tool(isOurs, 'img', 'check', 'image'), /^No errors were found/, `${options} ${who}`);
      run(folder, 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', 'image', 'raw');
      tool(true, 'img', 'compare', '-F', 'raw', 'image', 'raw');
      if (options.includes('raw=on')) {
        run(folder, 'cmp', 'data', 'raw');
        assert.equal(statSync(`${folder}/data`).size, SIZE);
      }
      return readFileSync(`${folder}/raw`);
    });
    const [ours, theirs, both] = contents;
    assert.ok(theirs && ours?.equals(theirs), `${options}: ours`);
    assert.ok(both?.equals(theirs), `${options}: both`);
  }
});

test('what is said of such images, and what is refused, is as with qemu-img', async (context) => {
  if (skipWithout(context, 'qemu-img')) return;
  const pair = new ToolPair(context);
  pair.prepare('qemu-img create -q -f qcow2 base.q 1M');
  const lines = `
    img create -f qcow2 -o data_file=x.raw a.q 1M
    img create -f qcow2 -o data_file_raw=on b.q 1M
    img create -f qcow2 -o data_file=y.raw,data_file_raw=on,compat=0.10 b.q 1M
    img create -f qcow2 -o data_file=y.raw,data_file_raw=on b.q 1M
    img create -f qcow2 -o data_file=z.raw,data_file_raw=on -b base.q -F qcow2 c.q
    img create -f qcow2 -o data_file=json:{} j.q 1M
    img create -f qcow2 -o extended_l2=on,compat=0.10 t.q 1M
    img create -f qcow2 -o extended_l2=on,cluster_size=8k t.q 1M
    img create -f qcow2 -o compression_type=zstd,compat=0.10 t.q 1M
    img create -f qcow2 -o preallocation=metadata -b base.q -F qcow2 t.q 1M
    img create -f qcow2 -o preallocation=full,extended_l2=on -b base.q -F qcow2 p.q 1M
    img create -f qcow2 -o extended_l2=on e.q 1M
    img info a.q
    img info --output=json b.q
    img info e.q
    img check b.q
    img check p.q
    img map --output=json a.q
    img map --output=json b.q
    img map p.q
    img snapshot -c x a.q`;
  for (const line of lines.split('\n').map((text) => text.trim()))
    if (line !== '') await pair.alike(line, (text) => text.replace(/Image end offset: \d+/, 'end'));
  pair.prepare('rm x.raw');
  for (const line of ['img info a.q', 'img check a.q', 'img map a.q']) await pair.alike(line);
});
