import type { ChildIo } from '../../block/driver.js';

/** The bytes at `offset`; beyond the end of the file are zeroes. The caller bounds the length. */
export async function readBytes(file: ChildIo, offset: number, lengthBytes: number): Promise<Buffer> {
  const bytes = Buffer.alloc(lengthBytes);
  const inside = Math.min(lengthBytes, file.lengthBytes - offset);
  if (inside <= 0) return bytes;
  const part = bytes.subarray(0, inside);
  if (!file.tryRead(offset, part)) await file.read(offset, part);
  return bytes;
}

/** A field of 64 bits. Infinity: no number of ours. */
export function uint64(bytes: Buffer, at: number, littleEndian = true): number {
  const value = littleEndian ? bytes.readBigUInt64LE(at) : bytes.readBigUInt64BE(at);
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : Infinity;
}

/** Numbers of a table in a file, a piece of it in memory at a time. */
export async function eachUint32(
  file: ChildIo,
  offset: number,
  count: number,
  littleEndian: boolean,
  body: (value: number, index: number) => void,
): Promise<void> {
  for (let first = 0; first < count; first += PIECE_ENTRIES) {
    const here = Math.min(PIECE_ENTRIES, count - first);
    const bytes = await readBytes(file, offset + first * 4, here * 4);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let i = 0; i < here; i++) body(view.getUint32(i * 4, littleEndian), first + i);
  }
}

const PIECE_ENTRIES = 64 * 1024;
