import type { ChildIo } from '../../../block/driver.js';
import { type Header, layoutOf } from '../disk/header.js';
import type { L2Layout } from '../disk/l2-layout.js';
import {
  ClusterKind,
  compressedOffsetText,
  ENTRY_BYTES,
  entryIsCopiedAt,
  entryOffset,
  hasReservedBits,
  hasReservedBitsAt,
  Reserved,
} from '../disk/layout.js';
import type { CountsAfterwards } from './compare.js';
import { readPadded } from './held.js';
import type { References } from './references.js';
import type { Report } from './report.js';

/** Follows the tables of an image and counts what each entry refers to. */
export class Walk {
  readonly file: ChildIo;
  readonly header: Header;
  readonly report: Report;
  readonly references: References;
  /** Of the image's L2 tables. */
  readonly layout: L2Layout;
  /** Where in the file L2 entries are that get zeroed: counted no more. */
  readonly #zeroed = new Set<number>();
  /** How often each cluster is an L2 table. */
  readonly #tables = new Map<number, number>();
  #contiguousAt = 0;

  constructor(file: ChildIo, header: Header, report: Report, references: References) {
    this.file = file;
    this.header = header;
    this.report = report;
    this.references = references;
    this.layout = layoutOf(header);
  }

  get l2Entries(): number {
    return this.layout.entriesIn(this.header.clusterBytes);
  }

  /** An entry of an L2 table as it is on disk, without what it says of parts. */
  text(table: Buffer, index: number): string {
    return table.readBigUInt64BE(index * this.layout.entryBytes).toString(16);
  }

  /** Counts one reference to each cluster that [offset, offset + lengthBytes) touches. False: outside the file. */
  reference(offset: number, lengthBytes: number, offsetText = offset.toString(16)): boolean {
    if (lengthBytes === 0) return true;
    const { clusterBytes } = this.header;
    const first = Math.floor(offset / clusterBytes);
    const end = Math.ceil((offset + lengthBytes) / clusterBytes);
    // The last cluster may lie past the end of the file in part.
    const isInside = offset + lengthBytes - this.file.lengthBytes < clusterBytes;
    if (isInside) this.references.extend(end);
    else
      this.report.corruption(
        'ERROR: counting reference for region exceeding the end of the file by one cluster or more: ' +
          `offset 0x${offsetText} size 0x${lengthBytes.toString(16)}`,
      );
    // Outside they are no references that refcounts must tell, but nothing else may come there.
    for (let cluster = first; cluster < end; cluster++) {
      if (this.references.add(cluster) || !isInside) continue;
      this.report.corruption(`ERROR: overflow cluster offset=0x${(cluster * clusterBytes).toString(16)}`);
      this.report.line(
        'Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy ' +
          'if the image cannot be opened for writing',
      );
    }
    return isInside;
  }

  /** Reads what is referred to; what is said of a failure is the check's end. */
  async read(offset: number, lengthBytes: number, where: string): Promise<Buffer> {
    const bytes = Buffer.alloc(lengthBytes);
    try {
      await readPadded(this.file, offset, bytes);
    } catch (error) {
      this.report.line(`ERROR: I/O error in ${where}`);
      this.report.result.checkErrors++;
      throw error;
    }
    return bytes;
  }

  /** Follows an L1 table; only the active one's statistics count. */
  async l1(offset: number, entries: number, isActive: boolean): Promise<void> {
    if (entries === 0) return;
    this.reference(offset, entries * ENTRY_BYTES);
    const l1 = await this.read(offset, entries * ENTRY_BYTES, 'check_refcounts_l1');
    const { clusterBytes } = this.header;
    for (let index = 0; index < entries; index++) {
      // As QEMU does, whatever bits make it an entry.
      if (entryText(l1, index) === '0') continue;
      const tableOffset = entryOffset(l1, index);
      if (hasReservedBits(l1, index, Reserved.l1))
        this.report.corruption(`ERROR found L1 entry with reserved bits set: ${entryText(l1, index)}`);
      this.reference(tableOffset, clusterBytes);
      this.#countTable(tableOffset);
      if (tableOffset % clusterBytes !== 0)
        this.report.corruption(
          `ERROR l2_offset=${tableOffset.toString(16)}: Table is not cluster aligned; L1 entry corrupted`,
        );
      await this.#l2(tableOffset, isActive);
    }
  }

