import { assert } from '../../base/assert.js';
import { newMapping } from '../request.js';
import { type LayerMap, newPlace, type Place } from './layer-map.js';

/** Times that tables are brought into memory for a comparison, which others may drive out. */
const MOST_TRIES = 20;

/**
 * Asserts that a place is the one that asking the layers in turn gives. False: their tables are not all in memory. What is
 * being changed right now is not compared.
 */
export function tryCheckPlace(map: LayerMap, place: Place, offset: number): boolean {
  const mapping = newMapping();
  for (let layer = 0; layer <= place.layer; layer++) {
    const node = map.layers[layer];
    assert(node, 'a place is in a layer');
    const isOwner = layer === place.layer;
    if (isOwner && place.kind === 'ask') return true;
    if (!node.io.isFreeToRead(offset, place.lengthBytes)) return true;
    const hasAll = offset + place.lengthBytes <= node.lengthBytes;
    assert(hasAll, () => `merged map: layer ${layer}, '${node.name}', ends before ${offset} is over`);
    for (let at = offset; at < offset + place.lengthBytes; at += mapping.lengthBytes) {
      if (!node.io.tryMap(at, offset + place.lengthBytes - at, mapping)) return false;
      const is = `${mapping.kind} in layer ${layer}, '${node.name}'`;
      const says = (): string => `merged map: ${place.kind} in layer ${place.layer}, but ${is}, at ${at}`;
      if (!isOwner || place.kind === 'nothing') assert(mapping.kind === 'backing', says);
      else assert(mapping.kind === place.kind, says);
      if (isOwner && place.kind === 'data')
        assert(
          mapping.child === place.child && mapping.hostOffset === place.hostOffset + (at - offset),
          () => `${says()}: ${place.hostOffset} and ${mapping.hostOffset}`,
        );
    }
  }
  return true;
}

/** The same after what it needs is loaded. */
export async function checkPlace(
  map: LayerMap,
  place: Place,
  offset: number,
  lengthBytes: number,
): Promise<void> {
  for (let tries = 0; tries < MOST_TRIES; tries++) {
    if (map.isGone || !map.tryFind(offset, lengthBytes, place) || tryCheckPlace(map, place, offset)) return;
    const now = newPlace();
    Object.assign(now, place);
    for (let layer = 0; layer <= now.layer; layer++)
      await map.layers[layer]?.io.loadMap(offset, now.lengthBytes);
  }
}
