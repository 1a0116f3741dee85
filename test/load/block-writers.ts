import assert from 'node:assert/strict';
import { KiB } from '../../src/base/limits.js';
import type { HostClock } from '../../src/host/host.js';
import type { NbdClient } from '../../src/wire/nbd/client.js';

const BLOCK_BYTES = 4 * KiB;
const SECTOR_BYTES = 512;

/** When a write was asked, and when it was answered. */
export interface Timed {
  readonly fromMs: number;
  readonly toMs: number;
}

/**
 * So many writers at once on one export. Each has blocks of its own and writes numbers to them, one after the other, so
 * what each block must hold is known; now and then it reads one.
 */
export class BlockWriters {
  readonly #client: NbdClient;
  readonly #clock: HostClock;
  readonly #below: (bound: number) => number;
  /** The number that each block holds. */
  readonly #numbers: number[];
  #running: Promise<unknown> | undefined;
  #isStopped = false;
  #failure: Error | undefined;
  /** Writes that ended since this was taken last. */
  ended: Timed[] = [];
  count = 0;

  constructor(client: NbdClient, clock: HostClock, blocks: number, below: (bound: number) => number) {
    this.#client = client;
    this.#clock = clock;
    this.#below = below;
    this.#numbers = Array.from({ length: blocks }, () => 0);
  }

  start(depth: number): void {
    const writers = Array.from({ length: depth }, (_, index) => this.#write(index, depth));
    this.#running = Promise.all(writers).catch((error: unknown) => (this.#failure = error as Error));
  }

  /** Errors: that of a writer. */
  check(): void {
    if (this.#failure) throw this.#failure;
  }

  async #write(index: number, depth: number): Promise<void> {
    const own = Math.floor((this.#numbers.length - index - 1) / depth) + 1;
    while (!this.#isStopped && this.#failure === undefined) {
      const block = index + depth * this.#below(own);
      const number = (this.#numbers[block] ?? 0) + 1;
      const fromMs = this.#clock.nowMs();
      await this.#client.write(block * BLOCK_BYTES, contentOf(block, number), 0);
      this.ended.push({ fromMs, toMs: this.#clock.nowMs() });
      this.#numbers[block] = number;
      this.count++;
      if (this.#below(16) === 0) await this.#verify(block);
    }
  }

  async #verify(block: number): Promise<void> {
    const bytes = Buffer.alloc(BLOCK_BYTES);
    await this.#client.read(block * BLOCK_BYTES, bytes);
    const number = this.#numbers[block] ?? 0;
    const expected = number === 0 ? Buffer.alloc(BLOCK_BYTES) : contentOf(block, number);
    assert.ok(bytes.equals(expected), `block ${block} does not hold number ${number}: ${told(bytes)}`);
  }

  /** Waits for all; then each block holds the number that was written to it last. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#running;
    this.check();
    for (let block = 0; block < this.#numbers.length; block++) await this.#verify(block);
  }
}

/** Each sector says whose it is. */
function contentOf(block: number, number: number): Buffer {
  const bytes = Buffer.alloc(BLOCK_BYTES, number % 251);
  for (let at = 0; at < BLOCK_BYTES; at += SECTOR_BYTES) {
    bytes.writeUInt32BE(block, at);
    bytes.writeUInt32BE(number, at + 4);
  }
  return bytes;
}

function told(bytes: Buffer): string {
  const sectors = Array.from({ length: BLOCK_BYTES / SECTOR_BYTES }, (_, i) => i * SECTOR_BYTES);
  return sectors.map((at) => `${bytes.readUInt32BE(at)}:${bytes.readUInt32BE(at + 4)}`).join(' ');
}
