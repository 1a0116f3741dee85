import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KiB } from '../base/limits.js';
import { DirtyBitmap, type Stretch } from './dirty-bitmap.js';

function stretches(bitmap: DirtyBitmap): Stretch[] {
  const found: Stretch[] = [];
  for (let at = bitmap.nextDirty(0); at; at = bitmap.nextDirty(at.offset + at.lengthBytes)) {
    found.push(at);
    if (at.offset + at.lengthBytes >= bitmap.sizeBytes) break;
  }
  return found;
}

test('dirty stretches are whole granules, cut at the end of the node', () => {
  const bitmap = new DirtyBitmap(1000, 512);
  bitmap.set(600, 1);
  assert.deepEqual(stretches(bitmap), [{ offset: 512, lengthBytes: 488 }]);
  assert.equal(bitmap.dirtyBytes, 488);
  bitmap.set(0, 1);
  assert.deepEqual(stretches(bitmap), [{ offset: 0, lengthBytes: 1000 }]);
  assert.equal(bitmap.nextDirty(0, 1000, 512)?.lengthBytes, 512);
  bitmap.reset(0, 512);
  assert.equal(bitmap.nextClean(512), 1000);
  assert.equal(bitmap.nextClean(0), 0);
});

test('from the end on there is nothing, also where the last granule goes beyond it', () => {
  const bitmap = new DirtyBitmap(200 * KiB, 64 * KiB);
  for (const isDirty of [false, true]) {
    if (isDirty) bitmap.setAll();
    for (const end of [200 * KiB, 100 * KiB])
      for (const offset of [end, end + 512, end + 128 * KiB]) {
        assert.equal(bitmap.nextClean(offset, end), end);
        assert.equal(bitmap.nextDirty(offset, end), undefined);
      }
  }
});

test('who walks from one end to the other, clean and dirty in turn, sees each byte once and comes to the end', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 9000 }),
      fc.array(fc.tuple(fc.nat(8999), fc.integer({ min: 1, max: 700 })), { maxLength: 8 }),
      fc.nat(9000),
      (sizeBytes, writes, cut) => {
        const bitmap = new DirtyBitmap(sizeBytes, 512);
        for (const [offset, length] of writes) if (offset + length <= sizeBytes) bitmap.set(offset, length);
        const end = Math.min(cut, sizeBytes);
        let steps = 0;
        for (let at = bitmap.nextClean(0, end), before = 0; before < end;) {
          assert.ok(steps++ < 40, 'it comes to the end');
          for (let i = before; i < at; i++) assert.ok(bitmap.isDirty(i));
          const next = bitmap.nextDirty(at, end)?.offset ?? end;
          for (let i = at; i < next; i++) assert.ok(!bitmap.isDirty(i));
          before = next;
          at = bitmap.nextClean(next, end);
        }
      },
    ),
  );
});

test('a resize keeps what still fits, and new space is clean', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 9000 }),
      fc.integer({ min: 1, max: 9000 }),
      fc.array(fc.tuple(fc.nat(8999), fc.integer({ min: 1, max: 700 })), { maxLength: 8 }),
      (oldSize, newSize, writes) => {
        const bitmap = new DirtyBitmap(oldSize, 512);
        for (const [offset, length] of writes) if (offset + length <= oldSize) bitmap.set(offset, length);
        const before = Array.from({ length: Math.ceil(oldSize / 512) }, (_, i) => bitmap.isDirty(i * 512));
        bitmap.resize(newSize);
        for (let i = 0; i < Math.ceil(newSize / 512); i++)
          assert.equal(bitmap.isDirty(i * 512), before[i] ?? false);
      },
    ),
  );
});

test('merge adds the other bitmap at any granularity', () => {
  const fine = new DirtyBitmap(8192, 512);
  const coarse = new DirtyBitmap(8192, 4096);
  fine.set(5000, 1);
  coarse.merge(fine);
  assert.deepEqual(stretches(coarse), [{ offset: 4096, lengthBytes: 4096 }]);
});
