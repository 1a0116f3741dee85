import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ClusterKind, ZERO_LOW } from './layout.js';
import { L2Layout, STANDARD_L2 } from './l2-layout.js';

for (const layout of [STANDARD_L2, new L2Layout(16)]) {
  test(`L2 entries of ${layout.entryBytes} bytes lie side by side`, () => {
    const table = Buffer.alloc(512);
    assert.equal(layout.entriesIn(table.length), 512 / layout.entryBytes);
    assert.equal(layout.coverageBytes(table.length), (512 / layout.entryBytes) * 512);
    layout.write(table, 1, 0x12345600, true);
    layout.write(table, 2, 2 ** 40 + 512, false, ZERO_LOW);
    assert.equal(table.readBigUInt64BE(layout.entryBytes), 2n ** 63n + 0x12345600n);
    assert.equal(table.readBigUInt64BE(2 * layout.entryBytes), 2n ** 40n + 513n);
    assert.deepEqual(
      [0, 1, 2, 3].map((index) => layout.kind(table, index)),
      [ClusterKind.unallocated, ClusterKind.data, ClusterKind.zeroAllocated, ClusterKind.unallocated],
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
}
