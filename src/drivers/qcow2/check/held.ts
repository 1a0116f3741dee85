import type { ChildIo } from '../../../block/driver.js';
import { corruptionText, hex } from '../image.js';
import type { Header } from '../disk/header.js';
import { ENTRY_BYTES, SECTOR_BYTES } from '../disk/layout.js';
import { readRefcount } from '../space/refcounts.js';

/** No file has bytes from here on. */
const MAX_OFFSET = 2 ** 63;

/** The refcounts that the image holds, read block by block as they are on disk. */
export class HeldRefcounts {
  readonly #file: ChildIo;
  readonly #header: Header;
  readonly table: Buffer;
  readonly #perBlock: number;
  #block: { index: number; bytes: Buffer | undefined } | undefined;

  private constructor(file: ChildIo, header: Header, table: Buffer) {
    this.#file = file;
    this.#header = header;
    this.table = table;
    this.#perBlock = (header.clusterBytes * 8) / 2 ** header.refcountOrder;
  }

  static async read(file: ChildIo, header: Header): Promise<HeldRefcounts> {
    const table = Buffer.alloc(header.refcountTableClusters * header.clusterBytes);
    await readPadded(file, header.refcountTableOffset, table);
    return new HeldRefcounts(file, header, table);
  }

  get tableEntries(): number {
    return this.table.length / ENTRY_BYTES;
  }

  /** Place of a refcount block, 0 when there is none. May be more than 2^53 in a corrupt image. */
  blockOffset(index: number): number {
    const at = index * ENTRY_BYTES;
    if (at >= this.table.length) return 0;
    const low = this.table.readUInt32BE(at + 4);
    return this.table.readUInt32BE(at) * 2 ** 32 + (low - (low % SECTOR_BYTES));
  }

  /** Whether at() answers for this cluster without loading a block. */
  has(cluster: number): boolean {
    return this.#block?.index === Math.floor(cluster / this.#perBlock);
  }

  async load(cluster: number): Promise<void> {
    const index = Math.floor(cluster / this.#perBlock);
    this.#block = { index, bytes: await this.#readBlock(this.blockOffset(index)) };
  }

  async #readBlock(offset: number): Promise<Buffer | undefined> {
    const { clusterBytes } = this.#header;
    if (offset % clusterBytes !== 0 || offset >= MAX_OFFSET) return undefined;
    const bytes = Buffer.alloc(clusterBytes);
    if (offset !== 0) await readPadded(this.#file, offset, bytes);
    return bytes;
  }

  /** Of a cluster whose block is loaded: 0 where there is no block, undefined where its block cannot be. */
  at(cluster: number): number | undefined {
    const bytes = this.#block?.bytes;
    return bytes && readRefcount(bytes, cluster % this.#perBlock, this.#header.refcountOrder);
  }

  /** What is wrong where at() knows nothing. */
  corruptionText(cluster: number, isWritable: boolean): string {
    const index = Math.floor(cluster / this.#perBlock);
    const where = `(reftable index: ${hex(index)})`;
    return corruptionText(`Refblock offset ${hex(this.blockOffset(index))} unaligned ${where}`, isWritable);
  }

  async get(cluster: number): Promise<number | undefined> {
    if (!this.has(cluster)) await this.load(cluster);
    return this.at(cluster);
  }
}

/** Behind the end of the file there are zeroes. */
export async function readPadded(file: ChildIo, offset: number, bytes: Buffer): Promise<void> {
  bytes.fill(0);
  if (offset < file.lengthBytes) await file.read(offset, bytes);
}
