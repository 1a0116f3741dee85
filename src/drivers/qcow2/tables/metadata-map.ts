import type { Header } from '../disk/header.js';
import { ENTRY_BYTES, entryOffset } from '../disk/layout.js';
import type { SectorTable } from '../../tables/sector-table.js';

/** A stretch of host clusters with what it holds, as QEMU names it. */
export interface MetadataRange {
  what: string;
  offset: number;
  lengthBytes: number;
}

/**
 * Where the metadata of an open image is, so that guest data never goes there and no table is written over another
 * one: the header, that of the encryption, the L1 and refcount tables, all active L2 tables and refcount blocks that they name, and the
 * tables of internal snapshots. Memory: 8 bytes for each L2 table and refcount block. Made at the first use.
 */
export class MetadataMap {
  readonly #header: () => Header;
  readonly #l1: SectorTable;
  readonly #refcountTable: SectorTable;
  #snapshots: readonly MetadataRange[] = [];
  /** Clusters of L2 tables of snapshots, ascending, where these are to be known. */
  #inactive = new Float64Array();
  readonly #unchecked: ReadonlySet<string>;
  /** Clusters of L2 tables and refcount blocks as they were at the first use, ascending; a broken image repeats some. */
  #named: Float64Array | undefined;
  /** Of those, what was given back since. */
  readonly #gone = new Set<number>();
  /** Clusters that became metadata since. */
  readonly #added = new Map<number, string>();

  /** `unchecked`: what of it find() leaves out, by its names. */
  constructor(
    header: () => Header,
    tables: { l1: SectorTable; refcountTable: SectorTable },
    unchecked: ReadonlySet<string> = new Set(),
  ) {
    this.#unchecked = unchecked;
    this.#header = header;
    this.#l1 = tables.l1;
    this.#refcountTable = tables.refcountTable;
  }

  /** Where the tables of internal snapshots are from now on. */
  setSnapshots(ranges: readonly MetadataRange[]): void {
    this.#snapshots = ranges;
    this.#inactive = new Float64Array();
  }

  /** Where their L2 tables are, in clusters; until the snapshots change. */
  setInactive(clusters: Iterable<number>): void {
    this.#inactive = Float64Array.from(clusters).sort();
  }

  get knowsInactive(): boolean {
    return !this.#unchecked.has(INACTIVE_L2);
  }

  /** What metadata that is to be kept lies in [offset, offset + lengthBytes), cluster-aligned; undefined: none. */
  find(offset: number, lengthBytes: number): string | undefined {
    return this.#find(offset, lengthBytes, this.#unchecked);
  }

  /** The same of all that is known, kept or not. */
  findAny(offset: number, lengthBytes: number): string | undefined {
    return this.#find(offset, lengthBytes, NONE);
  }

  #find(offset: number, lengthBytes: number, unchecked: ReadonlySet<string>): string | undefined {
    const { clusterBytes } = this.#header();
    const fixed = this.#findFixed(offset, lengthBytes, unchecked);
    if (fixed !== undefined) return fixed;
    const first = Math.floor(offset / clusterBytes);
    const end = Math.ceil((offset + lengthBytes) / clusterBytes);
    const added = this.findAdded(offset, lengthBytes, unchecked);
    if (added !== undefined) return added;
    const inactive = this.#inactive[firstAtOrAfter(this.#inactive, first)] ?? Infinity;
    const named = this.#sorted();
    for (let i = firstAtOrAfter(named, first); i < named.length; i++) {
      const cluster = named[i] ?? Infinity;
      if (cluster >= end) break;
      if (this.#gone.has(cluster)) continue;
      const what = this.#describe(cluster);
      if (!unchecked.has(what)) return what;
    }
    return inactive < end ? INACTIVE_L2 : undefined;
  }

