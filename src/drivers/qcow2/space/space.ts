import type { CachedTable } from '../tables/cached-table.js';
import type { ImageContext } from '../image.js';
import { ENTRY_BYTES } from '../disk/layout.js';
import type { SectorTable } from '../../tables/sector-table.js';

/** What must be awaited before an attempt can succeed. */
export type Need = () => Promise<unknown>;

/** The L1 and refcount tables get their space in stretches of this many bytes: of a long one few are ever used. */
const STRETCH_BYTES = 65536;

interface Request {
  offset: number;
  lengthBytes: number;
  promise: Promise<void>;
}

/**
 * Sees to it that metadata has its space on the storage before a write that needs it is answered, so that writing it
 * back cannot run out of space. Each method answers undefined when the space is there, else what must be awaited: the
 * caller looks again from the beginning afterwards, having changed nothing.
 */
export class MetadataSpace {
  readonly #context: ImageContext;
  /** Free clusters that have space, until they are given out. */
  readonly #clusters = new Set<number>();
  readonly #running = new Set<Request>();

  constructor(context: ImageContext) {
    this.#context = context;
  }

  /** Somebody waits for the space of one of these free clusters; to be given out, they wait too. */
  conflict(start: number, count: number): Need | undefined {
    if (this.#running.size === 0) return undefined;
    const { clusterBytes } = this.#context;
    for (const { offset, lengthBytes, promise } of this.#running) {
      if (offset < (start + count) * clusterBytes && offset + lengthBytes > start * clusterBytes)
        return () => promise.catch(() => undefined);
    }
    return undefined;
  }

  /** Of free clusters, which are to become metadata. */
  needsClusters(start: number, count: number): Need | undefined {
    let first = start;
    while (first < start + count && this.#clusters.has(first)) first++;
    if (first === start + count) return undefined;
    const { clusterBytes } = this.#context;
    return this.#provide(first * clusterBytes, (start + count - first) * clusterBytes, () => {
      for (let cluster = first; cluster < start + count; cluster++) this.#clusters.add(cluster);
    });
  }

  /** Clusters are given out. */
  taken(start: number, count: number): void {
    for (let i = 0; i < count && this.#clusters.size > 0; i++) this.#clusters.delete(start + i);
  }

  /** Of a table that is about to change where it is: a copy of the image may have left out its zeroes. */
  needsTable(table: CachedTable): Need | undefined {
    if (table.hasSpace) return undefined;
    return this.#provide(table.hostOffset, table.bytes.length, () => (table.hasSpace = true));
  }

  /** Of an entry of the L1 or refcount table. */
  needsEntry(table: SectorTable, index: number): Need | undefined {
    const stretch = Math.floor((index * ENTRY_BYTES) / STRETCH_BYTES);
    if (table.hasSpace(stretch)) return undefined;
    const from = stretch * STRETCH_BYTES;
    const length = Math.min(STRETCH_BYTES, table.bytes.length - from);
    const { bytes } = table;
    return this.#provide(table.hostOffset + from, length, () => {
      // Where it has moved meanwhile, all of it has space.
      if (table.bytes === bytes) table.gotSpace(stretch);
    });
  }

  #provide(offset: number, lengthBytes: number, done: () => void): Need | undefined {
    if (this.#running.size === 0 && this.#context.meta.tryAllocate(offset, lengthBytes)) {
      done();
      return undefined;
    }
    return () => this.#wait(offset, lengthBytes, done);
  }

  /** One request at a time for each place: a storage that writes zeroes must not do so where a table is by now. */
  async #wait(offset: number, lengthBytes: number, done: () => void): Promise<void> {
    for (const other of this.#running) {
      if (offset < other.offset + other.lengthBytes && offset + lengthBytes > other.offset)
        return other.promise;
    }
    const promise = this.#context.meta.allocate(offset, lengthBytes).then(done);
    const request = { offset, lengthBytes, promise };
    this.#running.add(request);
    try {
      await promise;
    } finally {
      this.#running.delete(request);
    }
  }
}
