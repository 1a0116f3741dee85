import assert from 'node:assert/strict';
import { decodeRecord, encodeRecord, RECORD_BYTES } from '../../src/programs/demo/records.js';
import type { SmallNbd } from './small-nbd.js';

const BLOCKS = 512;
/** Of a disk for them, at least. */
export const RECORDS_DISK_BYTES = 16 * 1024 * 1024;
const FLUSH_EVERY = 8;

/** Scattered: neighbouring blocks are in different clusters. */
export function blockOffset(index: number): number {
  return ((index * 37) % (RECORDS_DISK_BYTES / RECORD_BYTES)) * RECORD_BYTES;
}

/** What a guest has written, and what of it must be there: the newest that a flush covers, or a newer one. */
export class FlushedRecords {
  readonly #durable = new Array<number>(BLOCKS).fill(0);
  readonly #unflushed = new Map<number, number[]>();
  readonly #random: () => number;
  #last = 0;
  #forgotten = 0;

  /** `random`: in [0, 1). */
  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  /** Where something was asked to be written, whether or not it was answered. */
  *written(): Generator<number> {
    for (let index = 0; index < BLOCKS; index++) {
      const isNew = (this.#durable[index] ?? 0) > this.#forgotten;
      if (isNew || this.#unflushed.has(index)) yield blockOffset(index);
    }
  }

  /** What has been written by now is told by written() no more. */
  forget(): void {
    this.#forgotten = this.#last;
  }

  async write(client: SmallNbd): Promise<void> {
    const block = Buffer.alloc(RECORD_BYTES);
    for (let count = 0; count < FLUSH_EVERY; count++) {
      const index = Math.floor(this.#random() * BLOCKS);
      const number = ++this.#last;
      this.#unflushed.set(index, [...(this.#unflushed.get(index) ?? []), number]);
      encodeRecord(block, number, index);
      await client.write(blockOffset(index), block);
    }
    await client.flush();
    for (const [index, numbers] of this.#unflushed) this.#durable[index] = numbers.at(-1) ?? 0;
    this.#unflushed.clear();
  }

  async check(client: SmallNbd, where: string): Promise<void> {
    for (let index = 0; index < BLOCKS; index++) {
      const found = decodeRecord(await client.read(blockOffset(index), RECORD_BYTES), index);
      const durable = this.#durable[index] ?? 0;
      const mayBe = [durable, ...(this.#unflushed.get(index) ?? [])];
      assert.ok(
        mayBe.includes(found),
        `${where}: block ${index} has ${found}, and not ${mayBe.join(' or ')}`,
      );
      this.#durable[index] = found;
    }
    this.#unflushed.clear();
  }
}
