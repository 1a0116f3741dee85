import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ByteRanges } from '../base/byte-ranges.js';
import { KiB } from '../base/limits.js';
import { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import { dueAgain } from './due-again.js';

/** A node that may have lost that. */
function doubtful(offset: number, lengthBytes: number): Node {
  const lost = new ByteRanges();
  lost.add(offset, lengthBytes);
  return { instance: { takeDoubtful: () => lost } } as unknown as Node;
}

test('what is lost up to an end within a granule is due again, but for what guests have changed', () => {
  const size = 200 * KiB;
  for (const changedAt of [0, 64 * KiB, 128 * KiB, 192 * KiB]) {
    const due = new DirtyBitmap(size, 64 * KiB);
    const changed = new DirtyBitmap(size, 64 * KiB);
    changed.set(changedAt, 1);
    dueAgain(doubtful(100 * KiB, 1000 * KiB), due, changed);
    const isDue = [0, 1, 2, 3].map((granule) => due.isDirty(granule * 64 * KiB));
    assert.deepEqual(
      isDue,
      [false, true, true, true].map((isLost, granule) => isLost && granule * 64 * KiB !== changedAt),
    );
  }
});
