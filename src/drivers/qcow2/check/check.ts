import { divideRoundUp } from '../../../base/align.js';
import { BlockError } from '../../../base/error.js';
import { GiB, MAX_L1_BYTES } from '../../../base/limits.js';
import type { ChildIo } from '../../../block/driver.js';
import { walkBitmaps, walkSnapshots } from './check-extras.js';
import type { Header } from '../disk/header.js';
import { hex, readHeader } from '../image.js';
import {
  ClusterKind,
  clusterKind,
  compressedRange,
  ENTRY_BYTES,
  entryIsCopied,
  entryOffset,
  hasReservedBits,
  Reserved,
  SECTOR_BYTES,
} from '../disk/layout.js';
import { readRefcount } from '../space/refcounts.js';

/** What `img check` reports; counts of clusters unless named otherwise. */
export interface Qcow2CheckResult {
  /** Parts of the image that could not be read. */
  checkErrors: number;
  corruptions: number;
  leaks: number;
  totalClusters: number;
  allocatedClusters: number;
  fragmentedClusters: number;
  compressedClusters: number;
  /** First byte behind the last cluster in use. */
  imageEndOffset: number;
  /** The first MAX_MESSAGES findings, in QEMU's words where it has some. */
  messages: string[];
}

const MAX_MESSAGES = 1000;
/** Two bytes a host cluster are kept; larger files are refused. */
const MAX_CLUSTERS = GiB;
const MAX_COUNT = 0xffff;
/** No file has bytes from here on. */
const MAX_OFFSET = 2 ** 63;

/**
 * Counts every reference to every host cluster of an image and compares with the refcounts it holds. Reads only.
 * Memory: two bytes a cluster of the file, and the L1 tables. Errors: those of opening; kind limit.
 */
export async function checkQcow2(file: ChildIo): Promise<Qcow2CheckResult> {
  const { parsed } = await readHeader(file);
  return new Checker(file, parsed).run();
}

/** One check under way. */
export class Checker {
  readonly file: ChildIo;
  readonly header: Header;
  readonly result: Qcow2CheckResult;
  /** References found, by host cluster. */
  readonly #references: Uint16Array;
  readonly #refcountTable: Buffer;
  #block: { index: number; bytes: Buffer } | undefined;
  #contiguousAt = 0;
  /** Largest refcount that the image can hold, or that is kept here. */
  readonly #maxCount: number;

  constructor(file: ChildIo, header: Header) {
    this.file = file;
    this.header = header;
    // The last cluster may lie past the end of the file in part.
    const clusters = divideRoundUp(file.lengthBytes, header.clusterBytes);
    if (clusters > MAX_CLUSTERS) throw new BlockError('limit', 'Image is too large to be checked');
    this.#references = new Uint16Array(clusters);
    this.#maxCount = Math.min(MAX_COUNT, 2 ** (2 ** header.refcountOrder) - 1);
    this.#refcountTable = Buffer.alloc(header.refcountTableClusters * header.clusterBytes);
    this.result = {
      checkErrors: 0,
      corruptions: 0,
      leaks: 0,
      totalClusters: divideRoundUp(header.sizeBytes, header.clusterBytes),
      allocatedClusters: 0,
      fragmentedClusters: 0,
      compressedClusters: 0,
      imageEndOffset: header.clusterBytes,
      messages: [],
    };
  }

