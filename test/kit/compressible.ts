import fc from 'fast-check';

/** Bytes, one at least, of which some repeat, as a guest's do: runs, noise and text by turns. */
export function compressible(mostBytes: number): fc.Arbitrary<Buffer> {
  const piece = fc.oneof(
    fc.tuple(fc.nat(255), fc.nat(3000)).map(([byte, length]) => Buffer.alloc(length, byte)),
    fc.uint8Array({ maxLength: 600 }).map((bytes) => Buffer.from(bytes)),
    fc.tuple(fc.string({ minLength: 1 }), fc.nat(3000)).map(([text, length]) => Buffer.alloc(length, text)),
  );
  return fc
    .array(piece, { maxLength: 12 })
    .map((pieces) => Buffer.concat([Buffer.of(7), ...pieces]).subarray(0, mostBytes));
}
