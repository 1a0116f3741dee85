import { MiB } from '../../../base/limits.js';
import type { MemoryBudget } from '../../../base/memory-budget.js';
import { CachedTable, TableCache } from './cached-table.js';
import { hex, type ImageContext, readBytes } from '../image.js';
import { ClusterKind, entryIsCopied, entryOffset, hostClustersOf } from '../disk/layout.js';
import type { SectorTable } from '../../tables/sector-table.js';

/** Most memory that L2 tables take unless the options say otherwise. */
export const DEFAULT_L2_CACHE_BYTES = 32 * MiB;

/** The L1 table, and the L2 tables that are in memory: loaded when first needed, never all at open. */
export class L2Tables {
  readonly l1: SectorTable;
  readonly cache: TableCache;
  readonly #context: ImageContext;
  readonly #memory: MemoryBudget;

  constructor(context: ImageContext, l1: SectorTable, limitBytes: number, budget?: MemoryBudget) {
    this.#context = context;
    this.#memory = context.driver.tableMemory;
    this.l1 = l1;
    this.cache = new TableCache(context.clusterBytes, limitBytes, budget);
  }

  /** Whether nothing is mapped in all that this L1 entry covers. */
  isAbsent(l1Index: number): boolean {
    return l1Index >= this.l1.entries || entryOffset(this.l1.bytes, l1Index) === 0;
  }

  /** Whether the table may be changed in place. */
  isCopied(l1Index: number): boolean {
    return entryIsCopied(this.l1.bytes, l1Index);
  }

  peek(l1Index: number): CachedTable | undefined {
    return this.cache.peek(l1Index);
  }

  /** Reads a table; its L1 entry must not be absent. Errors: kind corrupt when the entry points nowhere. */
  load(l1Index: number): Promise<CachedTable> {
    return this.cache.load(l1Index, () => this.#read(l1Index, this.cache.buffer()));
  }

  /** One look at a table, at once when it is there: what is not in memory does not stay there. */
  async glance<T>(l1Index: number, look: (table: CachedTable) => T): Promise<T> {
    const cached = this.cache.peek(l1Index);
    if (cached) return look(cached);
    const scratch = this.#memory.borrow(this.#context.clusterBytes);
    const answer = look(await this.#read(l1Index, scratch));
    // Where that failed, a read that was given up may still come.
    this.#memory.giveBack(scratch);
    return answer;
  }

  async #read(l1Index: number, bytes: Buffer): Promise<CachedTable> {
    const context = this.#context;
    const offset = entryOffset(this.l1.bytes, l1Index);
    const isShared = !this.isCopied(l1Index);
    context.checkMetadataOffset('L2 table', offset, `L1 index: ${hex(l1Index)}`, isShared);
    await context.announce('l2_load');
    // Behind the end of the file there are zeroes.
    if (offset >= context.meta.lengthBytes) {
      bytes.fill(0);
      context.meta.tellCutOff();
    } else await readBytes(context.meta, offset, bytes);
    const table = new CachedTable(l1Index, bytes, offset, false);
    table.wellFormed = this.#isWellFormed(bytes, l1Index) && !this.#pointsAtMetadata(bytes);
    return table;
  }

  #isWellFormed(bytes: Buffer, l1Index: number): boolean {
    const { l2, l2Entries, clusterBytes } = this.#context;
    for (let index = l2.nextUsed(bytes, 0, l2Entries); index < l2Entries;) {
      // What is right with the first and the last of them is so with all between.
      const last = index + l2.alike(bytes, index, l2Entries, clusterBytes) - 1;
      if (this.#problem(bytes, l1Index, index) !== undefined) return false;
      if (last > index && this.#problem(bytes, l1Index, last) !== undefined) return false;
      index = l2.nextUsed(bytes, last + 1, l2Entries);
    }
    return true;
  }

  /** Why an L2 entry cannot be right. */
  #problem(bytes: Buffer, l1Index: number, index: number): string | undefined {
    const { l2, header } = this.#context;
    if (l2.isContradictory(bytes, index)) return 'Invalid cluster entry found';
    const kind = l2.kind(bytes, index);
    if (kind === ClusterKind.unallocated) return undefined;
    if (kind === ClusterKind.compressed) return this.#compressedProblem(bytes, index);
    const { version, clusterBytes } = header;
    if (kind !== ClusterKind.data && version === 2) return 'Zero cluster entry found in pre-v3 image';
    if (kind === ClusterKind.zeroPlain) return undefined;
    const offset = this.#context.l2.hostOffset(bytes, index);
    if (offset % clusterBytes !== 0) return `Cluster allocation offset ${hex(offset)} unaligned`;
    if (!Number.isSafeInteger(offset + clusterBytes))
      return `Cluster allocation offset ${hex(offset)} too large`;
    const guestOffset = (l1Index * this.#context.l2Entries + index) * clusterBytes;
    if (offset === guestOffset || !this.#context.isDataFileRaw) return undefined;
    return (
      `External data file host cluster offset ${hex(offset)} does not match guest cluster offset: ` +
      hex(guestOffset)
    );
  }

  #compressedProblem(bytes: Buffer, index: number): string | undefined {
    const { l2, header } = this.#context;
    if (l2.hasDataFile) return 'Compressed cluster entry found in image with external data file';
    const { hostOffset } = l2.compressedRange(bytes, index, header.clusterBits);
    return hostOffset < 2 ** 52 ? undefined : `Compressed cluster offset ${hex(hostOffset)} too large`;
  }

  /** The host clusters of an entry; undefined when it has none. */
  #hostRange(bytes: Buffer, index: number): { hostOffset: number; lengthBytes: number } | undefined {
    const { clusterBytes, l2, header } = this.#context;
    // No table lies in a data file.
    if (l2.hasDataFile) return undefined;
    if (l2.kind(bytes, index) === ClusterKind.compressed)
      return hostClustersOf(l2.compressedRange(bytes, index, header.clusterBits), clusterBytes);
    const hostOffset = l2.hostOffset(bytes, index);
    return hostOffset === 0 ? undefined : { hostOffset, lengthBytes: clusterBytes };
  }

  /** Whether any entry points at metadata: such clusters can be read, but never be written or freed. */
  #pointsAtMetadata(bytes: Buffer): boolean {
    const { metadata, l2, l2Entries, clusterBytes } = this.#context;
    let start = 0;
    let end = 0;
    for (let next = 0; ;) {
      const index = l2.nextUsed(bytes, next, l2Entries);
      if (index >= l2Entries) break;
      const count = l2.alike(bytes, index, l2Entries, clusterBytes);
      next = index + count;
      const range = this.#hostRange(bytes, index);
      if (!range) continue;
      const { hostOffset } = range;
      const lengthBytes = range.lengthBytes + (count - 1) * clusterBytes;
      // Several compressed clusters may lie in one of the host.
      if (hostOffset >= start && hostOffset <= end) {
        end = Math.max(end, hostOffset + lengthBytes);
        continue;
      }
      if (end > start && metadata.find(start, end - start) !== undefined) return true;
      start = hostOffset;
      end = hostOffset + lengthBytes;
    }
    return end > start && metadata.find(start, end - start) !== undefined;
  }

