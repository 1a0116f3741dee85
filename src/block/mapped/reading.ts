import { defined } from '../../base/assert.js';
import { type IoRequest, type Mapping, newMapping, placeOf } from '../request.js';
import type { MappedNode } from './mapped-node.js';
import { ReadingBelow } from './reading-below.js';

/** Reading through a mapping. */
export class MappedReading {
  readonly #mapped: MappedNode;
  readonly #below: ReadingBelow;

  constructor(mapped: MappedNode) {
    this.#mapped = mapped;
    this.#below = new ReadingBelow(mapped);
  }

  /** The caller has looked at the range locks and the end. */
  tryRead(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    const { driver, isHeard, scratch: mapping } = this.#mapped;
    if (isHeard) return false;
    for (let done = 0; done < lengthBytes;) {
      if (!driver.tryMap(offset + done, lengthBytes - done, mapping)) return false;
      const length = mapping.lengthBytes;
      switch (mapping.kind) {
        case 'data': {
          if (!mapping.plain) return false;
          if (!placeOf(mapping).tryReadPart(request, from + done, length, mapping.hostOffset)) return false;
          break;
        }
        case 'zero':
          request.fillZero(from + done, length);
          break;
        case 'backing':
          if (!this.#below.tryRead(request, from + done, length, offset + done)) return false;
          break;
      }
      done += length;
    }
    return true;
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const release = await this.#mapped.ranges.lockShared(offset, lengthBytes, request.signal);
    try {
      request.assertIs(generation);
      request.begin();
      await this.readLocked(request, from, lengthBytes, offset);
    } finally {
      release();
    }
  }

  /** The range is held by the caller. */
  async readLocked(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const mapping = newMapping();
    for (let done = 0; done < lengthBytes;) {
      await this.#mapped.map(offset + done, lengthBytes - done, mapping);
      request.assertIs(generation);
      await this.#readMapping(mapping, request, from + done, offset + done);
      request.assertIs(generation);
      done += mapping.lengthBytes;
    }
  }

  async #readMapping(mapping: Mapping, request: IoRequest, from: number, offset: number): Promise<void> {
    const { kind, lengthBytes } = mapping;
    const { backing } = this.#mapped;
    if (kind === 'data') return this.#readData(mapping, request, from, offset);
    if (kind === 'zero' || !backing) return request.fillZero(from, lengthBytes);
    const { generation } = request;
    await this.#mapped.announce('read_backing_aio');
    request.assertIs(generation);
    await this.#below.read(request, from, lengthBytes, offset);
  }

  async #readData(mapping: Mapping, request: IoRequest, from: number, offset: number): Promise<void> {
    this.#mapped.lookForEnd(offset, mapping);
    if (!mapping.plain) return this.#readSpecial(mapping, request, from, offset);
    const { generation } = request;
    await this.#mapped.announce('read_aio');
    request.assertIs(generation);
    const child = placeOf(mapping);
    const { hostOffset, lengthBytes } = mapping;
    if (!child.tryReadPart(request, from, lengthBytes, hostOffset))
      await child.readPart(request, from, lengthBytes, hostOffset);
  }

  /** Decoders look again at what they have written: never in memory that a guest changes meanwhile. */
  async #readSpecial(mapping: Mapping, request: IoRequest, from: number, offset: number): Promise<void> {
    const { generation } = request;
    const { driver } = this.#mapped;
    const view = request.isStable ? request.view(from, mapping.lengthBytes) : undefined;
    const buffer = view ?? Buffer.allocUnsafe(mapping.lengthBytes);
    await defined(driver.readSpecial?.(mapping, offset, buffer), 'reader of what is not plain');
    request.assertIs(generation);
    if (!view) request.copyFrom(buffer, from);
  }
}
