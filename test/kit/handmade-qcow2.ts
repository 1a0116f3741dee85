import { deflateRawSync } from 'node:zlib';

/** Bit 63 of an L1 or L2 entry. */
const COPIED = 1n << 63n;

export interface HandmadeOptions {
  sizeBytes: number;
  clusterBytes?: number;
  version?: 2 | 3;
  /** Of what there is room for, in clusters; the file is that long. */
  clusters?: number;
  l1Entries?: number;
}

/**
 * A qcow2 image put together byte by byte from the specification, apart from the code that it tests: header,
 * refcount table, blocks of 16-bit refcounts, L1 table, then what is asked for.
 */
export class HandmadeQcow2 {
  readonly bytes: Buffer;
  readonly clusterBytes: number;
  readonly refcountTableOffset: number;
  readonly refcountBlockOffset: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  #next: number;

  constructor(options: HandmadeOptions) {
    const clusterBytes = options.clusterBytes ?? 65536;
    this.clusterBytes = clusterBytes;
    const clusters = options.clusters ?? 16;
    this.bytes = Buffer.alloc(clusters * clusterBytes);
    const blocks = Math.ceil((clusters * 2) / clusterBytes);
    this.refcountTableOffset = clusterBytes;
    this.refcountBlockOffset = 2 * clusterBytes;
    this.l1Offset = (2 + blocks) * clusterBytes;
    const coverage = (clusterBytes / 8) * clusterBytes;
    this.l1Entries = options.l1Entries ?? Math.ceil(options.sizeBytes / coverage);
    const l1Clusters = Math.ceil((this.l1Entries * 8) / clusterBytes);
    this.#next = 2 + blocks + l1Clusters;
    this.u32(0, 0x514649fb);
    this.u32(4, options.version ?? 3);
    this.u32(20, Math.log2(clusterBytes));
    this.u64(24, BigInt(options.sizeBytes));
    this.u32(36, this.l1Entries);
    this.u64(40, BigInt(this.l1Offset));
    this.u64(48, BigInt(this.refcountTableOffset));
    this.u32(56, 1);
    if (options.version !== 2) {
      this.u32(96, 4);
      this.u32(100, 104);
    }
    for (let block = 0; block < blocks; block++)
      this.u64(this.refcountTableOffset + block * 8, BigInt(this.refcountBlockOffset + block * clusterBytes));
    for (let cluster = 0; cluster < this.#next; cluster++) this.refcount(cluster * clusterBytes, 1);
  }

  u32(at: number, value: number): void {
    this.bytes.writeUInt32BE(value, at);
  }

  u64(at: number, value: bigint): void {
    this.bytes.writeBigUInt64BE(value, at);
  }

  /** Sets the refcount of the cluster at a host offset. */
  refcount(hostOffset: number, count: number): void {
    this.bytes.writeUInt16BE(count, this.refcountBlockOffset + (hostOffset / this.clusterBytes) * 2);
  }

  /** A cluster of `fill` bytes with refcount one; answers its host offset. */
  cluster(fill = 0): number {
    const offset = this.#next++ * this.clusterBytes;
    this.refcount(offset, 1);
    this.bytes.fill(fill, offset, offset + this.clusterBytes);
    return offset;
  }

  /** The disk's own L2 table of a guest cluster: made when it is missing, copied when a snapshot has it too. */
  l2(guestCluster: number): number {
    const at = this.l1Offset + Math.floor(guestCluster / (this.clusterBytes / 8)) * 8;
    const entry = this.bytes.readBigUInt64BE(at);
    const offset = Number(entry & 0xfffffffffffe00n);
    if (offset !== 0 && (entry & COPIED) !== 0n) return offset;
    const table = this.cluster();
    if (offset !== 0) {
      this.bytes.copy(this.bytes, table, offset, offset + this.clusterBytes);
      this.refcount(offset, 1);
    }
    this.u64(at, BigInt(table) | COPIED);
    return table;
  }

  /** Writes a raw L2 entry. */
  entry(guestCluster: number, value: bigint): void {
    this.u64(this.l2(guestCluster) + (guestCluster % (this.clusterBytes / 8)) * 8, value);
  }

  /** Data of `fill` bytes in a guest cluster; answers its host offset. */
  data(guestCluster: number, fill: number): number {
    this.l2(guestCluster);
    const offset = this.cluster(fill);
    this.entry(guestCluster, BigInt(offset) | COPIED);
    return offset;
  }

  /**
   * Guest clusters from `first` on, compressed and put one behind the other, so that several lie in one host cluster. Each
   * host cluster counts one reference for each of which it has a part, to the end of that one's last sector.
   */
  compressed(first: number, clusters: readonly Buffer[]): void {
    const { clusterBytes } = this;
    const offsetBits = BigInt(62 - (Math.log2(clusterBytes) - 8));
    this.l2(first);
    const counts = new Map<number, number>();
    let at = this.cluster();
    let end = at + clusterBytes;
    for (const [i, content] of clusters.entries()) {
      const stream = deflateRawSync(content, { windowBits: 12 });
      while (end < at + stream.length) end = this.cluster() + clusterBytes;
      stream.copy(this.bytes, at);
      const sectorEnd = Math.ceil((at + stream.length) / 512);
      const more = BigInt(sectorEnd - Math.floor(at / 512) - 1);
      this.entry(first + i, BigInt(at) | (more << offsetBits) | (1n << 62n));
      for (let host = at - (at % clusterBytes); host < sectorEnd * 512; host += clusterBytes)
        counts.set(host, (counts.get(host) ?? 0) + 1);
      at += stream.length;
    }
    for (const [host, count] of counts) this.refcount(host, count);
  }

  /** An internal snapshot of what the image holds now; one L1 cluster at most. Answers the host offset of its table. */
  snapshot(): number {
    const { clusterBytes } = this;
    const l1 = this.cluster();
    for (let index = 0; index < this.l1Entries; index++) {
      const table = this.#share(this.l1Offset + index * 8);
      for (let at = table; table > 0 && at < table + clusterBytes; at += 8) this.#share(at);
    }
    this.bytes.copy(this.bytes, l1, this.l1Offset, this.l1Offset + this.l1Entries * 8);
    const table = this.cluster();
    this.u64(table, BigInt(l1));
    this.u32(table + 8, this.l1Entries);
    this.bytes.writeUInt16BE(1, table + 12);
    this.bytes.writeUInt16BE(1, table + 14);
    this.u32(table + 36, 16);
    this.u64(table + 48, this.bytes.readBigUInt64BE(24));
    this.bytes.write('1s', table + 56, 'latin1');
    this.u32(60, 1);
    this.u64(64, BigInt(table));
    return table;
  }

  /** One more reference to what an entry points at: it is no longer the only one's. */
  #share(at: number): number {
    const entry = this.bytes.readBigUInt64BE(at);
    const offset = Number(entry & 0xfffffffffffe00n);
    if (offset === 0) return 0;
    this.u64(at, entry & ~COPIED);
    this.refcount(offset, 2);
    return offset;
  }
}
