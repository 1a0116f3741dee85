import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Bitmap } from './bitmap.js';

const LENGTH = 200;

test('a bitmap behaves like an array of booleans', () => {
  const range = fc
    .tuple(fc.nat(LENGTH), fc.nat(LENGTH))
    .map(([a, b]) => [Math.min(a, b), Math.max(a, b)] as const);
  const step = fc.record({ range, value: fc.boolean() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 20 }), range, (steps, [from, end]) => {
      const bitmap = new Bitmap(LENGTH);
      const model = new Array<boolean>(LENGTH).fill(false);
      for (const { range, value } of steps) {
        if (value) bitmap.set(range[0], range[1]);
        else bitmap.clear(range[0], range[1]);
        model.fill(value, range[0], range[1]);
      }
      assert.equal(bitmap.count, model.filter(Boolean).length);
      const find = (value: boolean): number => {
        const at = model.slice(from, end).indexOf(value);
        return at < 0 ? -1 : from + at;
      };
      assert.equal(bitmap.nextSet(from, end), find(true));
      assert.equal(bitmap.nextClear(from, end), find(false));
      assert.deepEqual(
        model.map((_, i) => bitmap.get(i)),
        model,
      );
    }),
  );
});

test('bits beyond the end are refused', () => {
  assert.throws(() => new Bitmap(8).set(4, 9), /bits 4\.\.9 of 8/);
});
