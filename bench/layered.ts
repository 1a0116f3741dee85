import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';

const GiB = 1024 ** 3;
const CLUSTER = 64 * 1024;
const PAGE = 4096;
/** Entries of an L2 table, and 16-bit counts of a refcount block. */
const L2_ENTRIES = CLUSTER / 8;
const COUNTS = CLUSTER / 2;
const COPIED = 2n ** 63n;

export const LAYERED_DISK_BYTES = 64 * GiB;
/** Every fourth cluster has data. */
const DATA_SHARE = 4;

/** Of a layer in such a chain, 0 the base. */
export function layerPath(folder: string, layer: number): string {
  return join(folder, `layer${layer}.qcow2`);
}

/** Numbers from 1 to 2^31 - 2 without an order that shows (Park and Miller's generator). */
function* numbers(): Generator<number> {
  for (let state = 1; ;) {
    state = (state * 48271) % 2147483647;
    yield state;
  }
}

/**
 * A chain of `layers` images of a disk of 64 GiB, of which 16 GiB have data, each cluster of it in a layer of its own choice.
 * The data is holes in the files: it is the tables that count here. Put together from the format's specification.
 */
export function makeLayers(folder: string, layers: number): void {
  const clusters: number[][] = Array.from({ length: layers }, () => []);
  const random = numbers();
  for (let cluster = 0; cluster < LAYERED_DISK_BYTES / CLUSTER; cluster++) {
    if (random.next().value % DATA_SHARE === 0) clusters[random.next().value % layers]?.push(cluster);
  }
  for (const [layer, own] of clusters.entries()) writeLayer(folder, layer, own);
}

/** One image with data in the guest clusters of an ascending list. */
function writeLayer(folder: string, layer: number, own: readonly number[]): void {
  const l1Entries = LAYERED_DISK_BYTES / CLUSTER / L2_ENTRIES;
  const tables = [...new Set(own.map((cluster) => Math.floor(cluster / L2_ENTRIES)))];
  // Header, refcount table, L1 table, L2 tables, data, refcount blocks.
  const firstTable = 3;
  const firstData = firstTable + tables.length;
  const firstBlock = firstData + own.length;
  const blocks = Math.ceil((firstBlock + 16) / COUNTS);
  const total = firstBlock + blocks;
  const file = openSync(layerPath(folder, layer), 'w');
  try {
    ftruncateSync(file, total * CLUSTER);
    writeSync(file, header(layer, l1Entries), 0, undefined, 0);
    const refcountTable = Buffer.alloc(blocks * 8);
    for (let block = 0; block < blocks; block++)
      refcountTable.writeBigUInt64BE(BigInt((firstBlock + block) * CLUSTER), block * 8);
    writeSync(file, refcountTable, 0, undefined, CLUSTER);
    const counts = Buffer.alloc(total * 2);
    for (let cluster = 0; cluster < total; cluster++) counts.writeUInt16BE(1, cluster * 2);
    writeSync(file, counts, 0, undefined, firstBlock * CLUSTER);
    const l1 = Buffer.alloc(l1Entries * 8);
    for (const [i, table] of tables.entries())
      l1.writeBigUInt64BE(BigInt((firstTable + i) * CLUSTER) + COPIED, table * 8);
    writeSync(file, l1, 0, undefined, 2 * CLUSTER);
    writeEntries(file, own, { firstTable, firstData });
  } finally {
    closeSync(file);
  }
}

/** Page by page: what has no entry stays a hole. */
function writeEntries(
  file: number,
  own: readonly number[],
  { firstTable, firstData }: { firstTable: number; firstData: number },
): void {
  const entriesPerPage = PAGE / 8;
  const page = Buffer.alloc(PAGE);
  let table = firstTable - 1;
  let lastTable = -1;
  for (let i = 0; i < own.length;) {
    const first = own[i] ?? 0;
    const pageIndex = Math.floor(first / entriesPerPage);
    const tableIndex = Math.floor(first / L2_ENTRIES);
    if (tableIndex !== lastTable) table++;
    lastTable = tableIndex;
    page.fill(0);
    for (; i < own.length && Math.floor((own[i] ?? 0) / entriesPerPage) === pageIndex; i++) {
      const within = (own[i] ?? 0) % entriesPerPage;
      page.writeBigUInt64BE(BigInt((firstData + i) * CLUSTER) + COPIED, within * 8);
    }
    const offset = table * CLUSTER + (pageIndex % (CLUSTER / PAGE)) * PAGE;
    writeSync(file, page, 0, PAGE, offset);
  }
}

function header(layer: number, l1Entries: number): Buffer {
  const bytes = Buffer.alloc(512);
  bytes.writeUInt32BE(0x514649fb, 0);
  bytes.writeUInt32BE(3, 4);
  bytes.writeUInt32BE(16, 20);
  bytes.writeBigUInt64BE(BigInt(LAYERED_DISK_BYTES), 24);
  bytes.writeUInt32BE(l1Entries, 36);
  bytes.writeBigUInt64BE(BigInt(2 * CLUSTER), 40);
  bytes.writeBigUInt64BE(BigInt(CLUSTER), 48);
  bytes.writeUInt32BE(1, 56);
  bytes.writeUInt32BE(4, 96);
  bytes.writeUInt32BE(104, 100);
  if (layer === 0) return bytes;
  bytes.writeUInt32BE(0xe2792aca, 104);
  bytes.writeUInt32BE(5, 108);
  bytes.write('qcow2', 112, 'latin1');
  const name = `layer${layer - 1}.qcow2`;
  bytes.write(name, 128, 'latin1');
  bytes.writeBigUInt64BE(128n, 8);
  bytes.writeUInt32BE(name.length, 16);
  return bytes;
}
