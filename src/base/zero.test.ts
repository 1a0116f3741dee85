import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isZero } from './zero.js';

test('isZero finds a single byte anywhere, at any length and alignment', () => {
  fc.assert(
    fc.property(fc.nat(300), fc.nat(7), fc.nat(400), (length, shift, at) => {
      const buffer = Buffer.alloc(length + shift).subarray(shift);
      assert.equal(isZero(buffer), true);
      if (at >= length) return;
      buffer[at] = 1;
      assert.equal(isZero(buffer), false);
    }),
  );
});
