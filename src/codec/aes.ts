import type { Cipher, Decipher } from 'node:crypto';
import { assert } from '../base/assert.js';
import { KiB } from '../base/limits.js';
import type { ComputeFunction } from '../host/compute.js';
import { codecProgram } from './program.js';
import { type InitialVector, IV_BYTES, sectorVectors } from './sector-vectors.js';

/**
 * AES (FIPS 197) over sectors, each with an initial vector of its own. A cipher of node:crypto for each sector would
 * cost 7.5 us (70 MB/s in sectors of 512 bytes): XTS and the decryption of CBC are made of ECB, which needs one call for
 * all sectors, and exclusive or; the encryption of CBC goes on in one cipher, whose chaining is undone at each sector.
 */
export interface AesParameters {
  /** XTS: two keys, one after the other. Keys are of 16, 24 or 32 bytes. Kept by identity: do not change it. */
  key: Uint8Array;
  direction: 'encrypt' | 'decrypt';
  sectorBytes: number;
  /** The number of the input's first sector. */
  firstSector: number;
  initialVector: InitialVector;
}

const BLOCK_BYTES = 16;
const BLOCK_WORDS = 4;

type Mode = (input: Uint8Array, output: Uint8Array, parameters: AesParameters, vectors: Uint8Array) => void;

function aes(name: string, mode: Mode): ComputeFunction<AesParameters> {
  return {
    program: codecProgram,
    name,
    maxSyncBytes: 32 * KiB,
    run(input, output, parameters) {
      const { key, sectorBytes, firstSector, initialVector } = parameters;
      assert(input.byteLength === output.byteLength, 'a cipher keeps lengths');
      assert(sectorBytes % BLOCK_BYTES === 0 && input.byteLength % sectorBytes === 0, 'whole sectors');
      const sectorCount = input.byteLength / sectorBytes;
      if (sectorCount === 0) return 0;
      mode(input, output, parameters, sectorVectors(initialVector, key, firstSector, sectorCount));
      return output.byteLength;
    },
  };
}

/** XTS (IEEE 1619), without ciphertext stealing: sectors are whole blocks. Output may be the input. */
export const aesXts = aes('aes-xts', (input, output, { key, direction, sectorBytes }, vectors) => {
  const half = key.byteLength / 2;
  const tweaks = xtsTweaks(words(ecb(key, half, key.byteLength, 'encrypt').update(vectors)), sectorBytes);
  const masked = exclusiveOr(words(input), tweaks);
  const cipher = ecb(key, 0, half, direction).update(bytesOf(masked));
  output.set(bytesOf(exclusiveOr(words(cipher), tweaks)));
});

/** CBC (NIST SP 800-38A), each sector a message of its own. Output may be the input. */
export const aesCbc = aes('aes-cbc', (input, output, { key, direction, sectorBytes }, vectors) => {
  if (direction === 'encrypt') return encryptCbc(input, output, key, sectorBytes, vectors);
  const plain = words(ecb(key, 0, key.byteLength, 'decrypt').update(input));
  output.set(bytesOf(exclusiveOr(plain, words(chained(input, sectorBytes, vectors)))));
});

/** ECB (NIST SP 800-38A): sectors are alike where their bytes are. Output may be the input. */
export const aesEcb = aes('aes-ecb', (input, output, { key, direction }) => {
  output.set(ecb(key, 0, key.byteLength, direction).update(input));
});

/** CTR (NIST SP 800-38A), each sector a message whose counter begins with its vector. Output may be the input. */
export const aesCtr = aes('aes-ctr', (input, output, { key, sectorBytes }, vectors) => {
  const stream = ecb(key, 0, key.byteLength, 'encrypt').update(counters(vectors, sectorBytes));
  output.set(bytesOf(exclusiveOr(words(input), words(stream))));
});

/** Of each block: its sector's vector and the block's number in the sector, as one number, big-endian. */
function counters(vectors: Uint8Array, sectorBytes: number): Uint8Array {
  const all = new Uint8Array((vectors.byteLength / IV_BYTES) * sectorBytes);
  for (let at = 0; at < all.byteLength; at += BLOCK_BYTES) {
    const isFirst = at % sectorBytes === 0;
    all.set(isFirst ? vectorOf(vectors, at / sectorBytes) : all.subarray(at - BLOCK_BYTES, at), at);
    if (isFirst) continue;
    let i = at + BLOCK_BYTES - 1;
    while (i >= at && ++all[i]! % 256 === 0) i--;
  }
  return all;
}