  /**
   * Errors: kind corrupt when the entry's host cluster is metadata and so must be neither written nor freed. A shared one is
   * not written, and the allocator sees to it that it is not freed.
   */
  checkChange(table: CachedTable, index: number): void {
    const { metadata, l2 } = this.#context;
    const { bytes } = table;
    if (l2.kind(bytes, index) !== ClusterKind.compressed && !l2.isCopied(bytes, index)) return;
    const range = this.#hostRange(bytes, index);
    if (!range) return;
    const { hostOffset, lengthBytes } = range;
    const what = table.wellFormed
      ? metadata.findAdded(hostOffset, lengthBytes)
      : metadata.find(hostOffset, lengthBytes);
    if (what !== undefined) throw this.#context.overlap(what, hostOffset);
  }

  /** Errors: kind corrupt when an entry of a table that is not well-formed cannot be used. */
  checkEntry(table: CachedTable, index: number): void {
    if (table.wellFormed) return;
    const problem = this.#problem(table.bytes, table.index, index);
    if (problem === undefined) return;
    const where = `(L2 offset: ${hex(table.hostOffset)}, L2 index: ${hex(index)})`;
    throw this.#context.corrupt(`${problem} ${where}`);
  }

  /** Puts an empty table, or a copy of a shared one, at a new place and names it in the L1 table. */
  replace(l1Index: number, hostOffset: number): CachedTable {
    const bytes = this.cache.buffer();
    const old = this.isAbsent(l1Index) ? undefined : this.cache.peek(l1Index);
    if (old) old.bytes.copy(bytes);
    else bytes.fill(0);
    const table = new CachedTable(l1Index, bytes, hostOffset, true);
    table.wellFormed = old?.wellFormed ?? true;
    this.#context.metadata.add('active L2 table', hostOffset / this.#context.clusterBytes);
    this.l1.set(l1Index, hostOffset, true);
    this.cache.put(table);
    return table;
  }

  /** Names no table any more. */
  remove(l1Index: number): void {
    this.cache.forget(l1Index);
    this.l1.set(l1Index, 0, false);
  }

  /** The header names another L1 table, whose L2 tables are all on disk. */
  adopt(l1: Buffer, hostOffset: number): void {
    this.cache.forgetAll();
    this.l1.adopt(l1, hostOffset);
    this.#context.metadata.tablesChanged();
  }
}
