import { defined } from '../base/assert.js';
import { MiB } from '../base/limits.js';
import { checkPlace, tryCheckPlace } from './layers/check.js';
import { type LayerMap, newPlace } from './layers/layer-map.js';
import type { Node } from './node.js';
import type { BlockStatus } from './request.js';

/** How far a status through a chain looks at first. */
const FIRST_LOOK_BYTES = 4 * MiB;

/** Status of a stretch as the whole chain below a node makes it. */
export interface ChainStatus extends BlockStatus {
  /** 0: this node's own layer decides; 1: its backing file ... Filters do not count. */
  depth: number;
  /** The node of that layer. */
  node: Node;
}

/** See Node.statusThroughChain. */
export function statusThroughChain(
  top: Node,
  offset: number,
  lengthBytes: number,
  last: Node | undefined,
): ChainStatus | Promise<ChainStatus> {
  const status = tryStatusThroughChain(top, offset, lengthBytes, last);
  const isWhole =
    status && (status.data || status.lengthBytes < FIRST_LOOK_BYTES || status.lengthBytes === lengthBytes);
  return isWhole ? status : lookOn(top, offset, lengthBytes, last, status);
}

async function lookOn(
  top: Node,
  offset: number,
  lengthBytes: number,
  last: Node | undefined,
  first: ChainStatus | undefined,
): Promise<ChainStatus> {
  // Layer by layer a long stretch would be looked through in each, only for a short answer: so begin with a short
  // one, and go on while it is all alike.
  let piece = FIRST_LOOK_BYTES;
  const status = first ?? (await new Look(top, offset, Math.min(lengthBytes, piece), last).finish());
  let goesOn = status.lengthBytes === piece && !status.data;
  while (goesOn && status.lengthBytes < lengthBytes) {
    piece = Math.min(4 * piece, lengthBytes - status.lengthBytes);
    const next = await new Look(top, offset + status.lengthBytes, piece, last).finish();
    const { node, allocated, zero, data } = next;
    if (node !== status.node || allocated !== status.allocated || zero !== status.zero || data) break;
    status.lengthBytes += next.lengthBytes;
    goesOn = next.lengthBytes === piece;
  }
  return status;
}

/** See Node.tryStatusThroughChain. */
export function tryStatusThroughChain(
  top: Node,
  offset: number,
  lengthBytes: number,
  last: Node | undefined,
): ChainStatus | undefined {
  return new Look(top, offset, Math.min(lengthBytes, FIRST_LOOK_BYTES), last).now();
}

/** One look down a chain, from layer to layer until one decides. */
class Look {
  readonly #offset: number;
  readonly #end: Node | undefined;
  #at: Node;
  #most: number;
  #depth = 0;
  #answer: ChainStatus | undefined;
  /** The merged map that says where to go on. */
  #toLearn: LayerMap | undefined;

  constructor(top: Node, offset: number, lengthBytes: number, last: Node | undefined) {
    this.#offset = offset;
    this.#end = last?.skipFilters();
    this.#at = top.skipFilters();
    this.#most = lengthBytes;
    this.#checkEnd();
  }

  /** As far as no wait is needed; undefined: not to the end. */
  now(): ChainStatus | undefined {
    while (!this.#answer) {
      if (this.#toLearn) {
        if (!this.#follow(this.#toLearn)) return undefined;
        continue;
      }
      const status = this.#at.io.tryStatus(this.#offset, this.#most);
      if (!status) return undefined;
      this.#take(status);
    }
    return this.#answer;
  }

  async finish(): Promise<ChainStatus> {
    for (;;) {
      const answer = this.now();
      if (answer) return answer;
      if (this.#toLearn) {
        await this.#learn(this.#toLearn);
        continue;
      }
      this.#take(await this.#at.io.status(this.#offset, this.#most));
    }
  }

  async #learn(map: LayerMap): Promise<void> {
    await map.learn(this.#offset);
    if (map.isChecked) await checkPlace(map, newPlace(), this.#offset, this.#most);
    if (!map.isGone) return;
    this.#toLearn = undefined;
    const below = this.#at.backingNode();
    if (below) this.#goTo(below, 1);
    else this.#decide(false, true);
  }

  #take(status: BlockStatus): void {
    if (status.allocated) {
      const { lengthBytes, allocated, zero, data, hostOffset, hostChild } = status;
      this.#answer = { lengthBytes, allocated, zero, data, depth: this.#depth, node: this.#at };
      if (hostOffset !== undefined) this.#answer.hostOffset = hostOffset;
      if (hostChild !== undefined) this.#answer.hostChild = hostChild;
      return;
    }
    this.#most = status.lengthBytes;
    const below = this.#at.backingNode();
    if (!below || this.#at === this.#end) return this.#decide(false, !below);
    // A shorter backing file: beyond its end this layer reads as zeroes.
    if (this.#offset < below.lengthBytes) this.#most = Math.min(this.#most, below.lengthBytes - this.#offset);
    const { layerMap } = this.#at.io;
    if (layerMap && this.#offset < below.lengthBytes) this.#toLearn = layerMap;
    else this.#goTo(below, 1);
  }

  /** Goes on where the merged map says; false: it does not know, and is to learn. */
  #follow(map: LayerMap): boolean {
    const place = newPlace();
    if (!map.tryFind(this.#offset, this.#most, place)) return false;
    if (map.isChecked && !tryCheckPlace(map, place, this.#offset)) return false;
    this.#toLearn = undefined;
    this.#most = place.lengthBytes;
    const end = this.#end ? map.placeOf(this.#end) : -1;
    if (end >= 0 && (end < place.layer || (end === place.layer && place.kind === 'nothing'))) {
      this.#decideAt(map, end);
    } else if (place.kind === 'nothing') this.#decideAt(map, place.layer);
    else this.#goTo(nodeAt(map, place.layer), place.layer + 1);
    return true;
  }

  /** None of the layers down to that one has it. */
  #decideAt(map: LayerMap, layer: number): void {
    this.#at = nodeAt(map, layer);
    this.#depth += layer + 1;
    this.#decide(false, !this.#at.backingNode());
  }

  #goTo(node: Node, depth: number): void {
    this.#at = node;
    this.#depth += depth;
    this.#checkEnd();
  }

  #checkEnd(): void {
    if (this.#offset >= this.#at.lengthBytes) this.#decide(true, true);
  }

  #decide(allocated: boolean, zero: boolean): void {
    this.#answer = {
      lengthBytes: this.#most,
      allocated,
      zero,
      data: false,
      depth: this.#depth,
      node: this.#at,
    };
  }
}

function nodeAt(map: LayerMap, layer: number): Node {
  return defined(map.layers[layer], 'layer of a merged map').skipFilters();
}
