import {
  clusterKindAt,
  type CompressedRange,
  compressedRangeAt,
  ENTRY_BYTES,
  entryIsCopiedAt,
  entryOffsetAt,
  writeCompressedAt,
  writeCopiedAt,
  writeEntryAt,
} from './layout.js';

/** How the entries of L2 tables lie in their bytes; those of the L1 and refcount tables are always ENTRY_BYTES long. */
export class L2Layout {
  /** 8, or 16 with a bitmap of subclusters behind (qcow2 specification, "Extended L2 Entries"). */
  readonly entryBytes: number;

  constructor(entryBytes: number) {
    this.entryBytes = entryBytes;
  }

  /** Entries of a table, which is a cluster. */
  entriesIn(clusterBytes: number): number {
    return clusterBytes / this.entryBytes;
  }

  /** Virtual bytes that a table maps. */
  coverageBytes(clusterBytes: number): number {
    return this.entriesIn(clusterBytes) * clusterBytes;
  }

  /** One of ClusterKind. */
  kind(table: Buffer, index: number): number {
    return clusterKindAt(table, index * this.entryBytes);
  }

  /** Where the cluster lies in the file; 0: nowhere. */
  hostOffset(table: Buffer, index: number): number {
    return entryOffsetAt(table, index * this.entryBytes);
  }

  isCopied(table: Buffer, index: number): boolean {
    return entryIsCopiedAt(table, index * this.entryBytes);
  }

  /** Sets or clears the bit, and leaves the rest of the entry as it is. */
  setCopied(table: Buffer, index: number, copied: boolean): void {
    writeCopiedAt(table, index * this.entryBytes, copied);
  }

  /** Where the data of a compressed cluster lies. */
  compressedRange(table: Buffer, index: number, clusterBits: number): CompressedRange {
    return compressedRangeAt(table, index * this.entryBytes, clusterBits);
  }

  writeCompressed(table: Buffer, index: number, range: CompressedRange, clusterBits: number): void {
    writeCompressedAt(table, index * this.entryBytes, range, clusterBits);
  }

  /** Writes an entry; `low` is or-ed into the lower half. */
  write(table: Buffer, index: number, hostOffset: number, copied: boolean, low = 0): void {
    writeEntryAt(table, index * this.entryBytes, hostOffset, copied, low);
  }
}

/** Of images without subclusters, the only ones that open. */
export const STANDARD_L2 = new L2Layout(ENTRY_BYTES);
