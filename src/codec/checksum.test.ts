import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runHere } from '../../test/kit/run-compute.js';
import { crc32, sha256 } from './checksum.js';

test("SHA-256 answers FIPS 180-4's examples", () => {
  const hash = (text: string): string =>
    runHere(sha256, Buffer.from(text), 32, undefined).output.toString('hex');
  assert.equal(hash('abc'), 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad');
  assert.equal(
    hash('abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq'),
    '248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1',
  );
  assert.equal(runHere(sha256, Buffer.alloc(0), 32, undefined).value, 32);
});

test('CRC-32 has its check value, in one piece or several', () => {
  assert.equal(crc32(Buffer.from('123456789')), 0xcbf43926);
  assert.equal(crc32(Buffer.from('6789'), crc32(Buffer.from('12345'))), 0xcbf43926);
});
