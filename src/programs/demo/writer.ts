import type { BlockBackend } from '../../block/backend.js';
import type { Host } from '../../host/host.js';
import { decodeRecord, encodeRecord, RECORD_BYTES, RecordLog } from './records.js';

/** Records between two flushes. */
const FLUSH_EVERY = 64;
/** Every so many records one is read back. */
const VERIFY_EVERY = 8;

/**
 * The demo's guest: writes numbered records to random blocks one after the other, flushes now and then, and reads
 * back what it wrote.
 */
export class RecordWriter {
  readonly log: RecordLog;
  /** Newest record whose write has completed. */
  completed = 0;
  /** Newest record that a completed flush covers. */
  flushed = 0;
  verified = 0;
  #longestWriteMs = 0;
  readonly disk: BlockBackend;
  readonly #host: Host;
  #stopping = false;
  #running: Promise<void> | undefined;

  constructor(host: Host, disk: BlockBackend) {
    this.#host = host;
    this.disk = disk;
    this.log = new RecordLog(Math.floor(disk.lengthBytes / RECORD_BYTES));
  }

  /** A record in each block of the first half, in order, before start(). */
  async fill(): Promise<void> {
    const block = Buffer.alloc(RECORD_BYTES);
    for (let index = 0; index < this.log.blockCount / 2; index++) {
      const number = this.log.next(index);
      encodeRecord(block, number, index);
      await this.disk.write(index * RECORD_BYTES, block);
      this.completed = number;
    }
    await this.disk.flush();
    this.flushed = this.completed;
  }

  /** `pauseMs`: between two records. */
  start(pauseMs = 0): void {
    this.#stopping = false;
    this.#running = this.#run(pauseMs);
  }

  /** Ends after the record under way; throws what the writer met. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
  }

  /** Throws as soon as the writer has failed; for whoever waits for something else meanwhile. */
  get failed(): Promise<void> {
    return this.#running ?? Promise.resolve();
  }

  /** How long its slowest write took since this was asked last. */
  takeLongestWriteMs(): number {
    const longestMs = this.#longestWriteMs;
    this.#longestWriteMs = 0;
    return longestMs;
  }

  async #run(pauseMs: number): Promise<void> {
    const block = Buffer.alloc(RECORD_BYTES);
    const { random } = this.#host;
    while (!this.#stopping) {
      if (pauseMs > 0) await this.#host.clock.sleep(pauseMs);
      const index = random.below(this.log.blockCount);
      const number = this.log.next(index);
      encodeRecord(block, number, index);
      const started = this.#host.clock.nowMs();
      await this.disk.write(index * RECORD_BYTES, block);
      this.#longestWriteMs = Math.max(this.#longestWriteMs, this.#host.clock.nowMs() - started);
      this.completed = number;
      if (number % VERIFY_EVERY === 0) await this.#verify(random.below(this.log.blockCount), block);
      if (number % FLUSH_EVERY === 0) {
        await this.disk.flush();
        this.flushed = number;
      }
    }
    await this.disk.flush();
    this.flushed = this.completed;
  }

  async #verify(index: number, block: Buffer): Promise<void> {
    await this.disk.read(index * RECORD_BYTES, block);
    const expected = this.log.at(index, this.completed);
    const found = decodeRecord(block, index);
    if (found !== expected)
      throw new Error(`the guest reads record ${found} in block ${index}, but wrote ${expected}`);
    this.verified++;
  }
}

/** Record number of every block of a disk. */
export async function readRecords(disk: BlockBackend): Promise<number[]> {
  const piece = Buffer.alloc(256 * RECORD_BYTES);
  const found: number[] = [];
  for (let offset = 0; offset < disk.lengthBytes; offset += piece.length) {
    const part = piece.subarray(0, Math.min(piece.length, disk.lengthBytes - offset));
    await disk.read(offset, part);
    for (let at = 0; at + RECORD_BYTES <= part.length; at += RECORD_BYTES) {
      found.push(decodeRecord(part.subarray(at, at + RECORD_BYTES), found.length));
    }
  }
  return found;
}
