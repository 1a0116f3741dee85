import {
  ClusterKind,
  clusterKindAt,
  type CompressedRange,
  compressedRangeAt,
  ENTRY_BYTES,
  entryIsCopiedAt,
  entryOffsetAt,
  writeCompressedAt,
  writeCopiedAt,
  writeEntryAt,
  ZERO_LOW,
} from './layout.js';

/** Parts that a cluster has with extended entries. */
const SUBCLUSTERS = 32;
const EXTENDED_ENTRY_BYTES = 16;
/** Where an extended entry has its two halves of bits: which subclusters read as zeroes, and which are in the file. */
const ZERO_BITS_AT = 8;
const DATA_BITS_AT = 12;
const ALL_UNITS = 0xffffffff;
/** Of unused entries so many bytes are passed at a time. */
const ZERO_STEP_BYTES = 1024;

/** How the entries of L2 tables lie in their bytes; those of the L1 and refcount tables are always ENTRY_BYTES long. */
export class L2Layout {
  /** 8, or 16 with a bitmap of subclusters behind (qcow2 specification, "Extended L2 Entries"). */
  readonly entryBytes: number;
  /** How many parts of a cluster are allocated and zeroed each for itself. */
  readonly unitsPerCluster: number;
  /** Data lies in a file of its own, where it may begin at offset 0. */
  readonly hasDataFile: boolean;

  constructor({ isExtended = false, hasDataFile = false } = {}) {
    this.entryBytes = isExtended ? EXTENDED_ENTRY_BYTES : ENTRY_BYTES;
    this.unitsPerCluster = isExtended ? SUBCLUSTERS : 1;
    this.hasDataFile = hasDataFile;
  }

  /** Entries of a table, which is a cluster. */
  entriesIn(clusterBytes: number): number {
    return clusterBytes / this.entryBytes;
  }

  /** Virtual bytes that a table maps. */
  coverageBytes(clusterBytes: number): number {
    return this.entriesIn(clusterBytes) * clusterBytes;
  }

  /** The first of entries [index, end) that is not all zero bits, which say that it is in the backing file; or end. */
  nextUsed(table: Buffer, index: number, end: number): number {
    const { entryBytes } = this;
    const endByte = end * entryBytes;
    for (let at = index * entryBytes; at < endByte;) {
      // A zero, and all equal to what comes a byte later.
      const stop = Math.min(endByte, at - (at % ZERO_STEP_BYTES) + ZERO_STEP_BYTES);
      const isUnused = table[at] === 0 && table.compare(table, at + 1, stop, at, stop - 1) === 0;
      if (!isUnused) return Math.floor(firstUsedWord(table, at, stop) / entryBytes);
      at = stop;
    }
    return end;
  }

  /**
   * Of entries [index, end), how many of the first say the same as that at `index`: nothing, zeroes, or a place, each a
   * cluster behind the one before; 1 at least. May answer fewer.
   */
  alike(table: Buffer, index: number, end: number, clusterBytes: number): number {
    if (this.unitsPerCluster > 1) return 1;
    const kind = this.kind(table, index);
    if (kind === ClusterKind.compressed) return 1;
    const hasHost = kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
    if (kind === ClusterKind.unallocated && table.readUInt32BE(index * ENTRY_BYTES) === 0)
      return Math.max(1, this.nextUsed(table, index, end) - index);
    return equalSteps(table, index, end, hasHost ? clusterBytes : 0);
  }

  /** One of ClusterKind, of the whole: of several parts, data where one is, else zeroes where one is. */
  kind(table: Buffer, index: number): number {
    const at = index * this.entryBytes;
    const kind = this.#descriptor(table, at);
    if (this.unitsPerCluster === 1 || kind === ClusterKind.compressed) return kind;
    const hasHost = kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
    if (hasHost)
      return table.readUInt32BE(at + DATA_BITS_AT) === 0 ? ClusterKind.zeroAllocated : ClusterKind.data;
    return table.readUInt32BE(at + ZERO_BITS_AT) === 0 ? ClusterKind.unallocated : ClusterKind.zeroPlain;
  }

