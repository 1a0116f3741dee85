import { assert } from '../base/assert.js';
import type { ComputeFunction } from '../host/compute.js';
import { codecProgram } from './program.js';

/**
 * The anti-forensic information splitter (LUKS1 On-Disk Format 1.2.3, 2.4): a key of the output's length from as many
 * stripes as the input has. Since the last stripe is the key combined with what the others make, it also answers the
 * last stripe, where the input has the key in its place.
 */
export const mergeStripes: ComputeFunction<{ hash: string }> = {
  program: codecProgram,
  name: 'merge-stripes',
  maxSyncBytes: 0,
  run(input, output, { hash }) {
    const length = output.byteLength;
    assert(length > 0 && input.byteLength % length === 0, 'whole stripes');
    const { createHash } = process.getBuiltinModule('node:crypto');
    const digest = (bytes: Uint8Array): Buffer => createHash(hash).update(bytes).digest();
    const pieceBytes = digest(new Uint8Array()).length;
    let block = Buffer.alloc(length);
    for (let at = 0; ; at += length) {
      for (let i = 0; i < length; i++) block[i]! ^= input[at + i]!;
      if (at + length === input.byteLength) break;
      block = diffused(block, digest, pieceBytes);
    }
    output.set(block);
    return length;
  },
};

/** Piece by piece of the hash's length: the hash of the piece's number and the piece, as much of it as there was. */
function diffused(
  block: Buffer,
  digest: (bytes: Uint8Array) => Buffer,
  pieceBytes: number,
): Buffer<ArrayBuffer> {
  const out = Buffer.alloc(block.length);
  for (let at = 0, piece = 0; at < block.length; at += pieceBytes, piece++) {
    const part = block.subarray(at, at + pieceBytes);
    const numbered = Buffer.alloc(4 + part.length);
    numbered.writeUInt32BE(piece, 0);
    numbered.set(part, 4);
    digest(numbered).copy(out, at, 0, part.length);
  }
  return out;
}
