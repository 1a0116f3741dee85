import { assert } from '../../base/assert.js';
import { checkPlace, tryCheckPlace } from '../layers/check.js';
import { type LayerMap, newPlace, type Place } from '../layers/layer-map.js';
import type { Node } from '../node.js';
import type { IoRequest } from '../request.js';
import type { MappedNode } from './mapped-node.js';

/** Reading what is not in an image itself: of the backing file, or at once of the layer that the merged map tells. */
export class ReadingBelow {
  readonly #mapped: MappedNode;
  /** Of the synchronous path. */
  readonly #scratch = newPlace();

  constructor(mapped: MappedNode) {
    this.#mapped = mapped;
  }

  tryRead(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    const { backing, layerMap } = this.#mapped;
    if (!backing || offset >= backing.lengthBytes) {
      request.fillZero(from, lengthBytes);
      return true;
    }
    if (!layerMap) return backing.tryReadPart(request, from, lengthBytes, offset);
    const place = this.#scratch;
    for (let done = 0; done < lengthBytes; done += place.lengthBytes) {
      const at = offset + done;
      if (!layerMap.tryFind(at, lengthBytes - done, place)) return false;
      if (layerMap.isChecked && !tryCheckPlace(layerMap, place, at)) return false;
      if (!tryReadPlace(layerMap, place, request, from + done, at)) return false;
    }
    return true;
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    for (let done = 0; done < lengthBytes;) {
      const { backing, layerMap } = this.#mapped;
      const at = offset + done;
      if (!backing || at >= backing.lengthBytes) return request.fillZero(from + done, lengthBytes - done);
      if (!layerMap) return this.#readBacking(request, from + done, lengthBytes - done, at);
      done += await this.#readFirst(layerMap, request, from + done, lengthBytes - done, at);
      request.assertIs(generation);
    }
  }

  async #readBacking(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { backing } = this.#mapped;
    assert(backing, 'what is in the backing file has one');
    if (!backing.tryReadPart(request, from, lengthBytes, offset))
      await backing.readPart(request, from, lengthBytes, offset);
  }

  /** Reads a first part; answers its length, 0 when it is to be looked for again. */
  async #readFirst(
    map: LayerMap,
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
  ): Promise<number> {
    const place = newPlace();
    const { generation } = request;
    if (!map.tryFind(offset, lengthBytes, place)) {
      await map.learn(offset);
      request.assertIs(generation);
      if (map.isGone || !map.tryFind(offset, lengthBytes, place)) return 0;
    }
    if (map.isChecked) {
      await checkPlace(map, place, offset, lengthBytes);
      request.assertIs(generation);
      if (map.isGone || !map.tryFind(offset, lengthBytes, place)) return 0;
    }
    if (tryReadPlace(map, place, request, from, offset)) return place.lengthBytes;
    const node = nodeOf(map, place);
    if (place.kind === 'ask') await node.io.read(request, from, place.lengthBytes, offset);
    else if (!(await readHeld(map, node, place, request, from, offset))) return 0;
    return place.lengthBytes;
  }
}

function nodeOf(map: LayerMap, { layer }: Place): Node {
  const node = map.layers[layer];
  assert(node, 'a place is in a layer');
  return node;
}

function tryReadPlace(
  map: LayerMap,
  place: Place,
  request: IoRequest,
  from: number,
  offset: number,
): boolean {
  const { kind, lengthBytes, child, hostOffset } = place;
  if (kind === 'zero' || kind === 'nothing') {
    request.fillZero(from, lengthBytes);
    return true;
  }
  const { io } = nodeOf(map, place);
  if (kind === 'ask') return io.tryRead(request, from, lengthBytes, offset);
  if (!child || !io.isFreeToRead(offset, lengthBytes)) return false;
  return child.tryReadPart(request, from, lengthBytes, hostOffset);
}

/** Reads data with its range held in its layer; false: it is not there any more. */
async function readHeld(
  map: LayerMap,
  node: Node,
  { lengthBytes, child, hostOffset }: Place,
  request: IoRequest,
  from: number,
  offset: number,
): Promise<boolean> {
  const { generation } = request;
  const release = await node.io.ranges.lockShared(offset, lengthBytes, request.signal);
  try {
    request.assertIs(generation);
    // While this waited, the layer may have changed.
    const now = newPlace();
    if (map.isGone || !map.tryFind(offset, lengthBytes, now)) return false;
    const isThere = now.kind === 'data' && now.hostOffset === hostOffset && now.child === child;
    if (!isThere || now.lengthBytes < lengthBytes || !child) return false;
    node.io.lookForPlainEnd(offset, now);
    if (!child.tryReadPart(request, from, lengthBytes, hostOffset))
      await child.readPart(request, from, lengthBytes, hostOffset);
    return true;
  } finally {
    release();
  }
}
