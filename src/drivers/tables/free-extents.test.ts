import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FreeExtents } from './free-extents.js';

const UNIT = 16;
const CLUSTERS = 64;

const step = fc.oneof(
  fc.record({ add: fc.nat(CLUSTERS - 1), count: fc.integer({ min: 1, max: 24 }) }),
  fc.record({ take: fc.integer({ min: 1, max: 5 }) }),
);

test('each cluster that was added, once or more often, is found once', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const extents = new FreeExtents(UNIT);
      const known = new Set<number>();
      const take = (wanted: number): boolean => {
        const found = extents.find(wanted);
        if (!found) return false;
        assert.ok(found.count >= wanted);
        assert.equal(Math.floor((found.start + found.count - 1) / UNIT), Math.floor(found.start / UNIT));
        for (let i = 0; i < wanted; i++) assert.ok(known.delete(found.start + i), `${found.start + i}`);
        extents.take(found.start, wanted);
        return true;
      };
      for (const step of steps) {
        if ('take' in step) {
          take(step.take);
          continue;
        }
        extents.add(step.add, step.count);
        for (let i = 0; i < step.count; i++) known.add(step.add + i);
      }
      while (take(1));
      assert.equal(known.size, 0);
      assert.ok(extents.isEmpty);
    }),
  );
});
