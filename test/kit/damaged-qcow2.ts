const COPIED = 1n << 63n;
const OFFSET = 0xfffffffffffe00n;

/** A qcow2 image as bytes to be damaged, one refcount block and one L2 table at least. */
export class DamagedQcow2 {
  bytes: Buffer;

  /** A new image may end within a cluster; here it has the rest of it. */
  constructor(bytes: Buffer) {
    this.bytes = Buffer.from(bytes);
    const rest = this.bytes.length % this.clusterBytes;
    if (rest > 0) this.bytes = Buffer.concat([this.bytes, Buffer.alloc(this.clusterBytes - rest)]);
  }

  u64(at: number): bigint {
    return this.bytes.readBigUInt64BE(at);
  }

  set(at: number, value: bigint): void {
    this.bytes.writeBigUInt64BE(value, at);
  }

  get clusterBytes(): number {
    return 2 ** this.bytes.readUInt32BE(20);
  }

  get l1(): number {
    return Number(this.u64(40));
  }

  get refcountTable(): number {
    return Number(this.u64(48));
  }

  get snapshots(): number {
    return Number(this.u64(64));
  }

  /** The first L2 table. */
  get l2(): number {
    return Number(this.u64(this.l1) & OFFSET);
  }

  /** Host offset of the data of a guest cluster of the first L2 table. */
  data(guestCluster: number): number {
    return Number(this.u64(this.entryAt(guestCluster)) & OFFSET);
  }

  entryAt(guestCluster: number): number {
    return this.l2 + guestCluster * 8;
  }

  entry(guestCluster: number): bigint {
    return this.u64(this.entryAt(guestCluster));
  }

  setEntry(guestCluster: number, value: bigint): void {
    this.set(this.entryAt(guestCluster), value);
  }

  /** Of what the first refcount block describes, with refcounts of 16 bits. */
  setRefcount(hostOffset: number, count: number): void {
    const block = Number(this.u64(this.refcountTable));
    this.bytes.writeUInt16BE(count, block + (hostOffset / this.clusterBytes) * 2);
  }

  grow(clusters: number): void {
    this.bytes = Buffer.concat([this.bytes, Buffer.alloc(clusters * this.clusterBytes)]);
  }

  truncate(lengthBytes: number): void {
    this.bytes = Buffer.from(this.bytes.subarray(0, lengthBytes));
  }
}

/** An entry of an L1 or L2 table that claims to be the only one. */
export function ownEntry(hostOffset: number): bigint {
  return BigInt(hostOffset) | COPIED;
}

export { COPIED };