  #descriptor(table: Buffer, at: number): number {
    const kind = clusterKindAt(table, at);
    if (!this.hasDataFile || !entryIsCopiedAt(table, at)) return kind;
    // At offset 0 of the data file.
    if (kind === ClusterKind.unallocated) return ClusterKind.data;
    return kind === ClusterKind.zeroPlain ? ClusterKind.zeroAllocated : kind;
  }

  /** The same of one part. */
  unitKind(table: Buffer, index: number, unit: number): number {
    const kind = this.kind(table, index);
    if (this.unitsPerCluster === 1 || kind === ClusterKind.compressed) return kind;
    const at = index * this.entryBytes;
    const hasHost = kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
    if (((table.readUInt32BE(at + DATA_BITS_AT) >>> unit) & 1) !== 0) return ClusterKind.data;
    if (((table.readUInt32BE(at + ZERO_BITS_AT) >>> unit) & 1) !== 0)
      return hasHost ? ClusterKind.zeroAllocated : ClusterKind.zeroPlain;
    return ClusterKind.unallocated;
  }

  /** It has a host cluster of its own or in common with others, whatever its parts say. */
  hasHost(table: Buffer, index: number): boolean {
    const kind = this.kind(table, index);
    return kind === ClusterKind.data || kind === ClusterKind.zeroAllocated;
  }

  /** Parts that are zeroes and data at once, or data nowhere. */
  isContradictory(table: Buffer, index: number): boolean {
    if (this.unitsPerCluster === 1) return false;
    const at = index * this.entryBytes;
    const data = table.readUInt32BE(at + DATA_BITS_AT);
    const kind = this.#descriptor(table, at);
    if (kind === ClusterKind.compressed) return false;
    if ((data & table.readUInt32BE(at + ZERO_BITS_AT)) !== 0) return true;
    return data !== 0 && !this.hasHost(table, index);
  }

  /** It says something of its parts. */
  hasParts(table: Buffer, index: number): boolean {
    const at = index * this.entryBytes;
    return this.unitsPerCluster > 1 && table.readBigUInt64BE(at + ZERO_BITS_AT) !== 0n;
  }

  /** Where the cluster lies in the file; 0: nowhere. */
  hostOffset(table: Buffer, index: number): number {
    return entryOffsetAt(table, index * this.entryBytes);
  }

  /** What it points at is its alone, as all of a data file is. */
  isCopied(table: Buffer, index: number): boolean {
    return this.hasDataFile || entryIsCopiedAt(table, index * this.entryBytes);
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
    const at = index * this.entryBytes;
    writeCompressedAt(table, at, range, clusterBits);
    if (this.unitsPerCluster > 1) table.fill(0, at + ENTRY_BYTES, at + EXTENDED_ENTRY_BYTES);
  }

  /** Writes an entry whose parts are all data at that offset, or all nothing (0). */
  writeData(table: Buffer, index: number, hostOffset: number, copied: boolean): void {
    const at = index * this.entryBytes;
    writeEntryAt(table, at, hostOffset, copied, 0);
    const isData = hostOffset !== 0 || (this.hasDataFile && copied);
    if (this.unitsPerCluster > 1) this.#writeBits(table, at, 0, isData ? ALL_UNITS : 0);
  }

  /** Writes an entry all of which reads as zeroes, and which may keep a host cluster (0: none). */
  writeZero(table: Buffer, index: number, hostOffset: number, copied: boolean): void {
    const at = index * this.entryBytes;
    const isOne = this.unitsPerCluster === 1;
    writeEntryAt(table, at, hostOffset, copied, isOne ? ZERO_LOW : 0);
    if (!isOne) this.#writeBits(table, at, ALL_UNITS, 0);
  }

  /** The entry has that host cluster from now on, with what its parts say. */
  setHost(table: Buffer, index: number, hostOffset: number, copied: boolean): void {
    writeEntryAt(table, index * this.entryBytes, hostOffset, copied, 0);
  }

  /** Parts [from, end) are what `kind` says: data, zeroes, or nothing. */
  setUnits(table: Buffer, index: number, from: number, end: number, kind: 'data' | 'zero' | 'none'): void {
    const at = index * this.entryBytes;
    const mask = unitMask(from, end);
    const zero = andNot(table.readUInt32BE(at + ZERO_BITS_AT), mask);
    const data = andNot(table.readUInt32BE(at + DATA_BITS_AT), mask);
    this.#writeBits(table, at, kind === 'zero' ? zero + mask : zero, kind === 'data' ? data + mask : data);
  }

  #writeBits(table: Buffer, at: number, zero: number, data: number): void {
    table.writeUInt32BE(zero, at + ZERO_BITS_AT);
    table.writeUInt32BE(data, at + DATA_BITS_AT);
  }
}

/** Where the first 32 bits of [from, end) lie that are not all zero; there are some. */
function firstUsedWord(table: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end && table.readUInt32LE(at) === 0) at += Uint32Array.BYTES_PER_ELEMENT;
  return at;
}

/**
 * How many of entries [index, end) are each greater than the one before by `step`, which changes the lower half alone.
 * A view: in code that runs for the first time, each call of a Buffer's own readers costs as much as ten turns of this.
 */
function equalSteps(table: Buffer, index: number, end: number, step: number): number {
  const from = index * ENTRY_BYTES;
  const view = new DataView(table.buffer, table.byteOffset + from, (end - index) * ENTRY_BYTES);
  const stop = view.byteLength;
  const high = view.getUint32(0);
  let low = view.getUint32(4);
  let at = ENTRY_BYTES;
  for (; at < stop; at += ENTRY_BYTES) {
    low += step;
    if (view.getUint32(at + 4) !== low || view.getUint32(at) !== high) break;
  }
  return at / ENTRY_BYTES;
}

/** Bits [from, end) of 32. */
function unitMask(from: number, end: number): number {
  return 2 ** end - 2 ** from;
}

function andNot(bits: number, mask: number): number {
  return (bits & ~mask) >>> 0;
}

/** Of images without subclusters whose data is in the same file. */
export const STANDARD_L2 = new L2Layout();
