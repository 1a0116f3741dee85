import { alignDown } from '../../base/align.js';
import { assert } from '../../base/assert.js';
import { KiB } from '../../base/limits.js';
import type { MapDriver, Reservation } from '../driver.js';
import type { Edge } from '../edge.js';
import type { LayerMap, Place } from '../layers/layer-map.js';
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

  #layerMap: LayerMap | undefined;
  /** The shape of the graph for which it was looked up. */
  #shape = -1;

  constructor(node: Node, driver: MapDriver, ranges: RangeLock) {
    this.node = node;
    this.driver = driver;
    this.ranges = ranges;
  }

  get backing(): Edge | undefined {
    return this.node.children.get('backing');
  }

  /** The merged map of the images below, where there are many. */
  get layerMap(): LayerMap | undefined {
    const { layerMaps } = this.node;
    if (!layerMaps) return undefined;
    if (layerMaps.shape !== this.#shape || this.#layerMap?.isGone === true) {
      this.#shape = layerMaps.shape;
      this.#layerMap = layerMaps.of(this.node, this.#layerMap);
    }
    return this.#layerMap;
  }

  forgetLayers(): void {
    if (this.#layerMap) this.node.layerMaps?.drop(this.#layerMap);
    this.#layerMap = undefined;
  }

  link(reservation: Reservation): void {
    reservation.link();
    this.changed(reservation.offset, reservation.lengthBytes);
  }

  /** See MapDriver. */
  async zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void> {
    try {
      await this.driver.zeroClusters(offset, lengthBytes, flags);
    } finally {
      this.changed(offset, lengthBytes);
    }
  }

  /** What the image has of a range is something else now, or may be. */
  changed(offset: number, lengthBytes: number): void {
    this.node.layerMaps?.changed(this.node, offset, lengthBytes);
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

  /** See MapDriver.mapAll. */
  async mapAll(
    offset: number,
    lengthBytes: number,
    tell: (offset: number, mapping: Mapping) => void,
  ): Promise<boolean> {
    if (this.driver.mapAll) return this.driver.mapAll(offset, lengthBytes, tell);
    const mapping = newMapping();
    for (let done = 0; done < lengthBytes; done += mapping.lengthBytes) {
      await this.map(offset + done, lengthBytes - done, mapping);
      if (mapping.kind !== 'backing') tell(offset + done, mapping);
    }
    return true;
  }

  /** Tells of data that begins behind the end of its file. A last cluster may be there in part: the rest is zeroes. */
  lookForEnd(offset: number, mapping: Mapping): void {
    const { kind, child, hostOffset, plain } = mapping;
    if (kind !== 'data' || !child) return;
    if (plain) this.lookForPlainEnd(offset, mapping);
    // What is compressed has another length there.
    else if (hostOffset >= child.lengthBytes) child.tellCutOff();
  }

  /** The same of data that is known to be plain. */
  lookForPlainEnd(offset: number, { child, hostOffset, lengthBytes }: Mapping | Place): void {
    const { clusterBytes } = this.driver;
    if (!child || clusterBytes === 1 || hostOffset + lengthBytes <= child.lengthBytes) return;
    const within = offset % clusterBytes;
    const last = hostOffset - within + alignDown(within + lengthBytes - 1, clusterBytes);
    if (last >= child.lengthBytes) child.tellCutOff();
  }

  reserve(offset: number, lengthBytes: number): Reservation | Promise<Reservation> {
    return this.driver.tryReserve?.(offset, lengthBytes) ?? this.driver.reserve(offset, lengthBytes);
  }
}
