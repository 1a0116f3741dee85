import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { compressible } from '../../test/kit/compressible.js';
import { runHere } from '../../test/kit/run-compute.js';
import { BlockError } from '../base/error.js';
import { loadZstd, systemZstd } from '../host/zstd-library.js';
import { canCompressZstd, checkZstdCompress, packageDecoder, zstdCompress, zstdDecompress } from './zstd.js';
import { zstdFrameBytes } from './zstd-frame.js';

const TEXT = Buffer.from('The quick brown fox jumps over the lazy dog. '.repeat(40));
/** Of TEXT, without and with a checksum; of 300,000 zeroes; made by node:zlib of Node 24. */
const FRAME = Buffer.from(
  'KLUv/WAIBrUBANQCVGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcyBvdmVyIHRoZSBsYXp5IGRvZy4gAQDFFv6qDA==',
  'base64',
);
const CHECKED = Buffer.from(
  'KLUv/WQIBrUBANQCVGhlIHF1aWNrIGJyb3duIGZveCBqdW1wcyBvdmVyIHRoZSBsYXp5IGRvZy4gAQDFFv6qDNf8kxA=',
  'base64',
);
const ZEROES = Buffer.from('KLUv/aDgkwQAVAAAEAAAAQD7/znAAgIAEAADnwQA', 'base64');
/** RFC 8878, section 3.1.2: skipped by decoders. */
const SKIPPABLE = Buffer.from('5c2a4d1803000000aabbcc', 'hex');

await zstdDecompress.prepare?.();
const decompress = (input: Uint8Array, outputBytes: number) =>
  runHere(zstdDecompress, input, outputBytes, undefined);

test('frames are decompressed, one or several, and what follows is left alone', () => {
  for (const frame of [FRAME, CHECKED]) {
    const { value, output } = decompress(Buffer.concat([frame, Buffer.alloc(512, 0xff)]), TEXT.length);
    assert.equal(value, TEXT.length);
    assert.deepEqual(output, TEXT);
  }
  const { value, output } = decompress(Buffer.concat([FRAME, CHECKED]), 2 * TEXT.length + 9);
  assert.equal(value, 2 * TEXT.length);
  assert.deepEqual(output.subarray(0, value), Buffer.concat([TEXT, TEXT]));
  assert.deepEqual(decompress(ZEROES, 300_000).output, Buffer.alloc(300_000));
});

test("a frame's length is known without decompressing it", () => {
  for (const frame of [FRAME, CHECKED, ZEROES, SKIPPABLE]) {
    assert.equal(zstdFrameBytes(frame), frame.length);
    assert.equal(zstdFrameBytes(Buffer.concat([frame, frame])), frame.length);
    for (let length = 0; length < frame.length; length++)
      assert.equal(zstdFrameBytes(frame.subarray(0, length)), undefined);
  }
  assert.equal(zstdFrameBytes(Buffer.alloc(100)), undefined);
});

test('frames that end early, are too long or damaged are corrupt', () => {
  for (const [input, outputBytes] of [
    [FRAME.subarray(0, -1), TEXT.length],
    [FRAME, TEXT.length - 1],
    [Buffer.alloc(100), 100],
    [Buffer.alloc(0), 100],
  ] as const)
    assert.throws(() => decompress(input, outputBytes), { name: 'BlockError', kind: 'corrupt' });
  const damaged = Buffer.from(CHECKED);
  damaged[damaged.length - 1]! ^= 1;
  assert.throws(() => decompress(damaged, TEXT.length), { kind: 'corrupt' });
  fc.assert(
    fc.property(fc.nat(CHECKED.length * 8 - 1), (bit) => {
      const frame = Buffer.from(CHECKED);
      frame[bit >> 3]! ^= 1 << (bit & 7);
      try {
        decompress(frame, TEXT.length);
      } catch (error) {
        assert.ok(error instanceof BlockError && error.kind === 'corrupt', String(error));
      }
    }),
    { numRuns: 300 },
  );
});

const lacksCompressor = canCompressZstd() ? false : 'neither this Node nor this system can compress';

test('the decoder of the package reads them where there is nothing else', async () => {
  const decode = await packageDecoder();
  const output = Buffer.alloc(TEXT.length);
  assert.equal(decode(CHECKED, output), TEXT.length);
  assert.deepEqual(output, TEXT);
  assert.equal(decode(FRAME, Buffer.alloc(TEXT.length - 1)), undefined);
});

test(
  "the system's library does what Node's does, and reads its own",
  { skip: systemZstd() ? false : 'no libzstd.so.1 here' },
  () => {
    const zstd = systemZstd();
    assert.ok(zstd);
    const frame = Buffer.alloc(500);
    const frameBytes = zstd.compress(TEXT, frame, 3);
    const output = Buffer.alloc(TEXT.length);
    assert.equal(zstd.decompress(frame.subarray(0, frameBytes), output), TEXT.length);
    assert.deepEqual(output, TEXT);
    assert.equal(zstd.compress(TEXT, frame.subarray(0, frameBytes - 1), 3), 0);
    assert.equal(zstd.decompress(frame.subarray(0, frameBytes), output.subarray(1)), undefined);
    assert.equal(zstd.decompress(frame.subarray(0, frameBytes - 1), output), undefined);
    assert.equal(zstd.decompress(CHECKED, output), TEXT.length);
  },
);

test('a library that is not there is none', () => {
  assert.equal(loadZstd('libzstd-that-nobody-has.so.1'), undefined);
});

test('what was compressed is decompressed', { skip: lacksCompressor }, () => {
  fc.assert(
    fc.property(compressible(20_000), fc.constantFrom(1, 3, 19), (bytes, level) => {
      const compressed = runHere(zstdCompress, bytes, bytes.length + 200, { level });
      const { value, output } = decompress(compressed.output.subarray(0, compressed.value), bytes.length);
      assert.equal(value, bytes.length);
      assert.deepEqual(output, bytes);
      assert.equal(runHere(zstdCompress, bytes, compressed.value - 1, { level }).value, 0);
    }),
    { numRuns: 60 },
  );
});

test(
  'where nothing can compress that is said',
  { skip: canCompressZstd() ? 'something here can compress' : false },
  () => {
    const refusal = { kind: 'unsupported', message: /needs Node.js 22.15 .*libzstd/ };
    assert.throws(() => runHere(zstdCompress, TEXT, 5000, {}), refusal);
    assert.throws(checkZstdCompress, refusal);
  },
);
