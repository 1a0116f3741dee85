import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ClusterKind } from './layout.js';
import { L2Layout, STANDARD_L2 } from './l2-layout.js';

const { unallocated, zeroPlain, zeroAllocated, data } = ClusterKind;
const EXTENDED = new L2Layout({ isExtended: true });

for (const layout of [STANDARD_L2, EXTENDED])
  test(`L2 entries of ${layout.entryBytes} bytes lie side by side`, () => {
    const table = Buffer.alloc(512);
    assert.equal(layout.entriesIn(table.length), 512 / layout.entryBytes);
    assert.equal(layout.coverageBytes(table.length), (512 / layout.entryBytes) * 512);
    layout.writeData(table, 1, 0x12345600, true);
    layout.writeZero(table, 2, 2 ** 40 + 512, false);
    assert.equal(table.readBigUInt64BE(layout.entryBytes), 2n ** 63n + 0x12345600n);
    const zeroFlag = layout === STANDARD_L2 ? 1n : 0n;
    assert.equal(table.readBigUInt64BE(2 * layout.entryBytes), 2n ** 40n + 512n + zeroFlag);
    assert.deepEqual(
      [0, 1, 2, 3].map((index) => layout.kind(table, index)),
      [unallocated, data, zeroAllocated, unallocated],
    );
    assert.deepEqual(
      [0, 1, 2].map((index) => layout.hostOffset(table, index)),
      [0, 0x12345600, 2 ** 40 + 512],
    );
    assert.deepEqual(
      [0, 1, 2].map((index) => layout.isCopied(table, index)),
      [false, true, false],
    );
  });

test('parts of a cluster: bit i says that part i is there, bit 32 + i that it is zeroes', () => {
  const table = Buffer.alloc(64);
  const kinds = (index: number, ...units: number[]): number[] =>
    units.map((unit) => EXTENDED.unitKind(table, index, unit));
  EXTENDED.setHost(table, 1, 0x20000, true);
  EXTENDED.setUnits(table, 1, 0, 2, 'data');
  EXTENDED.setUnits(table, 1, 31, 32, 'zero');
  assert.equal(table.readBigUInt64BE(16 + 8), 2n ** 63n + 3n);
  assert.deepEqual(kinds(1, 0, 1, 2, 30, 31), [data, data, unallocated, unallocated, zeroAllocated]);
  assert.equal(EXTENDED.kind(table, 1), data);
  EXTENDED.setUnits(table, 1, 0, 32, 'none');
  assert.deepEqual([EXTENDED.kind(table, 1), EXTENDED.hasHost(table, 1)], [zeroAllocated, true]);
  EXTENDED.setUnits(table, 2, 4, 5, 'zero');
  assert.deepEqual([EXTENDED.kind(table, 2), ...kinds(2, 3, 4)], [zeroPlain, unallocated, zeroPlain]);
  EXTENDED.setUnits(table, 2, 0, 32, 'data');
  assert.equal(EXTENDED.isContradictory(table, 2), true, 'data nowhere');
  EXTENDED.setHost(table, 2, 0x20000, true);
  assert.equal(EXTENDED.isContradictory(table, 2), false);
  table.writeUInt32BE(1, 32 + 8);
  assert.equal(EXTENDED.isContradictory(table, 2), true, 'zeroes and data');
});

test('in a data file, data may begin at offset 0', () => {
  const layout = new L2Layout({ hasDataFile: true });
  const table = Buffer.alloc(64);
  layout.writeData(table, 0, 0, true);
  layout.writeZero(table, 1, 0, true);
  layout.writeZero(table, 2, 0, false);
  assert.deepEqual(
    [0, 1, 2, 3].map((index) => layout.kind(table, index)),
    [data, zeroAllocated, zeroPlain, unallocated],
  );
});

for (const layout of [STANDARD_L2, EXTENDED])
  test(`the next entry of ${layout.entryBytes} bytes that is used`, () => {
    const table = Buffer.alloc(512);
    const entries = layout.entriesIn(table.length);
    assert.equal(layout.nextUsed(table, 0, entries), entries);
    layout.writeZero(table, 3, 0, false);
    layout.writeData(table, entries - 1, 0x10000, false);
    assert.equal(layout.nextUsed(table, 0, entries), 3);
    assert.equal(layout.nextUsed(table, 3, entries), 3);
    assert.equal(layout.nextUsed(table, 4, entries), entries - 1);
    assert.equal(layout.nextUsed(table, 4, entries - 1), entries - 1);
    assert.equal(layout.nextUsed(table, entries, entries), entries);
  });
