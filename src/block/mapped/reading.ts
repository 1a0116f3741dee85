import { defined } from '../../base/assert.js';
import { type Mapping, newMapping, placeOf } from '../request.js';
import type { MappedNode } from './mapped-node.js';

/** Reading through a mapping. */
export class MappedReading {
  readonly #mapped: MappedNode;

  constructor(mapped: MappedNode) {
    this.#mapped = mapped;
  }

  /** The caller has looked at the range locks and the end. */
  tryRead(offset: number, buffer: Uint8Array): boolean {
    const { driver, isHeard, scratch: mapping } = this.#mapped;
    if (isHeard) return false;
    for (let done = 0; done < buffer.length;) {
      if (!driver.tryMap(offset + done, buffer.length - done, mapping)) return false;
      const length = mapping.lengthBytes;
      const part = length === buffer.length ? buffer : buffer.subarray(done, done + length);
      switch (mapping.kind) {
        case 'data':
          if (!mapping.plain || !placeOf(mapping).tryRead(mapping.hostOffset, part)) return false;
          break;
        case 'zero':
          part.fill(0);
          break;
        case 'backing':
          if (!this.#tryReadBacking(offset + done, part)) return false;
          break;
      }
      done += length;
    }
    return true;
  }

  #tryReadBacking(offset: number, buffer: Uint8Array): boolean {
    const { backing } = this.#mapped;
    if (backing && offset < backing.lengthBytes) return backing.tryRead(offset, buffer);
    buffer.fill(0);
    return true;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    const release = await this.#mapped.ranges.lockShared(offset, buffer.length);
    try {
      await this.readLocked(offset, buffer);
    } finally {
      release();
    }
  }

  /** The range is held by the caller. */
  async readLocked(offset: number, buffer: Uint8Array): Promise<void> {
    const mapping = newMapping();
    for (let done = 0; done < buffer.length;) {
      await this.#mapped.map(offset + done, buffer.length - done, mapping);
      const part = buffer.subarray(done, done + mapping.lengthBytes);
      await this.#readMapping(mapping, offset + done, part);
      done += part.length;
    }
  }

  async #readMapping(mapping: Mapping, offset: number, part: Uint8Array): Promise<void> {
    switch (mapping.kind) {
      case 'data':
        return this.#readData(mapping, offset, part);
      case 'zero':
        part.fill(0);
        return;
      case 'backing': {
        const { backing } = this.#mapped;
        if (!backing) {
          part.fill(0);
          return;
        }
        await this.#mapped.announce('read_backing_aio');
        if (!backing.tryRead(offset, part)) await backing.read(offset, part);
      }
    }
  }

  async #readData(mapping: Mapping, offset: number, part: Uint8Array): Promise<void> {
    if (!mapping.plain) {
      const { driver } = this.#mapped;
      return defined(driver.readSpecial?.(mapping, offset, part), 'reader of what is not plain');
    }
    await this.#mapped.announce('read_aio');
    const child = placeOf(mapping);
    if (!child.tryRead(mapping.hostOffset, part)) await child.read(mapping.hostOffset, part);
  }
}