  /** The same among the clusters that became metadata since the image was opened. */
  findAdded(
    offset: number,
    lengthBytes: number,
    unchecked: ReadonlySet<string> = this.#unchecked,
  ): string | undefined {
    if (this.#added.size === 0) return undefined;
    const { clusterBytes } = this.#header();
    for (let at = offset; at < offset + lengthBytes; at += clusterBytes) {
      const what = this.#added.get(Math.floor(at / clusterBytes));
      if (what !== undefined && !unchecked.has(what)) return what;
    }
    return undefined;
  }

  /** What else lies at the place of an L2 table or refcount block: it must not be changed in place. */
  findOther(offset: number): string | undefined {
    const { clusterBytes } = this.#header();
    const cluster = offset / clusterBytes;
    const fixed = this.#findFixed(offset, clusterBytes, NONE);
    if (fixed !== undefined) return fixed;
    const named = this.#sorted();
    const index = firstAtOrAfter(named, cluster);
    const isNamed = named[index] === cluster && !this.#gone.has(cluster);
    const isRepeated = isNamed && named[index + 1] === cluster;
    return isRepeated || (isNamed && this.#added.has(cluster)) ? this.#describe(cluster) : undefined;
  }

  add(what: string, cluster: number, count = 1): void {
    this.#sorted();
    for (let i = 0; i < count; i++) this.#added.set(cluster + i, what);
  }

  /** The L1 or the refcount table is another one: what it names is looked at anew. */
  tablesChanged(): void {
    this.#named = undefined;
    this.#gone.clear();
    for (const cluster of [...this.#added.keys()]) if (this.#isNamed(cluster)) this.#added.delete(cluster);
  }

  /** A cluster is free. */
  forget(cluster: number): void {
    if (!this.#added.delete(cluster) && this.#isNamed(cluster)) this.#gone.add(cluster);
  }

  /** As what a cluster is in use, which so cannot be free; undefined: as nothing that is known. */
  usedAs(cluster: number): string | undefined {
    const { clusterBytes } = this.#header();
    const named = this.#namedAs(cluster) ?? this.#findFixed(cluster * clusterBytes, clusterBytes, NONE);
    if (named !== undefined) return named;
    return this.#inactive[firstAtOrAfter(this.#inactive, cluster)] === cluster ? INACTIVE_L2 : undefined;
  }

  #namedAs(cluster: number): string | undefined {
    if (!this.#added.has(cluster) && !this.#isNamed(cluster)) return undefined;
    if (this.#names(this.#l1, cluster)) return 'active L2 table';
    return this.#names(this.#refcountTable, cluster) ? 'refcount block' : undefined;
  }

  #names({ bytes, entries }: SectorTable, cluster: number): boolean {
    const offset = cluster * this.#header().clusterBytes;
    for (let index = 0; index < entries; index++) if (entryOffset(bytes, index) === offset) return true;
    return false;
  }

  #isNamed(cluster: number): boolean {
    const named = this.#sorted();
    return named[firstAtOrAfter(named, cluster)] === cluster;
  }

  /** Each allocation asks: nothing is made for it. */
  #findFixed(offset: number, lengthBytes: number, unchecked: ReadonlySet<string>): string | undefined {
    const header = this.#header();
    const { clusterBytes, l1Offset, refcountTableOffset } = header;
    const end = offset + lengthBytes;
    const isKept = (what: string): boolean => !unchecked.has(what);
    if (offset < clusterBytes && end > 0 && isKept('qcow2_header')) return 'qcow2_header';
    const l1End = l1Offset + header.l1Entries * ENTRY_BYTES;
    if (offset < l1End && end > l1Offset && isKept('active L1 table')) return 'active L1 table';
    const tableEnd = refcountTableOffset + header.refcountTableClusters * clusterBytes;
    if (offset < tableEnd && end > refcountTableOffset && isKept('refcount table')) return 'refcount table';
    const { encryption } = header;
    if (encryption?.format === 'luks') {
      const { offset: start, lengthBytes: length } = encryption;
      if (offset < start + length && end > start) return 'encryption header';
    }
    for (const range of this.#snapshots)
      if (offset < range.offset + range.lengthBytes && end > range.offset && isKept(range.what))
        return range.what;
    return undefined;
  }

  #sorted(): Float64Array {
    if (this.#named) return this.#named;
    const { clusterBytes } = this.#header();
    const clusters: number[] = [];
    for (const { bytes, entries } of [this.#l1, this.#refcountTable]) {
      for (let index = 0; index < entries; index++) {
        const offset = entryOffset(bytes, index);
        if (offset !== 0) clusters.push(Math.floor(offset / clusterBytes));
      }
    }
    this.#named = Float64Array.from(clusters).sort();
    return this.#named;
  }

  #describe(cluster: number): string {
    return (
      this.#added.get(cluster) ?? (this.#names(this.#l1, cluster) ? 'active L2 table' : 'refcount block')
    );
  }
}

const NONE: ReadonlySet<string> = new Set();
const INACTIVE_L2 = 'inactive L2 table';

/** Index of the first value of an ascending array that is at least `least`. */
function firstAtOrAfter(values: Float64Array, least: number): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((values[middle] ?? 0) < least) low = middle + 1;
    else high = middle;
  }
  return low;
}
