import assert from 'node:assert/strict';
import { createCipheriv, createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { runHere } from '../../test/kit/run-compute.js';
import type { ComputeFunction } from '../host/compute.js';
import { aesCbc, aesCtr, aesEcb, type AesParameters, aesXts } from './aes.js';

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(/\s/g, ''), 'hex');

function assertBoth(
  mode: ComputeFunction<AesParameters>,
  plain: Buffer,
  cipher: Buffer,
  parameters: Omit<AesParameters, 'direction'>,
): void {
  const encrypt = { ...parameters, direction: 'encrypt' } as const;
  const decrypt = { ...parameters, direction: 'decrypt' } as const;
  const there = runHere(mode, plain, plain.byteLength, encrypt);
  assert.equal(there.value, plain.byteLength);
  assert.equal(there.output.toString('hex'), cipher.toString('hex'));
  assert.equal(
    runHere(mode, cipher, cipher.byteLength, decrypt).output.toString('hex'),
    plain.toString('hex'),
  );
  const inPlace = Buffer.from(plain);
  mode.run(inPlace, inPlace, encrypt);
  assert.deepEqual(inPlace, cipher);
  mode.run(inPlace, inPlace, decrypt);
  assert.deepEqual(inPlace, plain);
}

/** IEEE 1619-2007, annex B: XTS-AES-128 vectors 1 to 3, XTS-AES-256 vector 10 (its first and last bytes). */
test("XTS answers the standard's vectors", () => {
  const common = { sectorBytes: 32, initialVector: 'plain64' } as const;
  const vectors = [
    ['00', '00', 0, '00', '917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e'],
    ['11', '22', 0x3333333333, '44', 'c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0'],
  ] as const;
  for (const [key1, key2, firstSector, plain, cipher] of vectors) {
    const key = Buffer.concat([Buffer.alloc(16, key1, 'hex'), Buffer.alloc(16, key2, 'hex')]);
    assertBoth(aesXts, Buffer.alloc(32, plain, 'hex'), hex(cipher), { key, firstSector, ...common });
  }
  const key3 = Buffer.concat([hex('fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0'), Buffer.alloc(16, 0x22)]);
  const cipher3 = hex('af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89');
  assertBoth(aesXts, Buffer.alloc(32, 0x44), cipher3, { key: key3, firstSector: 0x3333333333, ...common });
  const key10 = hex(
    `2718281828459045235360287471352662497757247093699959574966967627
     3141592653589793238462643383279502884197169399375105820974944592`,
  );
  const plain10 = Buffer.from(Array.from({ length: 512 }, (_, i) => i % 256));
  const { output } = runHere(aesXts, plain10, 512, {
    ...common,
    key: key10,
    firstSector: 0xff,
    sectorBytes: 512,
    direction: 'encrypt',
  });
  assert.equal(output.subarray(0, 16).toString('hex'), '1c3b3a102f770386e4836c99e370cf9b');
});

/** NIST SP 800-38A, F.2.1 and F.2.5 (CBC-AES128 and -AES256), whose vector is no sector's number: 1 block at a time. */
test("CBC answers the standard's vectors", () => {
  const iv = hex('000102030405060708090a0b0c0d0e0f');
  const plain = hex('6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51');
  const vectors = [
    ['2b7e151628aed2a6abf7158809cf4f3c', '7649abac8119b246cee98e9b12e9197d 5086cb9b507219ee95db113a917678b2'],
    [
      '603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4',
      'f58c4c04d6e5f1ba779eabfb5f7bfbd6 9cfc4e967edb808d679f777bc6702c7d',
    ],
  ] as const;
  for (const [key, cipher] of vectors) {
    // A block that sector 0's vector of zeroes leaves as it is stands for the vector.
    const first = Buffer.from(plain);
    for (let i = 0; i < 16; i++) first[i]! ^= iv[i]!;
    const parameters = { key: hex(key), firstSector: 0, sectorBytes: 32, initialVector: 'plain64' } as const;
    assertBoth(aesCbc, first, hex(cipher), parameters);
  }
});

function sectorIv(kind: AesParameters['initialVector'], key: Uint8Array, sector: number): Buffer {
  const iv = Buffer.alloc(16);
  iv.writeBigUInt64LE(kind === 'plain' ? BigInt(sector) & 0xffffffffn : BigInt(sector));
  if (kind === 'plain' || kind === 'plain64') return iv;
  const salt = createHash(kind.slice('essiv-'.length)).update(key).digest();
  return createCipheriv(`aes-${salt.length * 8}-ecb`, salt, null)
    .setAutoPadding(false)
    .update(iv);
}

/** One cipher of node:crypto for each sector. */
function sectorwise(name: string, plain: Buffer, parameters: Omit<AesParameters, 'direction'>): Buffer {
  const { key, sectorBytes, firstSector, initialVector } = parameters;
  const sectors: Buffer[] = [];
  for (let at = 0; at < plain.byteLength; at += sectorBytes) {
    const iv = sectorIv(initialVector, key, firstSector + at / sectorBytes);
    const cipher = createCipheriv(name, key, name.endsWith('ecb') ? null : iv).setAutoPadding(false);
    sectors.push(cipher.update(plain.subarray(at, at + sectorBytes)));
  }
  return Buffer.concat(sectors);
}

const parameters = (keyBytes: number): fc.Arbitrary<Omit<AesParameters, 'direction'>> =>
  fc.record({
    key: fc.uint8Array({ minLength: keyBytes, maxLength: keyBytes }),
    sectorBytes: fc.constantFrom(16, 512, 4096),
    firstSector: fc.oneof(fc.nat(100), fc.constantFrom(2 ** 32 - 2, 2 ** 40 + 5)),
    initialVector: fc.constantFrom('plain', 'plain64', 'essiv-md5', 'essiv-sha256'),
  });

for (const [mode, name, keyBytes] of [
  [aesXts, 'aes-128-xts', 32],
  [aesXts, 'aes-256-xts', 64],
  [aesCbc, 'aes-128-cbc', 16],
  [aesCbc, 'aes-192-cbc', 24],
  [aesCbc, 'aes-256-cbc', 32],
  [aesEcb, 'aes-192-ecb', 24],
  [aesCtr, 'aes-128-ctr', 16],
  [aesCtr, 'aes-256-ctr', 32],
] as const)
  test(`${name} does what a cipher for each sector does, from any memory`, () => {
    fc.assert(
      fc.property(parameters(keyBytes), fc.nat(9), fc.nat(3), (given, sectorCount, offset) => {
        // node:crypto refuses two halves of XTS that are alike.
        if (mode === aesXts) given.key[0] = given.key[keyBytes / 2]! ^ 1;
        const plain = randomBytes(sectorCount * given.sectorBytes + offset).subarray(offset);
        assertBoth(mode, plain, sectorwise(name, plain, given), given);
      }),
      { numRuns: 60 },
    );
  });
