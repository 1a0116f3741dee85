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

for (const hasDataFile of [false, true])
  test(`entries that go on from one another are counted${hasDataFile ? ', in a data file' : ''}`, () => {
    const layout = new L2Layout({ hasDataFile });
    const cluster = 65536;
    const table = Buffer.alloc(256);
    const end = table.length / layout.entryBytes;
    for (const [index, offset] of [4, 5, 6, 9].entries())
      layout.writeData(table, 2 + index, offset * cluster, true);
    layout.writeData(table, 6, 10 * cluster, false);
    for (const index of [7, 8]) layout.writeZero(table, index, 0, false);
    for (const index of [9, 10]) layout.writeZero(table, index, (3 + index) * cluster, true);
    // Each half of an offset is counted for itself.
    for (const index of [11, 12]) layout.writeData(table, index, 2 ** 32 + (index - 12) * cluster, true);
    for (const index of [13, 14, 15])
      layout.writeCompressed(table, index, { hostOffset: 512, lengthBytes: 512 }, 16);
    const counted = (index: number): number => layout.alike(table, index, end, cluster);
    assert.deepEqual([0, 2, 5, 6, 7, 9, 11, 12, 13].map(counted), [2, 3, 1, 1, 2, 2, 1, 1, 1]);
    assert.equal(counted(16), end - 16, 'to the end');
    assert.equal(layout.alike(table, 2, 4, cluster), 2, 'no further than asked');
    assert.equal(layout.alike(table, 2, end, 2 * cluster), 1);
  });

test('entries of parts are looked at one by one', () => {
  assert.equal(EXTENDED.alike(Buffer.alloc(64), 0, 4, 65536), 1);
});
