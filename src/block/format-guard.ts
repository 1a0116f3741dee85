import { AsyncMutex } from '../base/async.js';
import { errnoError } from '../base/error.js';
import type { DriverDescription } from './driver.js';

/** What formats are told by. */
const SECTOR_BYTES = 512;

/**
 * Guards the first sector of a raw image whose format was only guessed: whoever writes the disk could make it look like
 * another format, with a backing file of their choice, to whoever guesses next. Such writes fail with EPERM.
 */
export class FormatGuard {
  readonly #isRaw: (sector: Uint8Array) => boolean;
  /** The sector is looked at as the write will leave it, so these writes go one at a time. */
  readonly #writes = new AsyncMutex();

  constructor(isRaw: (sector: Uint8Array) => boolean) {
    this.#isRaw = isRaw;
  }

  concerns(offset: number): boolean {
    return offset < SECTOR_BYTES;
  }

  /**
   * Runs `write`, which puts bytes at `offset`, if the sector stays raw. `bytes`: at least those that fall into the
   * sector; `read` reads the sector as it is.
   */
  run(
    offset: number,
    bytes: Uint8Array,
    read: (sector: Uint8Array) => Promise<void>,
    write: () => Promise<void>,
  ): Promise<void> {
    return this.#writes.run(async () => {
      const sector = Buffer.alloc(SECTOR_BYTES);
      const inside = bytes.subarray(0, SECTOR_BYTES - offset);
      if (inside.length < SECTOR_BYTES) await read(sector);
      sector.set(inside, offset);
      if (!this.#isRaw(sector)) throw errnoError('EPERM');
      await write();
    });
  }
}

/** QEMU's warning when a raw image is written whose format nobody named; '' where it does not warn. */
export function probedWarning(filename: string, format: DriverDescription, readOnly: boolean): string {
  if (format.isFallback !== true || readOnly) return '';
  return (
    `WARNING: Image format was not specified for '${filename}' and probing guessed ${format.name}.\n` +
    `         Automatically detecting the format is dangerous for ${format.name} images, write operations on block 0 will be restricted.\n` +
    `         Specify the '${format.name}' format explicitly to remove the restrictions.\n`
  );
}
