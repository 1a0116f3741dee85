import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deflateRawSync, inflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import { compressible } from '../../test/kit/compressible.js';
import { runHere } from '../../test/kit/run-compute.js';
import { BlockError } from '../base/error.js';
import { deflateRaw, inflateRaw } from './deflate.js';

const WINDOW = { windowBits: 12 };

test('what node:zlib inflates is what was deflated, and the other way round', () => {
  fc.assert(
    fc.property(compressible(20_000), fc.integer({ min: 9, max: 15 }), (bytes, windowBits) => {
      const deflated = runHere(deflateRaw, bytes, bytes.byteLength + 100, { windowBits });
      const stream = deflated.output.subarray(0, deflated.value);
      assert.deepEqual(inflateRawSync(stream, { windowBits }), bytes);
      const theirs = deflateRawSync(bytes, { windowBits });
      const { value, output } = runHere(inflateRaw, theirs, bytes.byteLength, { windowBits });
      assert.equal(value, bytes.byteLength);
      assert.deepEqual(output, bytes);
    }),
    { numRuns: 60 },
  );
});

test('what follows a stream is left alone; a stream may be shorter than its room', () => {
  const bytes = Buffer.alloc(4096, 'abcd');
  const input = Buffer.concat([deflateRawSync(bytes, WINDOW), Buffer.alloc(300, 0xff)]);
  const { value, output } = runHere(inflateRaw, input, 5000, WINDOW);
  assert.equal(value, 4096);
  assert.deepEqual(output.subarray(0, 4096), bytes);
});

test('compressed data that does not fit is told by 0', () => {
  const bytes = Buffer.alloc(4096, 'abcd');
  const { value } = runHere(deflateRaw, bytes, 4096, WINDOW);
  assert.ok(value > 0);
  assert.equal(runHere(deflateRaw, bytes, value, WINDOW).value, value);
  assert.equal(runHere(deflateRaw, bytes, value - 1, WINDOW).value, 0);
});

test('streams that end early, are too long or damaged are corrupt', () => {
  const bytes = Buffer.from(Array.from({ length: 4096 }, (_, i) => (i * 31) % 251));
  const stream = deflateRawSync(bytes, WINDOW);
  const inflate = (input: Uint8Array, outputBytes: number) => runHere(inflateRaw, input, outputBytes, WINDOW);
  for (const length of [0, 1, stream.length >> 1, stream.length - 1])
    assert.throws(() => inflate(stream.subarray(0, length), 4096), { kind: 'corrupt' });
  assert.throws(() => inflate(stream, 4095), { kind: 'corrupt' });
  fc.assert(
    fc.property(fc.nat(stream.length * 8 - 1), (bit) => {
      const damaged = Buffer.from(stream);
      damaged[bit >> 3]! ^= 1 << (bit & 7);
      try {
        inflate(damaged, 4096);
      } catch (error) {
        assert.ok(error instanceof BlockError && error.kind === 'corrupt');
      }
    }),
  );
});
