import { BlockError, errnoError } from '../../src/base/error.js';
import { isZero } from '../../src/base/zero.js';
import { Flag, type IoRequest } from '../../src/base/io-request.js';
import type { NbdTarget, TargetStatus } from '../../src/wire/nbd/target.js';

const SECTOR_BYTES = 512;

/** A disk in memory that keeps a log of what an NBD server asks of it. */
export class MemoryTarget implements NbdTarget {
  readonly bytes: Buffer;
  readonly log: string[] = [];
  /** try* refuse. */
  isLate = false;
  /** What every later request waits for. */
  delay: () => Promise<void> = () => Promise.resolve();
  /** Errno of every request that is to fail. */
  fault: string | undefined;
  /** writeZeroes costs as much as writing. */
  zeroesSlowly = false;
  #running = 0;
  mostRunning = 0;

  constructor(sizeBytes: number) {
    this.bytes = Buffer.alloc(sizeBytes);
  }

  get lengthBytes(): number {
    return this.bytes.length;
  }

  tryRun(request: IoRequest): boolean {
    if (this.isLate || request.flags !== Flag.none) return false;
    this.#check();
    this.#move(request);
    return true;
  }

  #move(request: IoRequest): void {
    const { kind, offset, lengthBytes } = request;
    const bytes = this.bytes.subarray(offset, offset + lengthBytes);
    if (kind === 'read') request.copyFrom(bytes, 0);
    else request.copyTo(bytes, 0, lengthBytes);
  }

  run(request: IoRequest): Promise<void> {
    const { kind, offset, lengthBytes, flags } = request;
    const end = offset + lengthBytes;
    switch (kind) {
      case 'write':
        if (flags !== 0) this.log.push(`write flags ${flags}`);
        return this.#later(() => this.#move(request));
      case 'read':
        return this.#later(() => this.#move(request));
      case 'zeroes':
        this.log.push(`zero ${offset}+${lengthBytes} flags ${flags}`);
        return this.#later(() => {
          if (this.zeroesSlowly && flags >= Flag.noFallback) throw errnoError('ENOTSUP');
          this.bytes.fill(0, offset, end);
        });
      case 'discard':
        this.log.push(`discard ${offset}+${lengthBytes}`);
        return this.#later(() => void this.bytes.fill(0, offset, end));
      case 'flush':
        this.log.push('flush');
        return this.#later(() => undefined);
    }
  }

  /** Sectors of zeroes are holes. */
  async status(offset: number, lengthBytes: number): Promise<TargetStatus> {
    const zero = this.#isZeroSector(offset);
    let end = offset - (offset % SECTOR_BYTES) + SECTOR_BYTES;
    while (end < offset + lengthBytes && this.#isZeroSector(end) === zero) end += SECTOR_BYTES;
    return this.#later(() => ({
      lengthBytes: Math.min(end, offset + lengthBytes) - offset,
      zero,
      data: !zero,
    }));
  }

  #isZeroSector(offset: number): boolean {
    const start = offset - (offset % SECTOR_BYTES);
    return isZero(this.bytes.subarray(start, start + SECTOR_BYTES));
  }

  #check(): void {
    if (this.fault !== undefined) throw errnoError(this.fault);
  }

  async #later<T>(body: () => T): Promise<T> {
    this.#running++;
    this.mostRunning = Math.max(this.mostRunning, this.#running);
    try {
      await this.delay();
      this.#check();
      return body();
    } finally {
      this.#running--;
    }
  }
}

/** A promise's BlockError; fails when there is none. */
export async function errorOf(promise: Promise<unknown>): Promise<BlockError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof BlockError) return error;
    throw error;
  }
  throw new Error('no error');
}
