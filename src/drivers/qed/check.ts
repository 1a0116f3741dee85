import { Bitmap } from '../../base/bitmap.js';
import type { ChildIo, ImageCheck } from '../../block/driver.js';
import { nothingFound } from '../tables/check-result.js';
import { readBytes, uint64 } from '../tables/read-bytes.js';
import { ENTRY_BYTES, isClusterOffset, isTableOffset, type QedHeader } from './header.js';

/** Clusters of a file that are counted: 16 TiB in clusters of 4 KiB. */
const MAX_CLUSTERS = 2 ** 32;

/** Follows the tables: entries that point nowhere are given up where `fixes` says so; durable on return. */
export async function checkQed(file: ChildIo, header: QedHeader, fixes: boolean): Promise<ImageCheck> {
  const walk = new QedWalk(file, header, fixes);
  await walk.run();
  return walk.result;
}

class QedWalk {
  readonly result: ImageCheck;
  readonly #file: ChildIo;
  readonly #header: QedHeader;
  readonly #fixes: boolean;
  readonly #fileBytes: number;
  readonly #used: Bitmap;
  #before = 0;
  /** Where the file is to end. */
  #extendsTo = 0;

  constructor(file: ChildIo, header: QedHeader, fixes: boolean) {
    const { clusterBytes, sizeBytes } = header;
    this.#file = file;
    this.#header = header;
    this.#fixes = fixes;
    this.#fileBytes = file.lengthBytes;
    this.#used = new Bitmap(Math.min(MAX_CLUSTERS, Math.floor(this.#fileBytes / clusterBytes)));
    this.result = nothingFound(Math.ceil(sizeBytes / clusterBytes));
  }

  async run(): Promise<void> {
    const { headerClusters, tableClusters, l1Offset, clusterBytes } = this.#header;
    this.#use(0, Math.min(headerClusters, this.#used.length));
    this.#use(l1Offset, tableClusters);
    const l1 = await this.#readTable(l1Offset);
    let isChanged = false;
    for (let at = 0; at < l1.length; at += ENTRY_BYTES) {
      const table = uint64(l1, at);
      if (table === 0) continue;
      if (!isTableOffset(table, this.#header, this.#fileBytes)) isChanged = this.#drop(l1, at) || isChanged;
      else if (this.#use(table, tableClusters)) await this.#checkL2(table);
    }
    if (isChanged) await this.#file.write(l1Offset, l1, 0);
    if (this.#extendsTo > this.#fileBytes) await this.#file.truncate(this.#extendsTo);
    const clusters = Math.floor(this.#fileBytes / clusterBytes);
    this.result.leaks = Math.max(0, clusters - this.#used.count);
    if (this.#fixes) await this.#file.flush();
  }

  async #checkL2(offset: number): Promise<void> {
    const { clusterBytes } = this.#header;
    const table = await this.#readTable(offset);
    let isChanged = false;
    for (let at = 0; at < table.length; at += ENTRY_BYTES) {
      const cluster = uint64(table, at);
      if (cluster <= 1) continue;
      this.result.allocatedClusters++;
      if (this.#before !== 0 && this.#before + clusterBytes !== cluster) this.result.fragmentedClusters++;
      this.#before = cluster;
      if (!isClusterOffset(cluster, this.#header, this.#fileBytes))
        isChanged = this.#drop(table, at) || isChanged;
      else if (cluster + clusterBytes > this.#fileBytes) this.#keepPart(cluster + clusterBytes);
      else this.#use(cluster, 1);
    }
    if (isChanged) await this.#file.write(offset, table, 0);
  }

  /** Answers whether the entry was changed. */
  #drop(table: Buffer, at: number): boolean {
    this.result.corruptions++;
    if (!this.#fixes) return false;
    table.fill(0, at, at + ENTRY_BYTES);
    this.result.corruptionsFixed++;
    return true;
  }

  /** A cluster that is there in part keeps that. */
  #keepPart(end: number): void {
    this.result.corruptions++;
    if (!this.#fixes) return;
    this.#extendsTo = end;
    this.result.corruptionsFixed++;
  }

  #readTable(offset: number): Promise<Buffer> {
    return readBytes(this.#file, offset, this.#header.tableClusters * this.#header.clusterBytes);
  }

  /** Answers whether nobody used them before. */
  #use(offset: number, clusters: number): boolean {
    const first = Math.floor(offset / this.#header.clusterBytes);
    let isFirst = true;
    for (let cluster = first; cluster < first + clusters && cluster < this.#used.length; cluster++) {
      if (this.#used.get(cluster)) {
        this.result.corruptions++;
        isFirst = false;
      }
      this.#used.set(cluster, cluster + 1);
    }
    return isFirst;
  }
}