  async run(): Promise<Qcow2CheckResult> {
    const { header, file } = this;
    await file.read(header.refcountTableOffset, this.#refcountTable);
    this.reference('header', 0, header.clusterBytes);
    await this.walkL1('Active L1 table', header.l1Offset, header.l1Entries, true);
    await walkSnapshots(this);
    await walkBitmaps(this);
    this.reference('refcount table', header.refcountTableOffset, this.#refcountTable.length);
    this.#walkRefcountTable();
    await this.#compare();
    return this.result;
  }

  corruption(message: string): void {
    this.result.corruptions++;
    this.#say(`ERROR ${message}`);
  }

  #say(message: string): void {
    if (this.result.messages.length < MAX_MESSAGES) this.result.messages.push(message);
  }

  /** Counts one reference to each cluster that [offset, offset + lengthBytes) touches. False: outside the file. */
  reference(what: string, offset: number, lengthBytes: number): boolean {
    if (lengthBytes === 0) return true;
    const { clusterBytes } = this.header;
    const first = Math.floor(offset / clusterBytes);
    const end = Math.ceil((offset + lengthBytes) / clusterBytes);
    if (end > this.#references.length) {
      this.corruption(`${what}: region ${hex(offset)}+${hex(lengthBytes)} exceeds the end of the file`);
      return false;
    }
    for (let cluster = first; cluster < end; cluster++) {
      const count = this.#references[cluster] ?? 0;
      if (count < this.#maxCount) this.#references[cluster] = count + 1;
      else this.corruption(`overflow cluster offset=${hex(cluster * clusterBytes)}`);
    }
    return true;
  }

  /** Reads what must be metadata; undefined, and counted, when it is not where metadata can be. */
  async read(what: string, offset: number, lengthBytes: number): Promise<Buffer | undefined> {
    if (offset % this.header.clusterBytes !== 0) {
      this.corruption(`${what} is not cluster aligned; ${hex(offset)}`);
      return undefined;
    }
    return this.#readReferenced(what, offset, lengthBytes);
  }

  async #readReferenced(what: string, offset: number, lengthBytes: number): Promise<Buffer | undefined> {
    if (!this.reference(what, offset, lengthBytes)) return undefined;
    const bytes = Buffer.alloc(lengthBytes);
    try {
      await this.file.read(offset, bytes);
      return bytes;
    } catch (error) {
      this.result.checkErrors++;
      this.#say(`ERROR reading ${what}: ${error instanceof Error ? error.message : String(error)}`);
      return undefined;
    }
  }

  /** Follows an L1 table; only the active one's copied flags and statistics count. */
  async walkL1(what: string, offset: number, entries: number, active: boolean): Promise<void> {
    if (entries === 0) return;
    if (entries * ENTRY_BYTES > MAX_L1_BYTES) return this.corruption(`${what} is too large`);
    const l1 = await this.read(what, offset, entries * ENTRY_BYTES);
    if (!l1) return;
    for (let index = 0; index < entries; index++) {
      const l2Offset = entryOffset(l1, index);
      if (l2Offset === 0) continue;
      if (hasReservedBits(l1, index, Reserved.l1))
        this.corruption(`found L1 entry with reserved bits set: ${entryHex(l1, index)}`);
      if (l2Offset % this.header.clusterBytes !== 0)
        this.corruption(`l2_offset=${hex(l2Offset)}: Table is not cluster aligned; L1 entry corrupted`);
      if (active) await this.#checkCopied('L2 table', l2Offset, entryIsCopied(l1, index));
      const l2 = await this.#readReferenced('L2 table', l2Offset, this.header.clusterBytes);
      if (!l2) continue;
      // As QEMU counts: no stretch goes on from one L2 table to the next.
      this.#contiguousAt = 0;
      for (let entry = 0; entry * ENTRY_BYTES < l2.length; entry++) {
        const offset = this.#walkEntry(l2, entry, active);
        if (offset > 0 && active) await this.#checkCopied('data cluster', offset, entryIsCopied(l2, entry));
      }
    }
  }

  /** Counts what an L2 entry refers to; answers the offset of a data cluster, else 0. */
  #walkEntry(l2: Buffer, index: number, active: boolean): number {
    const { header, result } = this;
    const kind = clusterKind(l2, index);
    if (kind !== ClusterKind.compressed && hasReservedBits(l2, index, Reserved.l2))
      this.corruption(`found l2 entry with reserved bits set: ${entryHex(l2, index)}`);
    if (kind === ClusterKind.unallocated || kind === ClusterKind.zeroPlain) {
      if (kind === ClusterKind.zeroPlain && header.version < 3)
        this.corruption('zero cluster in a version 2 image');
      return 0;
    }
    if (kind === ClusterKind.compressed) {
      const range = compressedRange(l2, index, header.clusterBits);
      if (entryIsCopied(l2, index))
        this.corruption(`compressed cluster with the copied flag at ${hex(range.hostOffset)}`);
      this.reference('compressed cluster', range.hostOffset, range.lengthBytes);
      if (active) {
        result.allocatedClusters++;
        result.compressedClusters++;
        // As QEMU counts: compressed clusters are fragmented by nature.
        result.fragmentedClusters++;
      }
      return 0;
    }
    const offset = entryOffset(l2, index);
    if (offset % header.clusterBytes !== 0)
      this.corruption(`offset=${hex(offset)}: Data cluster is not properly aligned; L2 entry corrupted`);
    if (active) {
      result.allocatedClusters++;
      if (this.#contiguousAt !== 0 && offset !== this.#contiguousAt) result.fragmentedClusters++;
      this.#contiguousAt = offset + header.clusterBytes;
    }
    this.reference('data cluster', offset, header.clusterBytes);
    return offset;
  }

  async #checkCopied(what: string, offset: number, copied: boolean): Promise<void> {
    const cluster = Math.floor(offset / this.header.clusterBytes);
    const count = this.#cachedRefcount(cluster) ?? (await this.#refcount(cluster));
    if (count === undefined) return;
    if ((count === 1) !== copied)
      this.corruption(
        `OFLAG_COPIED ${what}: offset=${hex(offset)} copied=${String(copied)} refcount=${count}`,
      );
  }

