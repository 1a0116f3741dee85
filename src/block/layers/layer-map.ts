import { assert } from '../../base/assert.js';
import { KiB, MiB } from '../../base/limits.js';
import type { ChildIo } from '../driver.js';
import type { Node } from '../node.js';
import type { Mapping } from '../request.js';
import type { LayerMaps } from './layer-maps.js';
import type { listLayers } from './shape.js';
import { ASK, LayerPage, NOBODY, PAGE_GRANULES, type Step, ZEROES } from './layer-page.js';

/** What is smaller in a layer is not told apart: the layer is asked. */
const LEAST_GRANULE_BYTES = 4 * KiB;
const MOST_GRANULE_BYTES = 2 * MiB;
/** After so many layers without a wait others get their turn. */
const LAYERS_A_TURN = 32;

/** Where a stretch is. */
export interface Place {
  /**
   * ask: the layer's node decides. data: at hostOffset of `child`, whose bytes are the disk's. zero: reads as zeroes.
   * nothing: no layer has it.
   */
  kind: 'ask' | 'data' | 'zero' | 'nothing';
  /** Its place among the layers, 0 for the first; for nothing the last. */
  layer: number;
  lengthBytes: number;
  child: ChildIo | undefined;
  hostOffset: number;
}

export function newPlace(): Place {
  return { kind: 'nothing', layer: 0, lengthBytes: 0, child: undefined, hostOffset: -1 };
}

/**
 * The merged map of the images below one node: which of them decides each granule, and where in its file. It is learned page
 * by page from the layers' tables when somebody reads there, no deeper than that read needs, and is right whatever they do
 * meanwhile: what changes a layer's mapping says so (changed), and what changes the graph makes it compare its
 * layers (follow).
 */
export class LayerMap {
  readonly granuleBytes: number;
  /** Above the layers. */
  readonly top: Node;
  layers: readonly Node[];
  /** Given up: the layers are asked in turn, or another map is. */
  isGone = false;
  readonly #maps: LayerMaps;
  readonly #pages = new Map<number, LayerPage>();
  #lastPage: LayerPage | undefined;
  #places: Map<Node, number>;
  /** Nothing is below the last layer, which may be looked through. */
  readonly #isWhole: boolean;
  /** Layers that may be looked through: all, or all but the last. */
  #lookableCount: number;
  /** Of each layer, the child that has its data; learned with it. */
  #children: Array<ChildIo | undefined> = [];
  #looks = 0;

