import { assert } from '../../base/assert.js';
import { KiB } from '../../base/limits.js';
import type { MapDriver, Reservation } from '../driver.js';
import type { Edge } from '../edge.js';
import type { Node } from '../node.js';
import type { RangeLock } from '../range-lock.js';
import { type Mapping, newMapping } from '../request.js';

/** Most that copyUp reads and writes without a wait; also less than is worth a copy_file_range in the pool. */
export const COPIED_AT_ONCE_BYTES = 256 * KiB;

/**
 * What the parts of a mapped node's data path share: the mapping, what lies below, and the range locks. A request holds
 * its range: shared while it uses a mapping as it is, exclusive (whole clusters) while it changes one.
 */
export class MappedNode {
  readonly node: Node;
  readonly driver: MapDriver;
  readonly ranges: RangeLock;
  /** Reused by the synchronous path, which never interleaves with itself on one node. */
  readonly scratch = newMapping();

  constructor(node: Node, driver: MapDriver, ranges: RangeLock) {
    this.node = node;
    this.driver = driver;
    this.ranges = ranges;
  }

  get backing(): Edge | undefined {
    return this.node.children.get('backing');
  }

  /** Somebody is to hear of each step: none is taken in the forms that tell nobody. */
  get isHeard(): boolean {
    return this.driver.events.isListening;
  }

  announce(event: string): Promise<void> | undefined {
    return this.driver.events.announce(event);
  }

  async map(offset: number, lengthBytes: number, mapping: Mapping): Promise<void> {
    if (!this.driver.tryMap(offset, lengthBytes, mapping))
      await this.driver.map(offset, lengthBytes, mapping);
    assert(
      mapping.lengthBytes > 0 && mapping.lengthBytes <= lengthBytes,
      () => `mapping of ${mapping.lengthBytes} bytes`,
    );
  }

  reserve(offset: number, lengthBytes: number): Reservation | Promise<Reservation> {
    return this.driver.tryReserve?.(offset, lengthBytes) ?? this.driver.reserve(offset, lengthBytes);
  }
}
