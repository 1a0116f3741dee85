import type { BlockBackend } from '../../src/block/backend.js';

/** Bytes of one record. */
const RECORD_BYTES = 512;

/**
 * A guest that never stops writing by itself: numbered records, one after the other, to slots that a generator
 * chooses. Since each write waits for the one before, the disk after any record is known.
 */
export class RecordWriter {
  readonly #guest: BlockBackend;
  readonly #below: (bound: number) => number;
  readonly #first: Buffer;
  readonly #slots: number[] = [];
  /** Records written for certain. */
  completed = 0;
  #stopped = false;
  #running: Promise<void> | undefined;

  constructor(guest: BlockBackend, first: Buffer, below: (bound: number) => number) {
    this.#guest = guest;
    this.#first = first;
    this.#below = below;
  }

  /** Records begun, of which the last may be under way. */
  get submitted(): number {
    return this.#slots.length;
  }

  start(): void {
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    const slots = Math.floor(this.#first.length / RECORD_BYTES);
    while (!this.#stopped) {
      const slot = this.#below(slots);
      const number = this.#slots.push(slot);
      await this.#guest.write(slot * RECORD_BYTES, record(number));
      this.completed = number;
      if (this.#below(3) > 0) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  /** Waits until so many more records are written. */
  async more(records: number): Promise<void> {
    const goal = this.completed + records;
    while (this.completed < goal) await new Promise((resolve) => setImmediate(resolve));
  }

  /** The disk after `count` records. */
  diskAfter(count: number): Buffer {
    const disk = Buffer.from(this.#first);
    for (let number = 1; number <= count; number++)
      disk.set(record(number), (this.#slots[number - 1] ?? 0) * RECORD_BYTES);
    return disk;
  }

  /** After which record in [low, high] the disk looked like this; -1: after none. */
  pointInTimeOf(disk: Buffer, low: number, high: number): number {
    const at = this.diskAfter(low);
    for (let number = low; ; number++) {
      if (at.equals(disk)) return number;
      if (number === high) return -1;
      at.set(record(number + 1), (this.#slots[number] ?? 0) * RECORD_BYTES);
    }
  }
}

function record(number: number): Buffer {
  const bytes = Buffer.alloc(RECORD_BYTES, number % 251);
  bytes.writeUInt32BE(number, 0);
  bytes.writeUInt32BE(number, RECORD_BYTES - 4);
  return bytes;
}
