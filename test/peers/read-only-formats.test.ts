import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { seededBelow } from '../kit/crash-states.js';
import { damaged } from '../kit/damaged-format.js';
import { bochsImage } from '../kit/bochs-image.js';
import { cloopImage } from '../kit/cloop-image.js';
import { DmgChunk, dmgImage, zlibChunk } from '../kit/dmg-image.js';
import { adcChunksOf, READ_ONLY_FORMATS, sectorsOf } from '../kit/read-only-formats.js';
import { ToolPair } from './tool-pair.js';
import { skip } from './tool-table.js';

/** FORMAT_SEED=7 is one run again, FORMAT_RUNS how many. */
const RUNS = Number(process.env['FORMAT_RUNS'] ?? 3);
const FIRST_SEED = Number(process.env['FORMAT_SEED'] ?? 1);

/** Modules that QEMU's packages may lack are looked for aloud. */
const withoutModules = (text: string): string =>
  text
    .replace(/^qemu: module \S+ not found.*\n?/gm, '')
    .replace(/#block\d+/g, '#block')
    .trimEnd();

function put(pair: ToolPair, name: string, bytes: Uint8Array): void {
  for (const side of ['ours', 'theirs'] as const) writeFileSync(pair.path(side, name), bytes);
}

function isMissing(program: string): string | false {
  return spawnSync(program, ['--help']).error ? `${program} is not installed` : skip;
}

for (const { name, driver, make, metadata } of READ_ONLY_FORMATS) {
  const format = driver.name;
  // QEMU knows of no ADC.
  if (name === 'dmg of ADC') continue;

  test(`${name}: what qemu-img tells and reads of an image, we do`, { skip }, async (context) => {
    const pair = new ToolPair(context);
    const below = seededBelow(7907);
    const content = sectorsOf(30 + below(400), below);
    put(pair, `i.${format}`, make(content));
    put(pair, 'raw', content);
    for (const line of [
      `img info i.${format}`,
      `img info --output=json -f ${format} i.${format}`,
      `img convert -O raw i.${format} out`,
      `img convert -f ${format} -O qcow2 i.${format} out.q`,
      `img compare -f ${format} -F raw i.${format} raw`,
      `img compare -f ${format} -F qcow2 i.${format} out.q`,
      `img check i.${format}`,
      `img measure -O qcow2 i.${format}`,
      `img create -f ${format} x 1M`,
      `img convert -O ${format} raw x`,
      `img resize -f ${format} i.${format} 2M`,
      `img snapshot -l i.${format}`,
      `img create -q -f qcow2 -b i.${format} -F ${format} top`,
      'img info --backing-chain top',
      "io -c 'write -P 3 1k 700' -c 'read -v 512 3000' top",
      'img commit top',
      `io -r -f ${format} -c 'read -v 700 5000' -c length -c 'write 0 512' -c reopen -c 'reopen -w' i.${format}`,
      `io -f ${format} -c length i.${format}`,
      `io -c length --image-opts driver=${format},file.filename=i.${format},auto-read-only=on`,
    ])
      await pair.alike(line, withoutModules);
    pair.alikeInShell('cksum <out');
    pair.alikeInShell('qemu-img convert -O raw out.q flat; cksum <flat');
  });

  // What a table says twice or not at all is not read alike: chunks of a dmg may overlap.
  if (format === 'dmg') continue;
  test(`${name}: of damaged images the same is refused, in the same words`, { skip }, async (context) => {
    const pair = new ToolPair(context);
    const sound = make(sectorsOf(40, seededBelow(3)));
    const places = { metadata: metadata(sound) };
    const differ: string[] = [];
    for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
      put(pair, 'damaged', damaged(places, sound, seededBelow(seed * 7919)));
      for (const line of [`img info -f ${format} damaged`, `img convert -f ${format} -O raw damaged out`])
        try {
          await pair.alike(line, withoutModules);
        } catch (error) {
          differ.push(`seed ${seed}: ${(error as Error).message}`);
        }
    }
    assert.deepEqual(differ, []);
  });
}

test('what bximage makes', { skip: isMissing('bximage') }, async (context) => {
  const pair = new ToolPair(context);
  pair.prepare('bximage -func=create -hd=10M -imgmode=growing -q b.img >log');
  for (const line of [
    'img info b.img',
    'img convert -O raw b.img out',
    "io -r -c 'read -P 0 0 9M' b.img",
    'img info -f bochs log',
  ])
    await pair.alike(line);
  pair.alikeInShell('cksum <out');
});

test('what create_compressed_fs makes', { skip: isMissing('create_compressed_fs') }, async (context) => {
  const pair = new ToolPair(context);
  put(pair, 'raw', sectorsOf(2048, seededBelow(5)));
  pair.prepare('create_compressed_fs -B 65536 raw c.img >log 2>&1');
  for (const line of ['img info c.img', 'img convert -O raw c.img out', 'img compare raw c.img'])
    await pair.alike(line);
  pair.alikeInShell('cksum <out');
});

/** Chunks that QEMU's packages may not read: other programs say what is in them. */
for (const judge of ['dmg2img', '7z'])
  test(
    `bzip2 and ADC: ${judge} reads what we read`,
    { skip: isMissing(judge) || isMissing('bzip2') },
    async (context) => {
      const pair = new ToolPair(context);
      for (let seed = 1; seed <= 3; seed++) {
        const content = sectorsOf(1 + 600 * seed, seededBelow(seed * 31));
        const chunks = Array.from({ length: 4 }, (_, i) => {
          const part = content.subarray(
            ...[i, i + 1].map((n) => 512 * Math.floor((n * content.length) / 2048)),
          );
          const level = ['-1', '-5', '-9'][i % 3] ?? '';
          const { stdout } = spawnSync('bzip2', [level], { input: part });
          return { kind: DmgChunk.bzip2, sectors: part.length / 512, bytes: stdout };
        });
        put(
          pair,
          'i.dmg',
          dmgImage({ partitions: [[...chunks, ...adcChunksOf(content, 64), zlibChunk(content)]] }),
        );
        const [, ours] = await pair.answers('img convert -O raw i.dmg out');
        assert.deepEqual(ours, { code: 0, stdout: '', stderr: '' });
        pair.shell(
          'ours',
          judge === '7z'
            ? '7z e -so i.dmg >judged 2>log; cmp judged out'
            : 'dmg2img i.dmg judged >log; cmp judged out',
        );
        pair.shell('ours', 'head -c $(($(stat -c %s out) / 3)) out | sha256sum >a');
        writeFileSync(pair.path('ours', 'raw'), Buffer.concat([content, content, content]));
        pair.shell('ours', 'cmp raw out');
      }
    },
  );

test('which format is found is the same, by content and by name', { skip }, async (context) => {
  const pair = new ToolPair(context);
  const content = sectorsOf(40, seededBelow(3));
  const images = {
    cloop: cloopImage(content, 2048),
    bochs: bochsImage(content),
    dmg: dmgImage({ partitions: [[zlibChunk(content)]] }),
    raw: content,
  };
  for (const [from, bytes] of Object.entries(images))
    for (const name of ['x', 'x.dmg', '.dmg', 'x.DMG', 'x.img']) {
      put(pair, name, bytes);
      await pair.alike(`img info ${name}`, withoutModules);
      if (from !== 'raw') await pair.alike(`io -r -c length ${name}`, withoutModules);
    }
});
