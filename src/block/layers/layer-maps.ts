import { MiB } from '../../base/limits.js';
import type { Host, HostClock } from '../../host/host.js';
import type { Node } from '../node.js';
import { LayerMap } from './layer-map.js';
import { type LayerPage, PAGE_BYTES } from './layer-page.js';
import { listLayers } from './shape.js';

/** Memory of all pages of an engine: a map of 64 KiB clusters tells of a TiB in 96 MiB, and of 64 GiB in 6. */
const MOST_PAGES_BYTES = 24 * MiB;
/** Nodes with a map at a time. */
const MOST_MAPS = 64;
/** Images below a node from which on a map pays: fewer are asked in turn as fast. */
const LEAST_LAYERS = 4;
/** From so many on it pays even where pages have to be learned again and again. */
const MANY_LAYERS = 64;

export interface LayerMapSettings {
  /** From so many images below a node on it has a map. */
  readonly leastLayers: number;
  /** From so many on it has one though not all pages of all maps have room. */
  readonly manyLayers: number;
  readonly mostPages: number;
  /** Each answer is compared with what the layers say. */
  readonly isChecked: boolean;
}

const USUAL: LayerMapSettings = {
  leastLayers: LEAST_LAYERS,
  manyLayers: MANY_LAYERS,
  mostPages: Math.floor(MOST_PAGES_BYTES / PAGE_BYTES),
  isChecked: false,
};

/** Of tests and simulations, whose chains are short and whose disks are small. */
export const CHECKED: LayerMapSettings = { leastLayers: 2, manyLayers: 2, mostPages: 3, isChecked: true };

/** The merged maps of one graph: who has one, what changes reach, and how much memory they take. */
export class LayerMaps {
  readonly clock: HostClock;
  /** Tests and simulations set it before anything is opened. */
  settings: LayerMapSettings = USUAL;
  /** Goes up with each change of the graph. */
  shape = 0;
  /** The one used last at the end. */
  readonly #maps = new Set<LayerMap>();
  /** Maps by page, the page used last at the end. */
  readonly #pages = new Map<LayerPage, LayerMap>();

  constructor({ clock, checksShortcuts }: Host) {
    this.clock = clock;
    if (checksShortcuts === true) this.settings = CHECKED;
  }

  /** The graph is another one, maybe. */
  graphChanged(): void {
    this.shape++;
  }

  /** The map of what is below a node, made or brought up to date; undefined: asking the layers in turn is as fast. */
  of(top: Node, former: LayerMap | undefined): LayerMap | undefined {
    const listed = listLayers(top);
    const { layers, isWhole } = listed;
    const last = former?.isGone === false ? former : undefined;
    if (layers.length < this.settings.leastLayers) {
      if (last) this.drop(last);
      return undefined;
    }
    if (last?.follow(layers, isWhole) === true) {
      this.#maps.delete(last);
      this.#maps.add(last);
      return last;
    }
    if (last) this.drop(last);
    const map = new LayerMap(this, top, listed);
    if (layers.length < this.settings.manyLayers && !this.#hasRoomFor(map)) return undefined;
    this.#maps.add(map);
    const [oldest] = this.#maps;
    if (oldest && this.#maps.size > MOST_MAPS) this.drop(oldest);
    return map;
  }

  /** Pages that drive one another out cost more than the layers. */
  #hasRoomFor(map: LayerMap): boolean {
    let pages = map.pageCount;
    // Those of layers below are read by way of this one, mostly, as a disk's former active image is after a snapshot.
    for (const other of this.#maps) if (!map.layers.includes(other.top)) pages += other.pageCount;
    return this.#maps.size < MOST_MAPS && pages <= this.settings.mostPages;
  }

  /** The map of a map's first layer, where it is one of the same layers. */
  belowFirstOf(map: LayerMap): LayerMap | undefined {
    for (const other of this.#maps) if (other.isBelowFirstOf(map)) return other;
    return undefined;
  }

  drop(map: LayerMap): void {
    this.#maps.delete(map);
    for (const page of map.leave()) this.#pages.delete(page);
  }

  /** What a node's image has of [offset, offset + lengthBytes) is something else now, or may be. */
  changed(node: Node, offset: number, lengthBytes: number): void {
    for (const map of this.#maps) map.changed(node, offset, lengthBytes);
  }

  /** A page was made; the one that was not used for longest goes. */
  added(page: LayerPage, map: LayerMap): void {
    this.#pages.set(page, map);
    if (this.#pages.size <= this.settings.mostPages) return;
    for (const [oldest, owner] of this.#pages) {
      if (oldest === page) return;
      if (oldest.learners > 0) continue;
      this.#pages.delete(oldest);
      owner.forget(oldest);
      return;
    }
  }

  /** A page is looked at for a while: it goes later than others. */
  used(page: LayerPage, map: LayerMap): void {
    if (this.#pages.delete(page)) this.#pages.set(page, map);
  }
}
