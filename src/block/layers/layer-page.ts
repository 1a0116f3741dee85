import { assert } from '../../base/assert.js';

/** Granules that a page tells of: as many as a qcow2 table of 64 KiB does. */
export const PAGE_GRANULES = 8192;
/** What a page takes. */
export const PAGE_BYTES = PAGE_GRANULES * (Uint16Array.BYTES_PER_ELEMENT + Uint32Array.BYTES_PER_ELEMENT);

/** Owner of a granule that none of the layers looked at has. */
export const NOBODY = 0xffff;
/** Places of a granule that are none: its owner is to say, or it reads as zeroes. */
export const ASK = 0xffffffff;
export const ZEROES = 0xfffffffe;

/** One look at a layer, which reads its tables. */
export interface Step {
  readonly layer: number;
  /** What it finds is not to be believed: the layer, or the order of layers, has changed meanwhile. */
  isSpoiled: boolean;
  readonly done: Promise<void>;
}

/**
 * For a stretch of the disk, which layer decides each granule, as far as the layers have been looked at. Sound at any
 * time: no layer above a granule's owner has anything of it, and none above `depth` of those that nobody owns.
 */
export class LayerPage {
  readonly index: number;
  readonly owners = new Uint16Array(PAGE_GRANULES).fill(NOBODY);
  /** In granules, in the owner's file with data; or ASK, ZEROES. */
  readonly places = new Uint32Array(PAGE_GRANULES);
  /** Layers above this one have been looked at. */
  depth = 0;
  step: Step | undefined;
  /** Who learns of it now: it stays. */
  learners = 0;

  constructor(index: number) {
    this.index = index;
  }

  owner(granule: number): number {
    return this.owners[granule] ?? NOBODY;
  }

  place(granule: number): number {
    return this.places[granule] ?? ASK;
  }

  /** Of what nobody owns yet. */
  claim(granule: number, layer: number, place: number): void {
    if (this.owners[granule] !== NOBODY) return;
    this.owners[granule] = layer;
    this.places[granule] = place;
  }

  /** What a map of all layers but the first knows of the same stretch; the first has been looked at. */
  inherit(known: LayerPage): void {
    assert(this.depth === 1, 'of the layers below the first nothing is known yet');
    for (let granule = 0; granule < PAGE_GRANULES; granule++) {
      const owner = known.owner(granule);
      if (owner !== NOBODY) this.claim(granule, owner + 1, known.place(granule));
    }
    this.depth = known.depth + 1;
  }

  /** All that nobody owns yet is the layer's to tell. */
  claimRest(layer: number): void {
    for (let granule = 0; granule < PAGE_GRANULES; granule++) this.claim(granule, layer, ASK);
  }

  /** The layer has something of granules [from, end), or had and has not: it is to be asked, where none above it has them. */
  changed(layer: number, from: number, end: number): void {
    if (this.step?.layer === layer) this.step.isSpoiled = true;
    const isLooked = this.depth > layer;
    for (let granule = from; granule < end; granule++) {
      const owner = this.owner(granule);
      if (owner < layer || (owner === NOBODY && !isLooked)) continue;
      this.owners[granule] = layer;
      this.places[granule] = ASK;
    }
  }

  /** Layers have gone: `places` are the new ones of those that are left, -1 of the others. */
  renumber(places: Int16Array): void {
    if (this.step) this.step.isSpoiled = true;
    let depth = 0;
    for (let layer = 0; layer < this.depth; layer++) if ((places[layer] ?? -1) >= 0) depth++;
    this.depth = depth;
    for (let granule = 0; granule < PAGE_GRANULES; granule++) {
      const owner = this.owner(granule);
      if (owner === NOBODY) continue;
      const now = places[owner];
      assert(now !== undefined, 'an owner is a layer');
      if (now >= 0) {
        this.owners[granule] = now;
        continue;
      }
      // Those above it that are left have nothing of it; the first below it may.
      const next = firstLeft(places, owner);
      this.owners[granule] = next === undefined ? NOBODY : next;
      this.places[granule] = ASK;
    }
  }
}

/** The new place of the first layer below `layer` that is left. */
function firstLeft(places: Int16Array, layer: number): number | undefined {
  for (let at = layer + 1; at < places.length; at++) {
    const place = places[at];
    if (place !== undefined && place >= 0) return place;
  }
  return undefined;
}
