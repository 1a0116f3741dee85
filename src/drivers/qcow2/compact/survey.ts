import type { ChildIo } from '../../../block/driver.js';
import type { References } from '../check/references.js';
import type { Refcounts } from '../space/refcounts.js';
import {
  type Pointer,
  type PointerTable,
  pointerTables,
  type Structure,
  tablesOfHeader,
} from './pointer-tables.js';

/** What a host cluster is, for who wants to move it. */
export const Use = {
  free: 0,
  /** Free, and its refcount has no block yet. */
  uncounted: 1,
  /** In use by what no table names: the header, key slots. */
  unnamed: 2,
  /** Several things at once. */
  mixed: 3,
  refcounts: 4,
  /** The guest's. */
  data: 5,
  /** A cluster of ours by itself: an L2 table, bits of a bitmap. */
  metadata: 6,
  /** Of a table of contiguous clusters. */
  table: 7,
  compressed: 8,
} as const;

/** Compressed data of one cluster of the guest's. */
export interface Stream {
  readonly hostOffset: number;
  readonly lengthBytes: number;
  /** How many entries name it, an entry of a shared table as often as the table is shared. */
  references: number;
}

export interface Survey {
  readonly clusterBytes: number;
  /** Of each cluster of the file. */
  readonly uses: Uint8Array;
  readonly references: References;
  readonly usedClusters: number;
  /** First cluster behind the last one in use. */
  readonly endCluster: number;
  /** Tables of contiguous clusters: the first of them, and how many. */
  readonly tables: ReadonlyMap<number, number>;
  /** Those that touch a cluster from `streamsFrom` on, ascending. */
  readonly streams: readonly Stream[];
  readonly streamsFrom: number;
  /** Most references that a cluster can count. */
  readonly mostReferences: number;
}

/** So much compressed data is looked at in one round. */
const MAX_STREAMS = 2 ** 19;

/**
 * What each cluster of a sound image is. Memory: a byte a cluster of the file. Compressed data is told from where on
 * nothing has to be, or from later on where there is much. Errors: those of reading.
 */
export async function survey(
  file: ChildIo,
  {
    structure,
    references,
    refcounts,
  }: { structure: Structure; references: References; refcounts: Refcounts },
): Promise<Survey> {
  const surveyor = new Surveyor(structure, references, refcounts);
  for await (const table of pointerTables(file, structure)) surveyor.look(table);
  return surveyor.finish();
}

class Surveyor {
  readonly #clusterBytes: number;
  readonly #references: References;
  readonly #uses: Uint8Array;
  readonly #tables = new Map<number, number>();
  #streams = new Map<number, Stream>();
  #streamsFrom: number;
  readonly #used: { count: number; end: number };
  readonly #mostReferences: number;
  readonly #pointer: Pointer = { kind: 'none', hostOffset: 0, lengthBytes: 0 };

  constructor(structure: Structure, references: References, refcounts: Refcounts) {
    this.#clusterBytes = structure.header.clusterBytes;
    this.#references = references;
    this.#mostReferences = Math.min(refcounts.mostReferences, references.maxCount);
    this.#uses = new Uint8Array(references.length);
    this.#used = { count: 0, end: 0 };
    for (let cluster = 0; cluster < references.length; cluster++) {
      const isUsed = references.get(cluster) > 0;
      const isCounted = !refcounts.isAbsent(refcounts.blockIndex(cluster));
      this.#uses[cluster] = isUsed ? Use.unnamed : isCounted ? Use.free : Use.uncounted;
      if (isUsed) this.#used.end = cluster + 1;
      if (isUsed) this.#used.count++;
    }
    this.#streamsFrom = this.#used.count;
    this.#markRefcounts(structure, refcounts);
    for (const { hostOffset, lengthBytes } of tablesOfHeader(structure)) this.#table(hostOffset, lengthBytes);
  }

  #markRefcounts({ header }: Structure, refcounts: Refcounts): void {
    this.#mark(header.refcountTableOffset, header.refcountTableClusters * this.#clusterBytes, Use.refcounts);
    for (let index = 0; index < refcounts.table.entries; index++)
      if (!refcounts.isAbsent(index))
        this.#mark(refcounts.blockOffset(index), this.#clusterBytes, Use.refcounts);
  }

  look(table: PointerTable): void {
    const pointer = this.#pointer;
    const shares = this.#references.get(Math.floor(table.hostOffset / this.#clusterBytes));
    for (let index = 0; index < table.entries; index++) {
      table.read(index, pointer);
      if (pointer.kind === 'none') continue;
      if (pointer.kind === 'table') this.#table(pointer.hostOffset, pointer.lengthBytes);
      else if (pointer.kind === 'compressed') this.#stream(pointer, shares);
      else this.#mark(pointer.hostOffset, this.#clusterBytes, Use[pointer.kind]);
    }
  }

  #table(hostOffset: number, lengthBytes: number): void {
    this.#mark(hostOffset, lengthBytes, Use.table);
    const first = hostOffset / this.#clusterBytes;
    const count = Math.ceil(lengthBytes / this.#clusterBytes);
    const known = this.#tables.get(first);
    // Of two that begin in the same place neither is moved.
    if (known !== undefined) this.#mark(hostOffset, Math.max(known, count) * this.#clusterBytes, Use.mixed);
    this.#tables.set(first, count);
  }

  #stream({ hostOffset, lengthBytes }: Pointer, shares: number): void {
    this.#mark(hostOffset, lengthBytes, Use.compressed);
    if (hostOffset + lengthBytes <= this.#streamsFrom * this.#clusterBytes) return;
    const known = this.#streams.get(hostOffset);
    if (known && known.lengthBytes !== lengthBytes) this.#mark(hostOffset, lengthBytes, Use.mixed);
    if (known) known.references += shares;
    else this.#streams.set(hostOffset, { hostOffset, lengthBytes, references: shares });
    if (this.#streams.size >= 2 * MAX_STREAMS) this.#forgetFirst();
  }

  /** What lies first is looked at in a later round. */
  #forgetFirst(): void {
    const kept = this.#sortedStreams().slice(-MAX_STREAMS);
    this.#streamsFrom = Math.floor((kept[0]?.hostOffset ?? 0) / this.#clusterBytes) + 1;
    const from = this.#streamsFrom * this.#clusterBytes;
    const left = kept.filter(({ hostOffset, lengthBytes }) => hostOffset + lengthBytes > from);
    this.#streams = new Map(left.map((stream) => [stream.hostOffset, stream]));
  }

  #sortedStreams(): Stream[] {
    return [...this.#streams.values()].sort((a, b) => a.hostOffset - b.hostOffset);
  }

  /** What is two things at once stays where it is. */
  #mark(hostOffset: number, lengthBytes: number, use: number): void {
    const uses = this.#uses;
    const end = Math.min(uses.length, Math.ceil((hostOffset + lengthBytes) / this.#clusterBytes));
    for (let cluster = Math.floor(hostOffset / this.#clusterBytes); cluster < end; cluster++) {
      const known = uses[cluster];
      uses[cluster] = known === Use.unnamed || known === use ? use : Use.mixed;
    }
  }

  finish(): Survey {
    return {
      clusterBytes: this.#clusterBytes,
      uses: this.#uses,
      references: this.#references,
      usedClusters: this.#used.count,
      endCluster: this.#used.end,
      tables: this.#tables,
      streams: this.#sortedStreams(),
      streamsFrom: this.#streamsFrom,
      mostReferences: this.#mostReferences,
    };
  }
}
