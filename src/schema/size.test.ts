import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { parseSize } from './size.js';

test('sizes as QEMU reads them', () => {
  const sizes: Array<[string, number]> = [
    ['0', 0],
    ['4096', 4096],
    ['010', 10],
    ['+3', 3],
    [' \t3', 3],
    ['1b', 1],
    ['1.0', 1],
    ['8.b', 8],
    ['64k', 65536],
    ['1.5K', 1536],
    ['1.k', 1024],
    ['2M', 2 ** 21],
    ['1.5g', 1.5 * 2 ** 30],
    ['1T', 2 ** 40],
    ['7P', 7 * 2 ** 50],
    ['0x1000', 4096],
    ['0X1b', 27],
    ['0x10k', 16384],
  ];
  for (const [text, bytes] of sizes) assert.equal(parseSize(text), bytes, text);
});

test('what is no size, or too large to be exact', () => {
  const wrong = [
    '',
    'k',
    '1x',
    '-1',
    '-0',
    '1.5',
    '1.5b',
    '.5k',
    '1e3',
    '1kk',
    '4k ',
    '0x',
    '0x1.8',
    '1.5e1k',
  ];
  for (const text of [...wrong, '8P', '1E', '16E', '9007199254740992', '00x3', '∞'])
    assert.equal(parseSize(text), undefined, text);
});

test('every whole size is read back', () => {
  fc.assert(
    fc.property(fc.maxSafeNat(), (bytes) => {
      assert.equal(parseSize(String(bytes)), bytes);
      assert.equal(parseSize(`0x${bytes.toString(16)}`), bytes);
    }),
  );
});
