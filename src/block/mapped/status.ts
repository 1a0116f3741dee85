import { defined } from '../../base/assert.js';
import type { ChildIo } from '../driver.js';
import type { Edge } from '../edge.js';
import { newPlace } from '../layers/layer-map.js';
import type { Located } from '../located.js';
import type { Release } from '../range-lock.js';
import { type BlockStatus, type Mapping, newMapping, placeOf } from '../request.js';
import type { MappedNode } from './mapped-node.js';

/** Of a file without holes in its data, so many clusters may have less space than their size: tables hardly used. */
const METADATA_CLUSTERS = 16;

/** What a mapping tells of content without reading it: block status, and where plain bytes are. */
export class MappedStatus {
  readonly #mapped: MappedNode;
  /** Children that have less space than their length: preallocated, or with many holes. */
  readonly #sparse = new Map<ChildIo, boolean>();
  /** Raw has none; of data the driver knows then no more than that it is in the file. */
  readonly #hasClusters: boolean;

  constructor(mapped: MappedNode) {
    this.#mapped = mapped;
    this.#hasClusters = mapped.driver.clusterBytes > 1;
  }

  /**
   * Status now if no wait is needed. Without clusters of its own (raw) the driver knows nothing of holes, so the file
   * says, later. Where there are clusters, data is what the tables call so, unless the file is much smaller than it is
   * long: asking it about each would cost more than it tells.
   */
  tryStatus(offset: number, lengthBytes: number): BlockStatus | undefined {
    const { driver, scratch: mapping } = this.#mapped;
    if (!this.#hasClusters || !driver.tryMap(offset, lengthBytes, mapping)) return undefined;
    if (this.#isHoled(mapping, offset)) return undefined;
    this.#mapped.lookForEnd(offset, mapping);
    return this.#statusOf(mapping);
  }

  /** Plain data, of which the child may know that it is zero. */
  #isHoled(mapping: Mapping, offset: number): boolean {
    if (mapping.kind !== 'data' || !mapping.plain) return false;
    return this.#mapped.driver.isPreallocated === true || this.#isSparse(placeOf(mapping), offset);
  }

  /** Looked at when a look through the image begins. */
  #isSparse(child: ChildIo, offset: number): boolean {
    const known = offset > 0 ? this.#sparse.get(child) : undefined;
    if (known !== undefined) return known;
    const allocated = child.allocatedBytes();
    const slack = Math.max(METADATA_CLUSTERS * this.#mapped.driver.clusterBytes, (allocated ?? 0) / 9);
    const isSparse = allocated !== undefined && child.lengthBytes > allocated + slack;
    if (offset === 0) this.#sparse.clear();
    this.#sparse.set(child, isSparse);
    return isSparse;
  }

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    const mapping = newMapping();
    await this.#mapped.map(offset, lengthBytes, mapping);
    this.#mapped.lookForEnd(offset, mapping);
    const status = this.#statusOf(mapping);
    const hasClusters = this.#hasClusters;
    if (mapping.kind !== 'data' || !mapping.plain) return status;
    if (hasClusters && !this.#isHoled(mapping, offset)) return status;
    const child = placeOf(mapping);
    const inside = Math.min(mapping.lengthBytes, child.lengthBytes - mapping.hostOffset);
    if (inside <= 0) return { ...status, zero: true, data: hasClusters };
    const { lengthBytes: length, zero, data, hostOffset } = await child.status(mapping.hostOffset, inside);
    // Clusters are there, even where the file has none of their bytes yet.
    if (hasClusters) return { ...status, lengthBytes: length, zero };
    // Also where the bytes are is for the file to say: an export knows no place beyond its end.
    const host = hostOffset === undefined ? {} : { hostOffset, hostChild: child };
    return { lengthBytes: length, allocated: true, zero, data, ...host };
  }

  #statusOf(mapping: Mapping): BlockStatus {
    const { lengthBytes, kind } = mapping;
    if (kind === 'backing') {
      const zero = !this.#mapped.node.children.has('backing');
      return { lengthBytes, allocated: false, zero, data: false };
    }
    const status = { lengthBytes, allocated: true, zero: kind === 'zero', data: kind === 'data' };
    return withHost(status, mapping);
  }

  /**
   * For offload: the first stretch at `offset`, its range held (shared) until release() when it is plain. `wanted`: told when
   * somebody waits for that, maybe before this answers.
   */
  async locate(offset: number, lengthBytes: number, wanted: () => void = () => undefined): Promise<Located> {
    const release = await this.#mapped.ranges.lockUntilWanted(offset, lengthBytes, wanted);
    const mapping = newMapping();
    let located: Located = { kind: 'other', lengthBytes };
    try {
      await this.#mapped.map(offset, lengthBytes, mapping);
      this.#mapped.lookForEnd(offset, mapping);
      located = await this.#locateMapping(mapping, offset, wanted);
      if (located.kind === 'plain') located = heldUntilReleased(located, release);
      return located;
    } finally {
      if (located.kind !== 'plain') release();
    }
  }

  /** At once in the layer that the merged map tells, where there is one. */
  async #locateBelow(
    backing: Edge,
    offset: number,
    lengthBytes: number,
    wanted: () => void,
  ): Promise<Located> {
    const { layerMap } = this.#mapped;
    if (!layerMap) return backing.locate(offset, lengthBytes, wanted);
    await layerMap.learn(offset);
    const place = newPlace();
    if (layerMap.isGone || !layerMap.tryFind(offset, lengthBytes, place))
      return backing.locate(offset, lengthBytes, wanted);
    const { kind, layer, lengthBytes: length } = place;
    if (kind === 'zero' || kind === 'nothing') return { kind: 'zero', lengthBytes: length };
    const node = defined(layerMap.layers[layer], 'layer of a merged map');
    const inside = Math.min(length, node.lengthBytes - offset);
    return inside > 0 ? node.io.locate(offset, inside, wanted) : { kind: 'zero', lengthBytes: length };
  }

  async #locateMapping(mapping: Mapping, offset: number, wanted: () => void): Promise<Located> {
    const { lengthBytes } = mapping;
    switch (mapping.kind) {
      case 'data': {
        // What is compressed has no place of its own.
        if (!mapping.plain) return { kind: 'other', lengthBytes };
        const child = placeOf(mapping);
        // Whoever listens is to hear of the read.
        const isOpen = !child.isListening && !this.#mapped.isHeard;
        return isOpen
          ? child.locate(mapping.hostOffset, lengthBytes, wanted)
          : { kind: 'other', lengthBytes };
      }
      case 'zero':
        return { kind: 'zero', lengthBytes };
      case 'backing': {
        const { backing } = this.#mapped;
        const inside = backing ? Math.min(lengthBytes, backing.lengthBytes - offset) : 0;
        if (!backing || inside <= 0) return { kind: 'zero', lengthBytes };
        return this.#locateBelow(backing, offset, inside, wanted);
      }
    }
  }
}

function withHost(status: BlockStatus, { child, hostOffset, plain }: Mapping): BlockStatus {
  if (child && plain) {
    status.hostOffset = hostOffset;
    status.hostChild = child;
  }
  return status;
}

function heldUntilReleased(located: Extract<Located, { kind: 'plain' }>, release: Release): Located {
  const below = located.release;
  return {
    ...located,
    release: () => {
      below();
      release();
    },
  };
}
