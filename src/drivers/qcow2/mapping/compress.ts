import { alignUp } from '../../../base/align.js';
import { assert } from '../../../base/assert.js';
import { errnoError } from '../../../base/error.js';
import { deflateRaw, zstdCompress } from '../../../codec/index.js';
import type { ComputeTask } from '../../../host/compute.js';
import { ClusterKind, hostClustersOf, SECTOR_BYTES } from '../disk/layout.js';
import type { ImageContext } from '../image.js';
import type { CachedTable } from '../tables/cached-table.js';
import { type ImageParts, tableToChange, unlinkEntry } from '../space/reservation.js';
import type { Need } from '../space/space.js';

/** The window that the specification gives deflate ("Compressed clusters"); the level is zlib's default. */
const ZLIB = { windowBits: 12 };
const ZSTD = {};

/**
 * MapDriver.writeCompressed: one whole cluster, whose range is held alone and which holds no data. False: it would not
 * become smaller, and nothing was done. Errors: those of allocating and writing.
 */
export async function writeCompressed(
  image: ImageParts,
  offset: number,
  bytes: Uint8Array,
): Promise<boolean> {
  const { context, allocator } = image;
  if (context.l2.hasDataFile || context.encryption) throw errnoError('ENOTSUP');
  assert(bytes.length === context.clusterBytes && offset % bytes.length === 0, 'a whole cluster');
  const output = Buffer.allocUnsafe(context.clusterBytes - 1);
  const length = await compress(context, bytes, output);
  if (length === 0) return false;
  await context.announce('cluster_alloc_bytes');
  await allocator.needsScan()?.();
  let place = tryPlace(image, offset, length);
  while (typeof place === 'function') {
    await place();
    place = tryPlace(image, offset, length);
  }
  try {
    await context.announce('write_compressed');
    // An entry names whole sectors, and other readers want them in the file.
    const end = alignUp(place.hostOffset + length, SECTOR_BYTES);
    if (!context.data.tryExtend(end)) await context.data.extend(end);
    await context.data.write(place.hostOffset, output.subarray(0, length), 0);
    place.assertReplaceable();
  } catch (error) {
    place.abort();
    throw error;
  }
  place.link();
  return true;
}

async function compress(context: ImageContext, input: Uint8Array, output: Buffer): Promise<number> {
  const { compute } = context.driver.host;
  const run = async <P>(task: ComputeTask<P>): Promise<number> => {
    const now = compute.tryRun(task);
    return now >= 0 ? now : await compute.run(task, { user: context });
  };
  return context.header.compressionType === 0
    ? run({ function: deflateRaw, input, output, parameters: ZLIB })
    : run({ function: zstdCompress, input, output, parameters: ZSTD });
}

function tryPlace(image: ImageParts, offset: number, lengthBytes: number): CompressedPlace | Need {
  const { context, tables, allocator } = image;
  const cluster = context.clusterBytes;
  const table = tableToChange(image, Math.floor(offset / (context.l2Entries * cluster)));
  if (typeof table === 'function') return table;
  const index = Math.floor(offset / cluster) % context.l2Entries;
  tables.checkEntry(table, index);
  tables.checkChange(table, index);
  table.pins++;
  const hostOffset = allocator.tryAllocateBytes(lengthBytes);
  if (typeof hostOffset !== 'function')
    return new CompressedPlace(image, { table, index, hostOffset, lengthBytes });
  table.pins--;
  return hostOffset;
}

interface Where {
  readonly table: CachedTable;
  readonly index: number;
  readonly hostOffset: number;
  readonly lengthBytes: number;
}

/** Room for the compressed data of one cluster, to be linked or given back. */
class CompressedPlace {
  readonly hostOffset: number;
  readonly #parts: ImageParts;
  readonly #where: Where;
  readonly #old: Buffer;

  constructor(parts: ImageParts, where: Where) {
    this.hostOffset = where.hostOffset;
    this.#parts = parts;
    this.#where = where;
    this.#old = Buffer.from(this.#entry());
  }

  #entry(): Buffer {
    const { table, index } = this.#where;
    const { entryBytes } = this.#parts.context.l2;
    return table.bytes.subarray(index * entryBytes, (index + 1) * entryBytes);
  }

  /** What is there now is what was there at first, and no data. */
  assertReplaceable(): void {
    assert(this.#old.equals(this.#entry()), 'the mapping changed while a cluster was compressed');
    const kind = this.#parts.context.l2.kind(this.#old, 0);
    assert(kind !== ClusterKind.data && kind !== ClusterKind.compressed, 'compressing overwrites nothing');
  }

  link(): void {
    const { table, index, hostOffset, lengthBytes } = this.#where;
    const { context } = this.#parts;
    const { l2 } = context;
    const bytes = table.change(index * l2.entryBytes, (index + 1) * l2.entryBytes);
    unlinkEntry(this.#parts, this.#old, 0, context.passesDiscard('other'));
    l2.writeCompressed(bytes, index, { hostOffset, lengthBytes }, context.header.clusterBits);
    context.unflushedBytes += context.clusterBytes;
    table.pins--;
  }

  abort(): void {
    const { table, hostOffset, lengthBytes } = this.#where;
    const { allocator, context, unlinked } = this.#parts;
    table.pins--;
    const clusters = hostClustersOf({ hostOffset, lengthBytes }, context.clusterBytes);
    const [start, count] = [clusters.hostOffset, clusters.lengthBytes].map((n) => n / context.clusterBytes);
    if (!allocator.tryRelease(start ?? 0, count ?? 0))
      unlinked.add(clusters.hostOffset, clusters.lengthBytes, false);
  }
}
