import { IoVector } from '../../src/base/io-vector.js';

/** Sizes by which memory is cut, again and again; 0 makes an empty piece. */
export type Cuts = readonly number[];

/** More than two calls of the system take; what is left is one piece. With one for each byte a test takes minutes. */
const MOST_PIECES = 3000;

/** Memory of that size in pieces: position 0 lies `start` bytes into the first, and each has bytes of others beside it. */
export function cutMemory(lengthBytes: number, cuts: Cuts, start = 0): IoVector {
  const buffers: Uint8Array[] = [];
  for (let done = -start, turn = 0; done < lengthBytes; turn++) {
    const size = Math.max(cuts[turn % Math.max(1, cuts.length)] ?? lengthBytes, turn === 0 ? start + 1 : 0);
    const isStuck = turn > 2 * cuts.length && cuts.every((cut) => cut === 0);
    const isLast = isStuck || buffers.length >= MOST_PIECES;
    const length = isLast ? lengthBytes - done : Math.min(size, lengthBytes - done);
    const around = Buffer.alloc(length + 16, 0xab);
    buffers.push(around.subarray(8, 8 + length));
    done += length;
  }
  const vector = new IoVector();
  vector.setBuffers(buffers.length > 0 ? buffers : [Buffer.alloc(start)], start);
  return vector;
}

/** Nothing beside the pieces was written. */
export function isTidy(memory: IoVector): boolean {
  return memory.buffers.every((buffer) => {
    const { byteOffset, length } = buffer;
    if (length === 0 || byteOffset < 8) return true;
    const around = Buffer.from(buffer.buffer, byteOffset - 8, length + 16);
    const margins = [...around.subarray(0, 8), ...around.subarray(8 + length)];
    return margins.every((byte) => byte === 0xab);
  });
}