  #walkRefcountTable(): void {
    for (let index = 0; index * ENTRY_BYTES < this.#refcountTable.length; index++) {
      // It is used in spite of them, but its cluster not counted.
      if (hasReservedBits(this.#refcountTable, index, Reserved.refcountTable)) {
        this.corruption(`refcount table entry ${index} has reserved bits set`);
        continue;
      }
      const offset = this.#blockOffset(index);
      if (offset === 0) continue;
      if (offset % this.header.clusterBytes !== 0)
        this.corruption(`refcount block ${index} is not cluster aligned`);
      else if (this.reference(`refcount block ${index}`, offset, this.header.clusterBytes)) {
        const found = this.#references[offset / this.header.clusterBytes];
        if (found !== 1) this.corruption(`refcount block ${index} refcount=${found}`);
      }
    }
  }

  #blockOffset(index: number): number {
    const at = index * ENTRY_BYTES;
    if (at >= this.#refcountTable.length) return 0;
    const low = this.#refcountTable.readUInt32BE(at + 4);
    return this.#refcountTable.readUInt32BE(at) * 2 ** 32 + (low - (low % SECTOR_BYTES));
  }

  /** The refcount that the image holds: 0 where there is no block, undefined where its block cannot be. */
  async #refcount(cluster: number): Promise<number | undefined> {
    const { clusterBytes, refcountOrder } = this.header;
    const perBlock = (clusterBytes * 8) / 2 ** refcountOrder;
    const index = Math.floor(cluster / perBlock);
    if (this.#block?.index !== index) {
      const offset = this.#blockOffset(index);
      const bytes = Buffer.alloc(clusterBytes);
      if (offset % clusterBytes !== 0 || offset >= MAX_OFFSET) return undefined;
      // Behind the end of the file there are zeroes.
      if (offset !== 0 && offset < this.file.lengthBytes) await this.file.read(offset, bytes);
      this.#block = { index, bytes };
    }
    return readRefcount(this.#block.bytes, cluster % perBlock, refcountOrder);
  }

  /** The same from the block read last, which spares nearly every wait. */
  #cachedRefcount(cluster: number): number | undefined {
    const { clusterBytes, refcountOrder } = this.header;
    const perBlock = (clusterBytes * 8) / 2 ** refcountOrder;
    if (this.#block?.index !== Math.floor(cluster / perBlock)) return undefined;
    return readRefcount(this.#block.bytes, cluster % perBlock, refcountOrder);
  }

  async #compare(): Promise<void> {
    const { result } = this;
    for (let cluster = 0; cluster < this.#references.length; cluster++) {
      const found = this.#references[cluster] ?? 0;
      const held = this.#cachedRefcount(cluster) ?? (await this.#refcount(cluster));
      if (held === undefined) {
        result.checkErrors++;
        this.#say(`Can't get refcount for cluster ${cluster}: Input/output error`);
        continue;
      }
      if (found > 0 || held > 0) result.imageEndOffset = (cluster + 1) * this.header.clusterBytes;
      if (found === held) continue;
      const text = `cluster ${cluster} refcount=${held} reference=${found}`;
      if (held > found) {
        result.leaks++;
        this.#say(`Leaked ${text}`);
      } else {
        this.corruption(text);
      }
    }
  }
}

/** An entry as it is on disk. */
function entryHex(table: Buffer, index: number): string {
  return `0x${table.readBigUInt64BE(index * ENTRY_BYTES).toString(16)}`;
}
