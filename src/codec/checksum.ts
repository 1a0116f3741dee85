import { KiB } from '../base/limits.js';
import type { ComputeFunction } from '../host/compute.js';
import { codecProgram } from './program.js';

export const SHA256_BYTES = 32;

/** SHA-256 (FIPS 180-4) of the input into 32 bytes of output. */
export const sha256: ComputeFunction<undefined> = {
  program: codecProgram,
  name: 'sha256',
  maxSyncBytes: 64 * KiB + SHA256_BYTES,
  run(input, output) {
    output.set(process.getBuiltinModule('node:crypto').createHash('sha256').update(input).digest());
    return SHA256_BYTES;
  },
};

/** SHA-256 of each chunk of the input, the last one as long as it is, one digest behind the other. */
export const sha256Chunks: ComputeFunction<{ chunkBytes: number }> = {
  program: codecProgram,
  name: 'sha256-chunks',
  maxSyncBytes: 64 * KiB + SHA256_BYTES,
  run(input, output, { chunkBytes }) {
    const { createHash } = process.getBuiltinModule('node:crypto');
    let filled = 0;
    for (let at = 0; at < input.length; at += chunkBytes) {
      output.set(
        createHash('sha256')
          .update(input.subarray(at, at + chunkBytes))
          .digest(),
        filled,
      );
      filled += SHA256_BYTES;
    }
    return filled;
  },
};

/** CRC-32 (ISO 3309, as zlib's and PNG's): against accidents, not against people. Some 5 GB/s, so no thread is asked. */
export function crc32(bytes: Uint8Array, before = 0): number {
  return process.getBuiltinModule('node:zlib').crc32(bytes, before);
}

/** Adler-32 (RFC 1950). */
export function adler32(bytes: Uint8Array): number {
  let [low, high] = [1, 0];
  // So many bytes keep the sums exact.
  for (let at = 0; at < bytes.length; at += 5552) {
    for (const byte of bytes.subarray(at, at + 5552)) {
      low += byte;
      high += low;
    }
    low %= 65521;
    high %= 65521;
  }
  return high * 65536 + low;
}