/** What each block of CBC is combined with: the cipher's block before it, at a sector's start its vector. */
function chained(cipher: Uint8Array, sectorBytes: number, vectors: Uint8Array): Uint8Array {
  const chain = new Uint8Array(cipher.byteLength);
  for (let at = 0; at < cipher.byteLength; at += sectorBytes) {
    chain.set(vectorOf(vectors, at / sectorBytes), at);
    chain.set(cipher.subarray(at, at + sectorBytes - BLOCK_BYTES), at + BLOCK_BYTES);
  }
  return chain;
}

function encryptCbc(
  input: Uint8Array,
  output: Uint8Array,
  key: Uint8Array,
  sectorBytes: number,
  vectors: Uint8Array,
): void {
  const { createCipheriv } = process.getBuiltinModule('node:crypto');
  const cipher = createCipheriv(`aes-${key.byteLength * 8}-cbc`, key, vectorOf(vectors, 0)).setAutoPadding(
    false,
  );
  const sectorBuffer = new Uint8Array(sectorBytes);
  for (let at = 0; at < input.byteLength; at += sectorBytes) {
    sectorBuffer.set(input.subarray(at, at + sectorBytes));
    // The cipher chains its last block into this sector's first: take that out, and the vector in.
    if (at > 0)
      for (const [i, byte] of vectorOf(vectors, at / sectorBytes).entries())
        sectorBuffer[i]! ^= byte ^ output[at - BLOCK_BYTES + i]!;
    output.set(cipher.update(sectorBuffer), at);
  }
}

function vectorOf(vectors: Uint8Array, sector: number): Uint8Array {
  return vectors.subarray(sector * IV_BYTES, (sector + 1) * IV_BYTES);
}

/** Of each sector's first tweak all: each is the one before times x in GF(2^128), little-endian. */
function xtsTweaks(first: Int32Array, sectorBytes: number): Int32Array {
  const sectorWords = sectorBytes / 4;
  const tweaks = new Int32Array((first.length / BLOCK_WORDS) * sectorWords);
  for (let sector = 0, at = 0; sector < first.length; sector += BLOCK_WORDS) {
    let [a, b, c, d] = [first[sector]!, first[sector + 1]!, first[sector + 2]!, first[sector + 3]!];
    for (const end = at + sectorWords; at < end; at += BLOCK_WORDS) {
      tweaks[at] = a;
      tweaks[at + 1] = b;
      tweaks[at + 2] = c;
      tweaks[at + 3] = d;
      const carry = (d >> 31) & 0x87;
      d = (d << 1) | (c >>> 31);
      c = (c << 1) | (b >>> 31);
      b = (b << 1) | (a >>> 31);
      a = (a << 1) ^ carry;
    }
  }
  return tweaks;
}

function exclusiveOr(a: Int32Array, b: Int32Array): Int32Array {
  const result = new Int32Array(a.length);
  for (let i = 0; i < a.length; i++) result[i] = a[i]! ^ b[i]!;
  return result;
}

/** Bytes as words: a copy only where they are not aligned. */
function words(bytes: Uint8Array): Int32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
  return new Int32Array(aligned.buffer, aligned.byteOffset, aligned.byteLength / 4);
}

function bytesOf(array: Int32Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** ECB keeps no state between calls, so one cipher serves a key for ever: to make it costs as much as 3 KiB. */
const ciphers = new WeakMap<Uint8Array, Map<string, Cipher | Decipher>>();

/** The cipher of the key's bytes [start, end). */
function ecb(
  key: Uint8Array,
  start: number,
  end: number,
  direction: 'encrypt' | 'decrypt',
): Cipher | Decipher {
  const ofKey = ciphers.get(key) ?? new Map<string, Cipher | Decipher>();
  ciphers.set(key, ofKey);
  const name = `${direction} ${start} ${end}`;
  let cipher = ofKey.get(name);
  if (!cipher) {
    const { createCipheriv, createDecipheriv } = process.getBuiltinModule('node:crypto');
    const create = direction === 'encrypt' ? createCipheriv : createDecipheriv;
    cipher = create(`aes-${(end - start) * 8}-ecb`, key.subarray(start, end), null).setAutoPadding(false);
    ofKey.set(name, cipher);
  }
  return cipher;
}
