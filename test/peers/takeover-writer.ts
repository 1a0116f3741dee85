import assert from 'node:assert/strict';
import { decodeRecord, encodeRecord, RECORD_BYTES } from '../../src/programs/demo/records.js';
import type { SmallNbd } from './small-nbd.js';
import { DISK_BYTES } from './takeover-sides.js';

const BLOCKS = 256;
const FLUSH_EVERY = 16;

function blockOffset(index: number): number {
  return ((index * 37) % (DISK_BYTES / RECORD_BYTES)) * RECORD_BYTES;
}

/** A guest that knows what it has written: numbered records, written, flushed and read again, as fast as they are answered. */
export class KnowingWriter {
  readonly #client: SmallNbd;
  readonly #newest = new Array<number>(BLOCKS).fill(0);
  #last = 0;
  #isStopped = false;
  #running: Promise<void> | undefined;
  /** The longest that a request took since it was asked last. */
  worstMs = 0;

  constructor(client: SmallNbd) {
    this.#client = client;
  }

  start(): void {
    this.#isStopped = false;
    this.#running = this.#work();
    // One whose server is killed hears of it when it is asked.
    this.#running.catch(() => undefined);
  }

  get requests(): number {
    return this.#last;
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#running;
  }

  takeWorst(): number {
    const worst = this.worstMs;
    this.worstMs = 0;
    return worst;
  }

  async #work(): Promise<void> {
    const block = Buffer.alloc(RECORD_BYTES);
    while (!this.#isStopped) {
      const index = Math.floor(Math.random() * BLOCKS);
      encodeRecord(block, ++this.#last, index);
      await this.#timed(() => this.#client.write(blockOffset(index), block));
      this.#newest[index] = this.#last;
      if (this.#last % FLUSH_EVERY === 0) await this.#timed(() => this.#client.flush());
      await this.#timed(() => this.check(Math.floor(Math.random() * BLOCKS)));
    }
  }

  async #timed(work: () => Promise<void>): Promise<void> {
    const startMs = performance.now();
    await work();
    this.worstMs = Math.max(this.worstMs, performance.now() - startMs);
  }

  async check(index: number, client = this.#client): Promise<void> {
    const found = decodeRecord(await client.read(blockOffset(index), RECORD_BYTES), index);
    assert.equal(found, this.#newest[index], `block ${index}`);
  }

  /** Where it has written. */
  written(): number[] {
    return this.#newest.flatMap((number, index) => (number > 0 ? [blockOffset(index)] : []));
  }

  async checkAll(client: SmallNbd): Promise<void> {
    for (let index = 0; index < BLOCKS; index++) await this.check(index, client);
  }
}