  constructor(maps: LayerMaps, top: Node, { layers, isWhole }: ReturnType<typeof listLayers>) {
    this.#maps = maps;
    this.top = top;
    this.layers = layers;
    this.#isWhole = isWhole;
    this.#places = placesOf(layers);
    let unit = MOST_GRANULE_BYTES;
    this.#lookableCount = isWhole ? layers.length : layers.length - 1;
    for (const { io } of layers.slice(0, this.#lookableCount)) unit = Math.min(unit, io.unitBytes ?? unit);
    this.granuleBytes = Math.max(LEAST_GRANULE_BYTES, unit);
  }

  /** Where all of the disk has been read. */
  get pageCount(): number {
    const lengthBytes = Math.max(...this.layers.map((node) => node.lengthBytes));
    return Math.ceil(lengthBytes / this.granuleBytes / PAGE_GRANULES);
  }

  get isChecked(): boolean {
    return this.#maps.settings.isChecked;
  }

  /** The place of a node among the layers, or -1. */
  placeOf(node: Node): number {
    return this.#places.get(node) ?? -1;
  }

  /** Goes on with these layers if they are what it has, or a part of it; else it is of no use. */
  follow(layers: readonly Node[], isWhole: boolean): boolean {
    if (isWhole !== this.#isWhole) return false;
    const old = this.layers;
    if (layers.length === old.length && layers.every((node, i) => node === old[i])) return true;
    const places = new Int16Array(old.length).fill(-1);
    let next = 0;
    for (const [i, node] of old.entries()) if (node === layers[next]) places[i] = next++;
    // One who must be asked stays the last.
    if (next < layers.length || (!isWhole && layers.at(-1) !== old.at(-1))) return false;
    for (const page of this.#pages.values()) page.renumber(places);
    const children = this.#children;
    this.#children = [];
    for (const [i, place] of places.entries()) if (place >= 0) this.#children[place] = children[i];
    this.layers = layers;
    this.#lookableCount = isWhole ? layers.length : layers.length - 1;
    this.#places = placesOf(layers);
    return true;
  }

  /** Ends; answers its pages. */
  leave(): Iterable<LayerPage> {
    this.isGone = true;
    this.#lastPage = undefined;
    const pages = [...this.#pages.values()];
    for (const { step } of pages) if (step) step.isSpoiled = true;
    this.#pages.clear();
    return pages;
  }

  forget(page: LayerPage): void {
    this.#pages.delete(page.index);
    if (this.#lastPage === page) this.#lastPage = undefined;
  }

  changed(node: Node, offset: number, lengthBytes: number): void {
    const layer = this.placeOf(node);
    if (layer < 0) return;
    // Another file may have its data.
    if (offset === 0 && lengthBytes === Infinity) this.#children[layer] = undefined;
    const granule = this.granuleBytes;
    const from = Math.floor(offset / granule);
    const end = Math.ceil((offset + lengthBytes) / granule);
    for (const page of this.#pages.values()) {
      const start = page.index * PAGE_GRANULES;
      const first = Math.max(from - start, 0);
      const stop = Math.min(end - start, PAGE_GRANULES);
      if (first < stop) page.changed(layer, first, stop);
    }
  }

  /** Where the first stretch at offset is; false: it must be learned (learn). Makes nothing. */
  tryFind(offset: number, lengthBytes: number, out: Place): boolean {
    const granule = this.granuleBytes;
    const page = this.#page(Math.floor(offset / granule / PAGE_GRANULES));
    if (!page) return false;
    const pageStart = page.index * PAGE_GRANULES * granule;
    const first = Math.floor((offset - pageStart) / granule);
    const end = Math.min(PAGE_GRANULES, Math.ceil((offset + lengthBytes - pageStart) / granule));
    const owner = page.owner(first);
    if (owner === NOBODY && page.depth < this.#lookableCount) return false;
    const place = page.place(first);
    let next = first + 1;
    const hasPlace = owner !== NOBODY && place !== ASK && place !== ZEROES;
    while (next < end && page.owner(next) === owner) {
      if (owner !== NOBODY && page.place(next) !== (hasPlace ? place + (next - first) : place)) break;
      next++;
    }
    out.lengthBytes = Math.min(lengthBytes, pageStart + next * granule - offset);
    this.#fill(out, owner, place, offset - pageStart - first * granule);
    return true;
  }

  #fill(out: Place, owner: number, place: number, within: number): void {
    const hasPlace = owner !== NOBODY && place !== ASK && place !== ZEROES;
    out.child = hasPlace ? this.#children[owner] : undefined;
    out.hostOffset = hasPlace ? place * this.granuleBytes + within : -1;
    if (owner === NOBODY) {
      out.kind = this.#isWhole ? 'nothing' : 'ask';
      out.layer = this.layers.length - 1;
      return;
    }
    out.layer = owner;
    if (hasPlace) out.kind = 'data';
    else out.kind = place === ZEROES ? 'zero' : 'ask';
  }

  #page(index: number): LayerPage | undefined {
    const last = this.#lastPage;
    if (last?.index === index) return last;
    const page = this.#pages.get(index);
    if (page) {
      this.#lastPage = page;
      this.#maps.used(page, this);
    }
    return page;
  }

  /** Looks at the layers until tryFind tells of `offset`. Errors: those of the layers' storage. */
  async learn(offset: number): Promise<void> {
    const granules = Math.floor(offset / this.granuleBytes);
    const index = Math.floor(granules / PAGE_GRANULES);
    const granule = granules % PAGE_GRANULES;
    while (!this.isGone) {
      const page = this.#page(index) ?? this.#addPage(index);
      if (page.owner(granule) !== NOBODY || page.depth >= this.#lookableCount) return;
      page.learners++;
      try {
        if (page.step) await page.step.done;
        else await this.#lookAtNext(page);
      } finally {
        page.learners--;
      }
    }
  }

  #addPage(index: number): LayerPage {
    const page = new LayerPage(index);
    this.#pages.set(index, page);
    this.#lastPage = page;
    this.#maps.added(page, this);
    return page;
  }

  async #lookAtNext(page: LayerPage): Promise<void> {
    let end: () => void = () => undefined;
    const done = new Promise<void>((resolve) => (end = resolve));
    const step: Step = { layer: page.depth, isSpoiled: false, done };
    page.step = step;
    try {
      if (++this.#looks % LAYERS_A_TURN === 0) await this.#maps.clock.macrotask();
      const isKnown = await this.#look(page, step);
      if (step.isSpoiled) return;
      // What cannot be told without a closer look: the layer itself takes it.
      if (isKnown) this.#claimPastEnd(page, step.layer);
      else page.claimRest(step.layer);
      page.depth++;
      if (page.depth === 1) this.#inherit(page);
    } finally {
      page.step = undefined;
      end();
    }
  }

  /** What the first layer's own map knows of those below it, as after a snapshot, need not be learned again. */
  #inherit(page: LayerPage): void {
    const below = this.#maps.belowFirstOf(this);
    const known = below?.page(page.index);
    if (!below || !known) return;
    const hasItsChildren = below.#children.every((child, i) => {
      this.#children[i + 1] ??= child;
      return child === undefined || this.#children[i + 1] === child;
    });
    if (hasItsChildren) page.inherit(known);
  }

  /** Whether what another map knows is told in this one's terms, with one layer more on top. */
  isBelowFirstOf(other: LayerMap): boolean {
    return (
      this.top === other.layers[0] &&
      this.granuleBytes === other.granuleBytes &&
      this.#isWhole === other.#isWhole &&
      this.layers.length === other.layers.length - 1 &&
      this.layers.every((node, i) => node === other.layers[i + 1])
    );
  }

  /** What is known of a page. */
  page(index: number): LayerPage | undefined {
    return this.#pages.get(index);
  }

  /** Puts what a layer has into the page; false: not all of it can be told. */
  async #look(page: LayerPage, step: Step): Promise<boolean> {
    const { layer } = step;
    const node = this.layers[layer];
    assert(node, 'a layer is looked at that is one');
    const pageBytes = PAGE_GRANULES * this.granuleBytes;
    const start = page.index * pageBytes;
    const lengthBytes = Math.min(pageBytes, node.lengthBytes - start);
    if (lengthBytes <= 0) return true;
    return node.io.mapAll(start, lengthBytes, (offset, mapping) => {
      if (!step.isSpoiled && mapping.kind !== 'backing') this.#put(page, layer, offset - start, mapping);
    });
  }

  #put(page: LayerPage, layer: number, from: number, mapping: Mapping): void {
    const granule = this.granuleBytes;
    const end = from + mapping.lengthBytes;
    const first = Math.floor(from / granule);
    const stop = Math.ceil(end / granule);
    for (let at = first; at < stop; at++) {
      // A part of one: the layer, or one below, has the rest.
      const isWhole = at * granule >= from && (at + 1) * granule <= end;
      page.claim(at, layer, isWhole ? this.#placeOf(layer, mapping, at * granule - from) : ASK);
    }
  }

  #placeOf(layer: number, mapping: Mapping, within: number): number {
    if (mapping.kind === 'zero') return ZEROES;
    const { child, hostOffset, plain } = mapping;
    if (!plain || !child) return ASK;
    const place = (hostOffset + within) / this.granuleBytes;
    this.#children[layer] ??= child;
    return Number.isInteger(place) && place < ZEROES && this.#children[layer] === child ? place : ASK;
  }

  /** Beyond its end a layer reads as zeroes, whatever is below. */
  #claimPastEnd(page: LayerPage, layer: number): void {
    const granule = this.granuleBytes;
    const length = this.layers[layer]?.lengthBytes ?? 0;
    const start = page.index * PAGE_GRANULES * granule;
    const first = Math.max(0, Math.floor((length - start) / granule));
    for (let at = first; at < PAGE_GRANULES; at++) page.claim(at, layer, ASK);
  }
}

function placesOf(layers: readonly Node[]): Map<Node, number> {
  return new Map(layers.map((node, i) => [node, i]));
}
