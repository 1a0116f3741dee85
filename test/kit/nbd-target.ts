import { BlockError, errnoError } from '../../src/base/error.js';
import { isZero } from '../../src/base/zero.js';
import { type NbdTarget, TargetFlag, type TargetStatus } from '../../src/wire/nbd/target.js';

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

  tryRead(offset: number, buffer: Uint8Array, start: number, lengthBytes: number): boolean {
    if (this.isLate) return false;
    this.#check();
    this.bytes.copy(buffer, start, offset, offset + lengthBytes);
    return true;
  }

  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#later(() => void this.bytes.copy(buffer, 0, offset, offset + buffer.length));
  }

  tryWrite(offset: number, buffer: Uint8Array, flags: number, start: number, lengthBytes: number): boolean {
    if (this.isLate || flags !== TargetFlag.none) return false;
    this.#check();
    this.bytes.set(buffer.subarray(start, start + lengthBytes), offset);
    return true;
  }

  write(offset: number, buffer: Uint8Array, flags: number): Promise<void> {
    if (flags !== 0) this.log.push(`write flags ${flags}`);
    return this.#later(() => this.bytes.set(buffer, offset));
  }

  writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    this.log.push(`zero ${offset}+${lengthBytes} flags ${flags}`);
    return this.#later(() => {
      if (this.zeroesSlowly && flags >= TargetFlag.noFallback) throw errnoError('ENOTSUP');
      this.bytes.fill(0, offset, offset + lengthBytes);
    });
  }

  discard(offset: number, lengthBytes: number): Promise<void> {
    this.log.push(`discard ${offset}+${lengthBytes}`);
    return this.#later(() => void this.bytes.fill(0, offset, offset + lengthBytes));
  }

  flush(): Promise<void> {
    this.log.push('flush');
    return this.#later(() => undefined);
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
