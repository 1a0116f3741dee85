import { type Mapping, newMapping } from '../../../block/request.js';
import type { CachedTable } from '../tables/cached-table.js';
import type { ImageContext } from '../image.js';
import type { L2Tables } from '../tables/l2-cache.js';
import type { L2Layout } from '../disk/l2-layout.js';
import { ClusterKind } from '../disk/layout.js';

/** Of each ClusterKind; compressed is data that is not plain. */
const KINDS = ['backing', 'zero', 'zero', 'data', 'data'] as const;

/** Answers where guest ranges are, from the tables in memory or by loading them. */
export class Mapper {
  readonly #context: ImageContext;
  readonly #tables: L2Tables;
  readonly #l2: L2Layout;
  readonly #clusterBytes: number;
  readonly #l2Entries: number;
  readonly #coverageBytes: number;
  readonly #unitBytes: number;
  // The stretch under construction: fields rather than an object, so that tryMap allocates nothing.
  #kind = -1;
  #host = 0;
  #copied = false;
  #start = 0;

  constructor(context: ImageContext, tables: L2Tables) {
    this.#context = context;
    this.#tables = tables;
    this.#l2 = context.l2;
    this.#clusterBytes = context.clusterBytes;
    this.#l2Entries = context.l2Entries;
    this.#coverageBytes = this.#l2Entries * this.#clusterBytes;
    this.#unitBytes = context.unitBytes;
  }

