import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { seededBelow } from '../kit/crash-states.js';
import { skipWithout } from './daemon.js';
import { ToolPair } from './tool-pair.js';

/** `FUZZ_RUNS=500 FUZZ_SEED=1 npm run test:peers -- bitmap-fuzz` runs longer. */
const RUNS = Number(process.env['FUZZ_RUNS'] ?? 12);
const FIRST_SEED = Number(process.env['FUZZ_SEED'] ?? Math.floor(Math.random() * 1e6));
const CLUSTER = 512;
const BITMAPS_EXTENSION = 0x23852875;
const HEADER_LENGTH_AT = 100;

/** Bytes of an image that say where its bitmaps are, by offset and width. */
type Field = readonly [offset: number, widthBytes: 1 | 2 | 4 | 8];

function bitmapFields(image: Buffer): Field[] {
  const fields: Field[] = [];
  let at = image.readUInt32BE(HEADER_LENGTH_AT);
  while (image.readUInt32BE(at) !== BITMAPS_EXTENSION)
    at += 8 + Math.ceil(image.readUInt32BE(at + 4) / 8) * 8;
  const extension = at + 8;
  fields.push([at + 4, 4], [extension, 4], [extension + 4, 4], [extension + 8, 8], [extension + 16, 8]);
  const count = image.readUInt32BE(extension);
  let entry = Number(image.readBigUInt64BE(extension + 16));
  for (let i = 0; i < count; i++) {
    fields.push(
      [entry, 8],
      [entry + 8, 4],
      [entry + 12, 4],
      [entry + 16, 1],
      [entry + 17, 1],
      [entry + 18, 2],
    );
    // An end beyond 2^31 wraps around in QEMU.
    fields.push([entry + 22, 2]);
    const table = Number(image.readBigUInt64BE(entry));
    for (let k = 0; k < image.readUInt32BE(entry + 8); k++) fields.push([table + 8 * k, 8]);
    entry += Math.ceil((24 + image.readUInt16BE(entry + 18)) / 8) * 8;
  }
  return fields;
}

/** A field gets another value: near what it was, at a bound, or any. */
function damage(image: Buffer, [offset, widthBytes]: Field, below: (bound: number) => number): void {
  const bits = BigInt(8 * widthBytes);
  const old = BigInt(`0x${image.toString('hex', offset, offset + widthBytes)}`);
  const values = [
    old + 1n, old - 1n, old * 2n, 0n, 1n, 2n ** bits - 1n, 2n ** (bits - 1n), 2n ** BigInt(below(Number(bits))),
    old + BigInt(CLUSTER), BigInt(below(200)) * BigInt(CLUSTER),
  ]; // prettier-ignore
  const value = BigInt.asUintN(Number(bits), values[below(values.length)] ?? 0n);
  Buffer.from(value.toString(16).padStart(2 * widthBytes, '0'), 'hex').copy(image, offset);
}

/** What people do with such an image; QEMU finds other damage on its way, and tells it in other words. */
const LATER = [
  'img info a',
  'img check a',
  "io -c 'write 0 512' a",
  'img bitmap --remove a two',
  'img bitmap --clear a one',
  'img resize a 2M',
  'img check -r all a',
  'img bitmap --remove a one',
];

for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
  test(`an image whose bitmaps are broken (seed ${seed}) is refused in QEMU's words, and nothing worse`, async (t) => {
    if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
    const below = seededBelow(seed);
    const pair = new ToolPair(t);
    pair.shell(
      'theirs',
      `qemu-img create -q -f qcow2 -o cluster_size=${CLUSTER} a 1M
       for name in one two three; do qemu-img bitmap --add -g 512 a $name; done
       qemu-io -c 'write 100k 8k' -c 'write 700k 512' a >/dev/null`,
    );
    const image = readFileSync(pair.path('theirs', 'a'));
    const fields = bitmapFields(image);
    for (let n = 1 + below(2); n > 0; n--)
      damage(image, fields[below(fields.length)] ?? assert.fail('no fields'), below);
    writeFileSync(pair.path('theirs', 'a'), image);
    copyFileSync(pair.path('theirs', 'a'), pair.path('ours', 'a'));
    await pair.alike("io -r -c 'read 0 512' a");
    for (const line of LATER) {
      const [, { code, stderr }] = await pair.answers(line);
      assert.ok([0, 1, 2, 3].includes(code ?? -1), `${line}: ${code} ${stderr}`);
      assert.doesNotMatch(stderr, /internal error|AssertionError/, line);
    }
  });
}
