import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededBelow } from '../../test/kit/crash-states.js';
import { decodeSideHeader, digestOf, encodeSideHeader, type SideHeader } from './side-header.js';

const HEADER: SideHeader = {
  ...{ isInUse: true, records: false, id: '0123456789abcdef', sinceMs: 1_900_000_000_123 },
  ...{ granularityBytes: 65536, sizeBytes: 2 ** 40, otherSizeBytes: 2 ** 41 },
  ...{ leaseUntilMs: 1.25, modifiedMs: 2.5, nameDigest: digestOf('b'), identityDigest: digestOf('1:2') },
};

test('a header is read as it was written', () => {
  assert.deepEqual(decodeSideHeader(encodeSideHeader(HEADER)), HEADER);
});

test('what is changed is broken or something else, and nothing that it says is taken', () => {
  const below = seededBelow(7);
  for (let round = 0; round < 2000; round++) {
    const bytes = encodeSideHeader(HEADER);
    const at = below(bytes.length);
    bytes[at] = ((bytes[at] ?? 0) + 1 + below(255)) % 256;
    assert.equal(decodeSideHeader(bytes), at < 8 ? 'foreign' : 'broken', `byte ${at}`);
  }
  assert.equal(decodeSideHeader(Buffer.alloc(512)), 'foreign');
  assert.equal(decodeSideHeader(Buffer.alloc(3)), 'foreign');
});

test('numbers that cannot be are broken, though they are digested', () => {
  for (const wrong of [{ granularityBytes: 0 }, { granularityBytes: 1000 }, { granularityBytes: 2 ** 40 }])
    assert.equal(decodeSideHeader(encodeSideHeader({ ...HEADER, ...wrong })), 'broken');
});