  /** MapDriver.tryMap: joins what is alike and, for data, contiguous in the file. */
  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const end = offset + lengthBytes;
    this.#kind = -1;
    this.#start = offset;
    let at = offset;
    while (at < end) {
      const l1Index = Math.floor(at / this.#coverageBytes);
      const next = Math.min(end, (l1Index + 1) * this.#coverageBytes);
      const table = this.#tables.peek(l1Index);
      let reached: number;
      if (table?.wellFormed) reached = this.#join(table, at, next);
      else if (!table && this.#tables.isAbsent(l1Index)) reached = this.#joinAbsent(at, next);
      else reached = at;
      at = reached;
      if (reached < next) break;
    }
    if (this.#kind < 0) return false;
    this.#fill(out, at - offset);
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    for (;;) {
      const l1Index = Math.floor(offset / this.#coverageBytes);
      if (!this.#tables.isAbsent(l1Index)) {
        await this.#tables.load(l1Index);
        // Others who waited for it too may have made it leave memory again.
        const table = this.#tables.peek(l1Index);
        if (table && !table.wellFormed) return this.#mapChecked(table, offset, lengthBytes, out);
      }
      if (this.tryMap(offset, lengthBytes, out)) return;
    }
  }

  /** See MapDriver.mapAll. */
  async mapAll(
    offset: number,
    lengthBytes: number,
    tell: (offset: number, mapping: Mapping) => void,
  ): Promise<boolean> {
    const end = offset + lengthBytes;
    for (let from = offset; from < end;) {
      const at = from;
      const l1Index = Math.floor(at / this.#coverageBytes);
      const next = Math.min(end, (l1Index + 1) * this.#coverageBytes);
      if (!this.#tables.isAbsent(l1Index)) {
        const isKnown = await this.#tables.glance(l1Index, (table) => {
          if (table.wellFormed) this.#tellEntries(table, at, next, tell);
          return table.wellFormed;
        });
        if (!isKnown) return false;
      }
      from = next;
    }
    return true;
  }

  /** Of [from, end), which one table maps. */
  #tellEntries(
    table: CachedTable,
    from: number,
    end: number,
    tell: (offset: number, mapping: Mapping) => void,
  ): void {
    const cluster = this.#clusterBytes;
    const start = from - (from % this.#coverageBytes);
    const lastEntry = Math.ceil((end - start) / cluster);
    const mapping = newMapping();
    for (let at = from; at < end;) {
      const entry = Math.floor((at - start) / cluster);
      const used = this.#l2.nextUsed(table.bytes, entry, lastEntry);
      if (used >= lastEntry) return;
      if (used > entry) at = start + used * cluster;
      this.#kind = -1;
      this.#start = at;
      const reached = this.#join(table, at, end);
      this.#fill(mapping, reached - at);
      if (mapping.kind !== 'backing') tell(at, mapping);
      at = reached;
    }
  }

  /** One unit of a table that holds entries which need a look. */
  #mapChecked(table: CachedTable, offset: number, lengthBytes: number, out: Mapping): void {
    const within = offset % this.#coverageBytes;
    const index = Math.floor(within / this.#clusterBytes);
    this.#tables.checkEntry(table, index);
    this.#kind = -1;
    this.#start = offset;
    const unitEnd = offset - (offset % this.#unitBytes) + this.#unitBytes;
    const end = Math.min(offset + lengthBytes, unitEnd);
    this.#join(table, offset, end);
    this.#fill(out, end - offset);
    if (this.#l2.hasDataFile) return;
    const cluster = this.#clusterBytes;
    const { metadata } = this.#context;
    // Metadata is never written as data: the writer goes to reserve(), which refuses.
    if (out.writable && metadata.find(out.hostOffset - (out.hostOffset % cluster), cluster) !== undefined)
      out.writable = false;
  }

  #joinAbsent(at: number, end: number): number {
    if (this.#kind < 0) this.#kind = ClusterKind.unallocated;
    return this.#kind === ClusterKind.unallocated ? end : at;
  }

  /** Extends the stretch by entries of one table; answers how far it reaches. */
  #join(table: CachedTable, from: number, end: number): number {
    const { bytes } = table;
    const cluster = this.#clusterBytes;
    const unit = this.#unitBytes;
    const l2 = this.#l2;
    let at = from;
    while (at < end) {
      const within = at % cluster;
      const index = Math.floor((at % this.#coverageBytes) / cluster);
      const kind =
        unit === cluster ? l2.kind(bytes, index) : l2.unitKind(bytes, index, Math.floor(within / unit));
      const hasHost = kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
      const host = hasHost ? l2.hostOffset(bytes, index) + within : 0;
      const copied = hasHost && l2.isCopied(bytes, index);
      if (this.#kind < 0) {
        this.#kind = kind;
        this.#host = host;
        this.#copied = copied;
      } else if (kind !== this.#kind || copied !== this.#copied) {
        return at;
      } else if (hasHost && host !== this.#host + (at - this.#start)) {
        return at;
      }
      at = unit === cluster ? this.#endOfAlike(bytes, index, at, end) : at - (at % unit) + unit;
    }
    return Math.min(at, end);
  }

  /** Where what is said of `at` ends, at the earliest. */
  #endOfAlike(bytes: Buffer, index: number, at: number, end: number): number {
    const cluster = this.#clusterBytes;
    const start = at - (at % cluster);
    if (start + cluster >= end) return end;
    return (
      start + cluster * this.#l2.alike(bytes, index, index + Math.ceil((end - start) / cluster), cluster)
    );
  }

  /** Clusters that a broken refcount gave to a table meanwhile. */
  #isTaken(lengthBytes: number): boolean {
    if (this.#l2.hasDataFile) return false;
    const start = this.#host - (this.#host % this.#clusterBytes);
    return this.#context.metadata.findAdded(start, this.#host + lengthBytes - start) !== undefined;
  }

  #fill(out: Mapping, lengthBytes: number): void {
    const kind = this.#kind;
    out.kind = KINDS[kind] ?? 'backing';
    out.lengthBytes = lengthBytes;
    const hasHost = kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
    out.child = hasHost ? this.#context.data : undefined;
    out.hostOffset = hasHost ? this.#host : -1;
    out.plain = hasHost && !this.#context.encryption;
    out.writable =
      kind === ClusterKind.data &&
      this.#copied &&
      this.#context.mayWriteInPlace &&
      !this.#isTaken(lengthBytes);
  }
}
