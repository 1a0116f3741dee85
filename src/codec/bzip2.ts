import type { ComputeFunction } from '../host/compute.js';
import { brokenData } from './broken.js';
import { codecProgram } from './program.js';

/** Names as in Joe Tsai's "BZIP2: Format Specification", which this follows. */
const LEVEL_BYTES = 100_000;
const MAX_CODE_BITS = 20;
const SYMBOLS_PER_SELECTOR = 50;
const MAX_TREES = 6;
const BLOCK_MAGIC = [0x314159, 0x265359] as const;
const END_MAGIC = [0x177245, 0x385090] as const;
const RUN_A = 0;
const RUN_B = 1;

/**
 * Decompresses one stream; what follows it in `input` is left alone. Answers the bytes of output. Throws 'corrupt' when the
 * stream is broken, ends early, or makes more than `output` takes.
 */
export const bunzip2: ComputeFunction<undefined> = {
  program: codecProgram,
  name: 'bunzip2',
  maxSyncBytes: 0,
  run: (input, output) => new Decoder(input, output).run(),
};

/** Bits, highest first. */
class BitReader {
  readonly #bytes: Uint8Array;
  #at = 0;
  /** The last `#count` bits of it are next. */
  #window = 0;
  #count = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** Up to 24 bits; zeroes beyond the end, where only skip() fails. */
  peek(count: number): number {
    while (this.#count < count) {
      this.#window = (this.#window << 8) | (this.#bytes[this.#at++] ?? 0);
      this.#count += 8;
    }
    return (this.#window >>> (this.#count - count)) & ((1 << count) - 1);
  }

  /** Bits that were peeked at. */
  skip(count: number): void {
    this.#count -= count;
    if (this.#at * 8 - this.#count > this.#bytes.length * 8) throw brokenData('it ends early');
  }

  read(count: number): number {
    const value = this.peek(count);
    this.skip(count);
    return value;
  }
}

/** A canonical Huffman code. */
class Tree {
  /** Behind the last code of each length, as its first bits of MAX_CODE_BITS. */
  readonly #ends = new Int32Array(MAX_CODE_BITS + 2);
  /** Of each length: what makes a code the index of its symbol. */
  readonly #shift = new Int32Array(MAX_CODE_BITS + 1);
  readonly #symbols: Uint16Array;

  constructor(lengths: Uint8Array) {
    this.#symbols = new Uint16Array(lengths.length);
    let [code, filled] = [0, 0];
    for (let length = 1; length <= MAX_CODE_BITS; length++) {
      this.#shift[length] = filled - code;
      for (let symbol = 0; symbol < lengths.length; symbol++) {
        if (lengths[symbol] !== length) continue;
        this.#symbols[filled++] = symbol;
        code++;
      }
      this.#ends[length] = code << (MAX_CODE_BITS - length);
      code <<= 1;
    }
    this.#ends[MAX_CODE_BITS + 1] = 1 << MAX_CODE_BITS;
  }

  next(bits: BitReader): number {
    const ahead = bits.peek(MAX_CODE_BITS);
    let length = 1;
    while (ahead >= (this.#ends[length] ?? 0)) length++;
    if (length > MAX_CODE_BITS) throw brokenData('no such symbol');
    bits.skip(length);
    const index = (ahead >>> (MAX_CODE_BITS - length)) + (this.#shift[length] ?? 0);
    return this.#symbols[index] ?? 0;
  }
}

class Decoder {
  readonly #bits: BitReader;
  readonly #output: Uint8Array;
  #filled = 0;

  constructor(input: Uint8Array, output: Uint8Array) {
    this.#bits = new BitReader(input);
    this.#output = output;
  }

  run(): number {
    const bits = this.#bits;
    if (bits.read(24) !== 0x425a68) throw brokenData('no bzip2 stream');
    const level = bits.read(8) - 0x30;
    if (level < 1 || level > 9) throw brokenData(`level ${level}`);
    const block = new Uint32Array(level * LEVEL_BYTES);
    let streamSum = 0;
    for (;;) {
      const magic = [bits.read(24), bits.read(24)];
      const sum = (bits.read(16) << 16) | bits.read(16);
      if (magic[0] === END_MAGIC[0] && magic[1] === END_MAGIC[1]) {
        if (sum !== streamSum) throw brokenData('checksum of the stream');
        return this.#filled;
      }
      if (magic[0] !== BLOCK_MAGIC[0] || magic[1] !== BLOCK_MAGIC[1]) throw brokenData('no block');
      if (bits.read(1) !== 0) throw brokenData('a randomised block');
      const first = this.#filled;
      const start = bits.read(24);
      const length = this.#readBlock(block);
      this.#writeBlock(block, length, start);
      if (crcOf(this.#output, first, this.#filled) !== sum) throw brokenData('checksum of a block');
      streamSum = ((streamSum << 1) | (streamSum >>> 31)) ^ sum;
    }
  }

  /** The bytes that occur in a block, in order. */
  #readAlphabet(): Uint8Array {
    const bits = this.#bits;
    const groups = bits.read(16);
    const bytes: number[] = [];
    for (let group = 0; group < 16; group++) {
      if ((groups & (0x8000 >>> group)) === 0) continue;
      const used = bits.read(16);
      for (let i = 0; i < 16; i++) if ((used & (0x8000 >>> i)) !== 0) bytes.push(group * 16 + i);
    }
    if (bytes.length === 0) throw brokenData('a block of nothing');
    return Uint8Array.from(bytes);
  }

  /** Which tree each stretch of symbols is coded with. */
  #readSelectors(trees: number): Uint8Array {
    const bits = this.#bits;
    const order = Array.from({ length: trees }, (_, i) => i);
    const selectors = new Uint8Array(bits.read(15));
    for (let i = 0; i < selectors.length; i++) {
      let place = 0;
      while (bits.read(1) === 1) if (++place >= trees) throw brokenData('no such tree');
      const [tree = 0] = order.splice(place, 1);
      order.unshift(tree);
      selectors[i] = tree;
    }
    return selectors;
  }

  #readTree(symbols: number): Tree {
    const bits = this.#bits;
    const lengths = new Uint8Array(symbols);
    let length = bits.read(5);
    for (let symbol = 0; symbol < symbols; symbol++) {
      for (;;) {
        if (length < 1 || length > MAX_CODE_BITS) throw brokenData('length of a code');
        if (bits.read(1) === 0) break;
        length += bits.read(1) === 0 ? 1 : -1;
      }
      lengths[symbol] = length;
    }
    return new Tree(lengths);
  }

  /** Symbols, with runs and moves to the front undone: the last column of the sorted rotations. */
  #readBlock(block: Uint32Array): number {
    const bits = this.#bits;
    const front = this.#readAlphabet();
    const count = bits.read(3);
    if (count < 2 || count > MAX_TREES) throw brokenData(`${count} trees`);
    const selectors = this.#readSelectors(count);
    const trees = Array.from({ length: count }, () => this.#readTree(front.length + 2));
    const end = front.length + 1;
    let length = 0;
    let [run, weight] = [0, 1];
    for (const selector of selectors) {
      const tree = trees[selector] as Tree;
      for (let i = 0; i < SYMBOLS_PER_SELECTOR; i++) {
        const symbol = tree.next(bits);
        if (symbol === RUN_A || symbol === RUN_B) {
          run += weight << symbol;
          weight <<= 1;
          if (run > block.length) throw brokenData('a run too long');
          continue;
        }
        if (length + run + (symbol === end ? 0 : 1) > block.length) throw brokenData('a block too long');
        if (run > 0) {
          block.fill(front[0] ?? 0, length, length + run);
          length += run;
          [run, weight] = [0, 1];
        }
        if (symbol === end) return length;
        const place = symbol - 1;
        const byte = front[place] ?? 0;
        front.copyWithin(1, 0, place);
        front[0] = byte;
        block[length++] = byte;
      }
    }
    throw brokenData('a block without an end');
  }

  /** Undoes the sort, and the runs of four and more that were before it. Entries become: next one, and their byte. */
  #writeBlock(block: Uint32Array, length: number, start: number): void {
    if (start >= length) throw brokenData('the origin of a block');
    const starts = new Uint32Array(257);
    for (let i = 0; i < length; i++) starts[((block[i] ?? 0) & 0xff) + 1]!++;
    for (let byte = 0; byte < 256; byte++) starts[byte + 1]! += starts[byte]!;
    for (let i = 0; i < length; i++) {
      const byte = (block[i] ?? 0) & 0xff;
      const place = starts[byte]!++;
      block[place]! |= i << 8;
    }
    const output = this.#output;
    let at = this.#filled;
    let next = (block[start] ?? 0) >>> 8;
    let [before, alike] = [-1, 0];
    for (let i = 0; i < length; i++) {
      const entry = block[next] ?? 0;
      const byte = entry & 0xff;
      next = entry >>> 8;
      if (alike === 4) {
        if (at + byte > output.length) throw brokenData('it is too long');
        output.fill(before, at, at + byte);
        at += byte;
        [before, alike] = [-1, 0];
        continue;
      }
      if (at === output.length) throw brokenData('it is too long');
      output[at++] = byte;
      alike = byte === before ? alike + 1 : 1;
      before = byte;
    }
    this.#filled = at;
  }
}

/** CRC-32 with its bits the other way round than zlib's. */
function crcOf(bytes: Uint8Array, from: number, end: number): number {
  let sum = -1;
  for (let at = from; at < end; at++) sum = (sum << 8) ^ (CRC_TABLE[(sum >>> 24) ^ (bytes[at] ?? 0)] ?? 0);
  return ~sum;
}

const CRC_TABLE = Int32Array.from({ length: 256 }, (_, byte) => {
  let sum = byte << 24;
  for (let bit = 0; bit < 8; bit++) sum = sum < 0 ? (sum << 1) ^ 0x04c11db7 : sum << 1;
  return sum;
});
