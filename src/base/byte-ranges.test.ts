import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ByteRanges } from './byte-ranges.js';

const SIZE = 64;

test('it holds what a plain list of bytes says', () => {
  const step = fc.record({
    verb: fc.constantFrom('add', 'remove'),
    offset: fc.nat(SIZE - 1),
    lengthBytes: fc.nat(16),
  });
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 40 }),
      fc.nat(SIZE - 1),
      fc.integer({ min: 1, max: 8 }),
      (steps, at, length) => {
        const ranges = new ByteRanges();
        const bytes = new Set<number>();
        for (const { verb, offset, lengthBytes } of steps) {
          ranges[verb](offset, lengthBytes);
          for (let i = offset; i < offset + lengthBytes; i++)
            if (verb === 'add') bytes.add(i);
            else bytes.delete(i);
        }
        assert.equal(ranges.lengthBytes, bytes.size);
        assert.equal(ranges.isEmpty, bytes.size === 0);
        const wanted = Array.from({ length }, (_, i) => at + i).some((byte) => bytes.has(byte));
        assert.equal(ranges.overlaps(at, length), wanted);
        const copy = new ByteRanges();
        copy.addAll(ranges);
        assert.equal(copy.lengthBytes, bytes.size);
      },
    ),
  );
});

test('so many ranges become one, which holds all of them', () => {
  const ranges = new ByteRanges();
  for (let i = 0; i <= 4096; i++) ranges.add(10 * i, 1);
  assert.equal(ranges.lengthBytes, 10 * 4096 + 1);
  assert.ok(ranges.overlaps(5, 1));
});
