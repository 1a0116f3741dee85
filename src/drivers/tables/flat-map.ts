import { AssertionFailure } from '../../base/assert.js';
import type { ChildIo, MapDriver } from '../../block/driver.js';
import { type Mapping } from '../../block/request.js';

/** A disk that lies as it is in a file, `start` further on. */
export class FlatMap implements MapDriver {
  readonly clusterBytes = 512;
  readonly unitBytes = 512;
  readonly isPreallocated = true;
  readonly isMappingDurable = true;
  readonly events: ChildIo;

  readonly #start: number;

  constructor(file: ChildIo, start = 0) {
    this.events = file;
    this.#start = start;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    out.kind = 'data';
    out.lengthBytes = lengthBytes;
    out.child = this.events;
    out.hostOffset = this.#start + offset;
    out.plain = true;
    out.writable = true;
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    this.tryMap(offset, lengthBytes, out);
  }

  reserve(): Promise<never> {
    return Promise.reject(new AssertionFailure('flat data is always writable in place'));
  }

  async zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void> {
    await this.events.writeZeroes(this.#start + offset, lengthBytes, flags);
  }

  discardClusters(offset: number, lengthBytes: number): Promise<void> {
    return this.events.discard(this.#start + offset, lengthBytes);
  }
}
