import { newMapping, placeOf } from '../request.js';
import type { MappedNode } from './mapped-node.js';

/** Space and length asked for ahead of writes; see ChildIo. */
export class MappedSpace {
  readonly #mapped: MappedNode;

  constructor(mapped: MappedNode) {
    this.#mapped = mapped;
  }

  /** As far as the mapping is one of bytes in a file; elsewhere space is found at the write. */
  async allocate(offset: number, lengthBytes: number): Promise<void> {
    const mapping = newMapping();
    for (let done = 0; done < lengthBytes; done += mapping.lengthBytes) {
      await this.#mapped.map(offset + done, lengthBytes - done, mapping);
      if (mapping.kind === 'data' && mapping.writable)
        await placeOf(mapping).allocate(mapping.hostOffset, mapping.lengthBytes);
    }
  }

  tryAllocate(offset: number, lengthBytes: number): boolean {
    const { driver, scratch: mapping } = this.#mapped;
    if (driver.clusterBytes !== 1 || !driver.tryMap(offset, lengthBytes, mapping)) return false;
    return placeOf(mapping).tryAllocate(mapping.hostOffset, mapping.lengthBytes);
  }

  /** Only a driver without clusters has its end where the file has it. */
  async extend(lengthBytes: number): Promise<void> {
    if (this.#mapped.driver.clusterBytes !== 1) return;
    const mapping = newMapping();
    await this.#mapped.map(0, lengthBytes, mapping);
    await placeOf(mapping).extend(mapping.hostOffset + lengthBytes);
  }

  tryExtend(lengthBytes: number): boolean {
    const { driver, scratch: mapping } = this.#mapped;
    if (driver.clusterBytes !== 1 || !driver.tryMap(0, lengthBytes, mapping)) return false;
    return placeOf(mapping).tryExtend(mapping.hostOffset + lengthBytes);
  }
}
