import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { decodeRecord, encodeRecord, RECORD_BYTES, RecordLog } from './records.js';

test('a record decodes to its number, and any changed byte is noticed', () => {
  const block = Buffer.alloc(RECORD_BYTES);
  assert.equal(decodeRecord(block, 3), 0);
  encodeRecord(block, 42, 3);
  assert.equal(decodeRecord(block, 3), 42);
  assert.throws(() => decodeRecord(block, 4), /torn or foreign/);
  block[4000] = 0;
  assert.throws(() => decodeRecord(block, 3), /torn or foreign/);
});

test('a log finds the moment of every true copy and refuses a mixed one', () => {
  fc.assert(
    fc.property(fc.array(fc.nat(4), { minLength: 1, maxLength: 40 }), fc.nat(40), (blocks, cut) => {
      const log = new RecordLog(5);
      for (const block of blocks) log.next(block);
      const moment = Math.min(cut, log.last);
      const copy = Array.from({ length: 5 }, (_, block) => log.at(block, moment));
      const { first, last } = log.momentsOf(copy);
      assert.ok(first <= moment && moment <= last);
    }),
  );
  const log = new RecordLog(2);
  log.next(0);
  log.next(1);
  assert.throws(() => log.momentsOf([0, 2]), /no single moment: record 2 is there, but record 1 is not/);
});
