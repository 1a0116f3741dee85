import type { NbdClient } from '../../src/wire/nbd/client.js';

const RECORD_BYTES = 512;

/**
 * A program that keeps the same record on two disks: a number is written to the first and, when that is answered, to the
 * second. So at no moment is the second one ahead, nor behind by more than one.
 */
export class RecordPair {
  readonly #disks: readonly [NbdClient, NbdClient];
  readonly #offset: number;
  #running: Promise<unknown> | undefined;
  #isStopped = false;
  number = 0;

  constructor(disks: readonly [NbdClient, NbdClient], offset: number) {
    this.#disks = disks;
    this.#offset = offset;
  }

  start(): void {
    this.#running = this.#run();
    // Told by stop().
    this.#running.catch(() => undefined);
  }

  async #run(): Promise<void> {
    while (!this.#isStopped) {
      const record = Buffer.alloc(RECORD_BYTES);
      record.writeUInt32BE(++this.number, 0);
      for (const disk of this.#disks) await disk.write(this.#offset, record, 0);
    }
  }

  /** Errors: that of a write. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#running;
  }
}

/** The number on one disk. */
export async function recordOn(disk: NbdClient, offset: number): Promise<number> {
  const record = Buffer.alloc(RECORD_BYTES);
  await disk.read(offset, record);
  return record.readUInt32BE(0);
}
