import { assert } from '../../base/assert.js';

export const RECORD_BYTES = 4096;
const MAGIC = 'livedisk record ';

/** Fills a block with record `number` for block `blockIndex`: every byte depends on both, so a torn one shows. */
export function encodeRecord(buffer: Buffer, number: number, blockIndex: number): void {
  const line = `${MAGIC}${String(number).padStart(12, '0')} block ${String(blockIndex).padStart(10, '0')}\n`;
  buffer.fill(line, 0, RECORD_BYTES, 'latin1');
}

/** The number of the record in a block, 0 for an empty block. Throws on anything else: torn, foreign or stale data. */
export function decodeRecord(block: Buffer, blockIndex: number): number {
  if (block.every((byte) => byte === 0)) return 0;
  const text = block.toString('latin1', 0, MAGIC.length + 12);
  const number = text.startsWith(MAGIC) ? Number(text.slice(MAGIC.length)) : NaN;
  if (!Number.isSafeInteger(number))
    throw new Error(`block ${blockIndex} holds no record: ${JSON.stringify(text)}`);
  const expected = Buffer.alloc(RECORD_BYTES);
  encodeRecord(expected, number, blockIndex);
  if (!expected.equals(block))
    throw new Error(`block ${blockIndex} holds a torn or foreign record ${number}`);
  return number;
}

/** Which record went where, in the order of writing: tells at which moment a copy of the disk was true. */
export class RecordLog {
  readonly blockCount: number;
  /** Record numbers (from 1, ascending) of each block. */
  readonly #byBlock: number[][];
  #last = 0;

  constructor(blockCount: number) {
    this.blockCount = blockCount;
    this.#byBlock = Array.from({ length: blockCount }, () => []);
  }

  /** Number of the newest record. */
  get last(): number {
    return this.#last;
  }

  /** Notes the next record for a block, before it is written; answers its number. */
  next(blockIndex: number): number {
    const numbers = this.#byBlock[blockIndex];
    assert(numbers, () => `block ${blockIndex} of ${this.blockCount}`);
    numbers.push(++this.#last);
    return this.#last;
  }

  /** What block `blockIndex` held once record `moment` was written. */
  at(blockIndex: number, moment: number): number {
    const numbers = this.#byBlock[blockIndex] ?? [];
    return numbers.findLast((number) => number <= moment) ?? 0;
  }

  /**
   * The moments (first and last record number) at which the whole disk was just as `found` says (record number by
   * block). Throws when there is none: the copy mixes two moments.
   */
  momentsOf(found: readonly number[]): { first: number; last: number } {
    let first = 0;
    let last = this.#last;
    found.forEach((number, blockIndex) => {
      const numbers = this.#byBlock[blockIndex] ?? [];
      if (number !== 0 && !numbers.includes(number)) {
        throw new Error(`block ${blockIndex} holds record ${number}, which was written elsewhere`);
      }
      first = Math.max(first, number);
      const next = numbers.find((later) => later > number);
      if (next !== undefined) last = Math.min(last, next - 1);
    });
    if (first > last)
      throw new Error(`no single moment: record ${first} is there, but record ${last + 1} is not`);
    return { first, last };
  }
}