  #countTable(tableOffset: number): void {
    const { clusterBytes } = this.header;
    const end = Math.ceil((tableOffset + clusterBytes) / clusterBytes);
    for (let cluster = Math.floor(tableOffset / clusterBytes); cluster < end; cluster++)
      this.#tables.set(cluster, (this.#tables.get(cluster) ?? 0) + 1);
  }

  /** Whether an L2 table is nothing else, so that a repair of it changes no guest's data and no other table. */
  isOnlyTable(tableOffset: number, counts: CountsAfterwards): boolean {
    const { clusterBytes } = this.header;
    const end = Math.ceil((tableOffset + clusterBytes) / clusterBytes);
    for (let cluster = Math.floor(tableOffset / clusterBytes); cluster < end; cluster++)
      if (counts.users(cluster) > (this.#tables.get(cluster) ?? 0)) return false;
    return true;
  }

  async #l2(tableOffset: number, isActive: boolean): Promise<void> {
    const { l2Entries } = this;
    const l2 = await this.read(tableOffset, this.header.clusterBytes, 'check_refcounts_l2');
    // As QEMU counts: no stretch goes on from one L2 table to the next.
    this.#contiguousAt = 0;
    for (let index = 0; index < l2Entries; index++) this.#entry(l2, tableOffset, index, isActive);
  }

  #entry(l2: Buffer, tableOffset: number, index: number, isActive: boolean): void {
    const { layout } = this;
    const kind = layout.kind(l2, index);
    const reserved = layout.unitsPerCluster > 1 ? Reserved.extendedL2 : Reserved.l2;
    if (kind !== ClusterKind.compressed && hasReservedBitsAt(l2, index * layout.entryBytes, reserved))
      this.report.corruption(`ERROR found l2 entry with reserved bits set: ${this.text(l2, index)}`);
    this.#parts(l2, index, kind);
    if (kind === ClusterKind.unallocated || kind === ClusterKind.zeroPlain) return;
    if (kind === ClusterKind.compressed) return this.#compressed(l2, index, isActive);
    const { clusterBytes } = this.header;
    const offset = layout.hostOffset(l2, index);
    if (offset % clusterBytes !== 0 && !this.#misaligned(l2, offset, tableOffset, index)) return;
    if (isActive) {
      const { result } = this.report;
      result.allocatedClusters++;
      if (this.#contiguousAt !== 0 && offset !== this.#contiguousAt) result.fragmentedClusters++;
      this.#contiguousAt = offset + clusterBytes;
    }
    // What lies in a data file is counted nowhere.
    if (!layout.hasDataFile) this.reference(offset, clusterBytes);
  }

  /** What an extended entry says of its parts. */
  #parts(l2: Buffer, index: number, kind: number): void {
    const { layout, report } = this;
    if (kind === ClusterKind.compressed) {
      // Its data is read all the same, so it counts.
      if (layout.hasParts(l2, index))
        report.corruption(
          `ERROR compressed cluster ${index} with non-zero subcluster allocation bitmap, entry=0x${this.text(l2, index)}`,
        );
    } else if (layout.isContradictory(l2, index))
      report.corruption(
        layout.hasHost(l2, index)
          ? `ERROR offset=${layout.hostOffset(l2, index).toString(16)}: Allocated cluster has corrupted subcluster allocation bitmap`
          : 'ERROR: Unallocated cluster has non-zero subcluster allocation map',
      );
  }

  #compressed(l2: Buffer, index: number, isActive: boolean): void {
    const { layout } = this;
    const at = index * layout.entryBytes;
    const { hostOffset, lengthBytes } = layout.compressedRange(l2, index, this.header.clusterBits);
    const offsetText = compressedOffsetText(l2, at, this.header.clusterBits);
    if (entryIsCopiedAt(l2, at))
      this.report.corruption(
        `ERROR: coffset=0x${offsetText}: copied flag must never be set for compressed clusters`,
      );
    this.reference(hostOffset, lengthBytes, offsetText);
    if (!isActive) return;
    const { result } = this.report;
    result.allocatedClusters++;
    result.compressedClusters++;
    // As QEMU counts: compressed clusters are fragmented by nature.
    result.fragmentedClusters++;
  }

  /** Whether the entry counts in spite of it: one that needs no host cluster is made to name none. */
  #misaligned(l2: Buffer, offset: number, tableOffset: number, index: number): boolean {
    const { report, layout } = this;
    const text = `offset=${offset.toString(16)}:`;
    if (layout.kind(l2, index) !== ClusterKind.zeroAllocated) {
      report.corruption(`ERROR ${text} Data cluster is not properly aligned; L2 entry corrupted.`);
      return true;
    }
    const mayRepair = report.mode === 'all';
    const at = tableOffset + index * layout.entryBytes;
    // A table that has several users is repaired once.
    if (mayRepair && this.#zeroed.has(at)) return false;
    this.#zeroed.add(at);
    report.repairable(
      `${text} Preallocated cluster is not properly aligned; L2 entry corrupted.`,
      mayRepair,
      { kind: 'l2-zero', tableOffset, index },
    );
    return !mayRepair;
  }

  /** Whether this entry, as it is on disk, is going to name no cluster. */
  isZeroed(tableOffset: number, index: number): boolean {
    return this.report.mode === 'all' && this.#zeroed.has(tableOffset + index * this.layout.entryBytes);
  }
}

/** An entry as it is on disk. */
export function entryText(table: Buffer, index: number): string {
  return table.readBigUInt64BE(index * ENTRY_BYTES).toString(16);
}
