import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
export const skip = missing === undefined ? false : `${missing} is not installed`;

/** Lines of "img ..." or "io ..." to both tools; "$ ..." is a line of shell in both folders. */
export type Lines = readonly string[];

/** The images that each table begins with: a chain a <- b <- c, another base n, and a raw image r. */
export const IMAGES = [
  'qemu-img create -q -f raw r.raw 5M',
  'qemu-img create -q -f qcow2 a.q 10M',
  'qemu-img create -q -f qcow2 -b a.q -F qcow2 b.q',
  'qemu-img create -q -f qcow2 -b b.q -F qcow2 c.q 20M',
  'qemu-img create -q -f qcow2 n.q 15M',
  'qemu-io -f raw -c "write -P 9 1M 100k" r.raw',
  'qemu-io -f qcow2 -c "write -P 1 1M 100k" -c "write -P 2 3M 300k" -c "write -P 3 7M 1000" a.q',
  'qemu-io -f qcow2 -c "write -P 4 2M 100k" -c "write -z 3M 128k" b.q',
  'qemu-io -f qcow2 -c "write -P 5 12M 100k" -c "write -z 7M 64k" -c "write -P 6 1M 512" c.q',
  'qemu-io -f qcow2 -c "write -P 1 1M 64k" -c "write -P 7 14M 64k" n.q',
];

/** What shows that an image is the same on both sides: content, layers, consistency. */
export function judge(...images: string[]): Lines {
  return images.flatMap((name) => {
    const format = name.endsWith('.q') ? 'qcow2' : 'raw';
    return [
      `img map -f ${format} --output=json ${name}`,
      `img info -f ${format} ${name}`,
      ...(format === 'qcow2' ? [`img check -q -f qcow2 ${name}`] : []),
      `$ qemu-img convert -f ${format} -O raw ${name} flat && sha256sum <flat`,
    ];
  });
}

interface MapEntry {
  start: number;
  length: number;
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
}

/**
 * What a map says but for what is the writer's affair: where data lies, and whether zeroes are stored as such or as bytes.
 * Nothing above all backing files is one stretch.
 */
function comparableMap(text: string): string {
  const entries = JSON.parse(text) as MapEntry[];
  const alike: Array<[start: number, layer: string]> = [];
  for (const { start, depth, present } of entries) {
    const layer = present ? `layer ${depth}` : 'nothing';
    if (alike.at(-1)?.[1] !== layer) alike.push([start, layer]);
  }
  return alike.map(([start, layer]) => `${start} ${layer}`).join(', ');
}

/** How often progress is told depends on the pace. */
export function comparable(text: string): string {
  if (text.startsWith('[{ "start"')) return comparableMap(text);
  return text.replace(/( {4}\(\d+\.\d\d\/100%\)\r)+/g, '(100%)');
}

/** Each line answers the same on both sides; all that do not are told. */
export function alike(name: string, prepared: Lines, lines: Lines, adapt = comparable): void {
  test(name, { skip }, async (context) => {
    const pair = new ToolPair(context);
    pair.prepare(...prepared);
    const wrong: string[] = [];
    for (const line of lines) {
      try {
        if (line.startsWith('$ ')) pair.alikeInShell(line.slice(2));
        else await pair.alike(line, adapt);
      } catch (error) {
        wrong.push((error as Error).message);
      }
    }
    assert.equal(wrong.join('\n'), '');
  });
}
