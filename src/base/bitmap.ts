import { assert } from './assert.js';

/** A dense bitmap of `length` bits with a running count of the set ones. Memory: length / 8 bytes. */
export class Bitmap {
  readonly length: number;
  readonly #words: Uint32Array;
  #count = 0;

  constructor(length: number) {
    assert(Number.isSafeInteger(length) && length >= 0, () => `bitmap length ${length}`);
    this.length = length;
    this.#words = new Uint32Array(Math.ceil(length / 32));
  }

  /** Bits set. */
  get count(): number {
    return this.#count;
  }

  get(index: number): boolean {
    return ((this.#words[Math.floor(index / 32)] ?? 0) & (1 << (index % 32))) !== 0;
  }

  /** Sets bits [from, end). */
  set(from: number, end: number): void {
    this.#fill(from, end, true);
  }

  /** Clears bits [from, end). */
  clear(from: number, end: number): void {
    this.#fill(from, end, false);
  }

  /** First set bit in [from, end), or -1. */
  nextSet(from: number, end = this.length): number {
    return this.#next(from, end, 0);
  }

  /** First clear bit in [from, end), or -1. */
  nextClear(from: number, end = this.length): number {
    return this.#next(from, end, 0xffffffff);
  }

  /** As bytes, 8 bits in each, in whole units of 8 bytes, at least one. */
  bytes(): Uint8Array {
    const units = Math.max(1, Math.ceil(this.length / 64));
    const out = new Uint8Array(units * 8);
    out.set(new Uint8Array(this.#words.buffer));
    return out;
  }

  /** Fills `out` with the bytes from `byteOffset` on, which may be beyond the last bit: zeroes. */
  readBytes(byteOffset: number, out: Uint8Array): void {
    const all = new Uint8Array(this.#words.buffer);
    const inside = Math.max(0, Math.min(out.length, all.length - byteOffset));
    if (inside > 0) out.set(all.subarray(byteOffset, byteOffset + inside));
    out.fill(0, inside);
  }

  /** Sets the bits that are set in bytes as bytes() gives them, from `byteOffset` (a multiple of 4) on; others stay. */
  setBytes(byteOffset: number, bytes: Uint8Array): void {
    assert(byteOffset % 4 === 0, () => `bytes of a bitmap at ${byteOffset}`);
    const end = Math.min(bytes.length, this.#words.byteLength - byteOffset);
    for (let at = 0; at < end; at += 4) {
      const index = (byteOffset + at) / 4;
      const given = littleEndian(bytes, at) & this.#mask(index);
      const old = this.#words[index] ?? 0;
      const now = (old | given) >>> 0;
      if (now === old) continue;
      this.#count += popCount(now) - popCount(old);
      this.#words[index] = now;
    }
  }

  /** Which bits of a word there are. */
  #mask(index: number): number {
    const bits = this.length - index * 32;
    return bits >= 32 ? 0xffffffff : 2 ** bits - 1;
  }

  clone(): Bitmap {
    const copy = new Bitmap(this.length);
    copy.#words.set(this.#words);
    copy.#count = this.#count;
    return copy;
  }

  #fill(from: number, end: number, value: boolean): void {
    assert(from >= 0 && from <= end && end <= this.length, () => `bits ${from}..${end} of ${this.length}`);
    if (from === end) return;
    const words = this.#words;
    const last = wordOf(end - 1);
    let mask = -1 << (from % 32);
    for (let word = wordOf(from); word <= last; word++) {
      if (word === last) mask &= -1 >>> (31 - ((end - 1) % 32));
      const old = words[word] ?? 0;
      const now = (value ? old | mask : old & ~mask) >>> 0;
      if (now !== old) {
        this.#count += popCount(now) - popCount(old);
        words[word] = now;
      }
      mask = -1;
    }
  }

  /** First bit in [from, end) whose value differs from that of `skip` (a word of all ones or all zeroes). */
  #next(from: number, end: number, skip: number): number {
    assert(from >= 0 && end <= this.length, () => `bits ${from}..${end} of ${this.length}`);
    const words = this.#words;
    const stop = Math.ceil(end / 32);
    let word = wordOf(from);
    let rest = word < stop ? ((words[word] ?? 0) ^ skip) & (-1 << (from % 32)) : 0;
    while (rest === 0) {
      word++;
      if (word >= stop) return -1;
      rest = (words[word] ?? 0) ^ skip;
    }
    const found = word * 32 + (31 - Math.clz32(rest & -rest));
    return found < end ? found : -1;
  }
}

/** As a small integer, which loops over words need to be fast. */
function wordOf(index: number): number {
  return Math.floor(index / 32) >>> 0;
}

/** 32 bits at a place; beyond the end are zeroes. */
function littleEndian(bytes: Uint8Array, at: number): number {
  const [a = 0, b = 0, c = 0, d = 0] = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
  return (a | (b << 8) | (c << 16) | (d << 24)) >>> 0;
}

function popCount(word: number): number {
  let n = word - ((word >>> 1) & 0x55555555);
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return (((n + (n >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}
