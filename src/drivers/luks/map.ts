import { AssertionFailure } from '../../base/assert.js';
import { errnoError } from '../../base/error.js';
import type { ChildIo, MapDriver } from '../../block/driver.js';
import { type Mapping, placeOf } from '../../block/request.js';
import { readEncrypted, writeEncrypted } from '../encryption/encrypted-bytes.js';
import { SECTOR_BYTES, type SectorCipher } from '../encryption/sector-cipher.js';

/** The payload lies in the file from `start` on, sector by sector, encrypted. */
export class LuksMap implements MapDriver {
  readonly clusterBytes = SECTOR_BYTES;
  readonly unitBytes = SECTOR_BYTES;
  readonly isMappingDurable = true;
  readonly events: ChildIo;
  readonly start: number;
  readonly #cipher: SectorCipher | undefined;

  /** `cipher`: undefined where it is not to be read. */
  constructor(file: ChildIo, start: number, cipher: SectorCipher | undefined) {
    this.events = file;
    this.start = start;
    this.#cipher = cipher;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    out.kind = 'data';
    out.lengthBytes = lengthBytes;
    out.child = this.events;
    out.hostOffset = this.start + offset;
    out.plain = false;
    out.writable = true;
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    this.tryMap(offset, lengthBytes, out);
  }

  async readSpecial(mapping: Mapping, offset: number, buffer: Uint8Array): Promise<void> {
    const place = { child: placeOf(mapping), hostOffset: mapping.hostOffset, vectorOffset: offset };
    await readEncrypted(this.#unlocked(), place, buffer);
  }

  async writeSpecial(child: ChildIo, hostOffset: number, offset: number, buffer: Uint8Array): Promise<void> {
    await writeEncrypted(this.#unlocked(), { child, hostOffset, vectorOffset: offset }, buffer);
  }

  /** Errors: permission, where it was opened only to be looked at. */
  #unlocked(): SectorCipher {
    if (this.#cipher) return this.#cipher;
    throw errnoError('EPERM');
  }

  reserve(): Promise<never> {
    return Promise.reject(new AssertionFailure('encrypted data is always writable in place'));
  }

  /** Nothing but ciphertext reads as zeroes. */
  zeroClusters(): Promise<void> {
    return Promise.reject(errnoError('ENOTSUP'));
  }

  discardClusters(): Promise<void> {
    return Promise.resolve();
  }
}
