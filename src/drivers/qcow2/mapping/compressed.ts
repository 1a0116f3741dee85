import { assert } from '../../../base/assert.js';
import { BlockError } from '../../../base/error.js';
import { MiB } from '../../../base/limits.js';
import { inflateRaw, zstdDecompress } from '../../../codec/index.js';
import type { ComputeTask } from '../../../host/compute.js';
import type { CompressedRange } from '../disk/layout.js';
import { ClusterKind } from '../disk/layout.js';
import type { ImageContext } from '../image.js';
import type { L2Tables } from '../tables/l2-cache.js';

/** The window that the specification gives deflate ("Compressed clusters"). */
const ZLIB = { windowBits: 12 };
/** Compressed bytes of one request that are in memory, and so many clusters at most, which occupy all threads. */
const MOST_AT_ONCE_BYTES = 4 * MiB;
const MOST_AT_ONCE = 8;

interface Compressed {
  readonly context: ImageContext;
  readonly tables: L2Tables;
}

/** MapDriver.readSpecial: several clusters at a time. Errors: kind corrupt (EIO) where data is broken. */
export async function readCompressed(image: Compressed, offset: number, buffer: Uint8Array): Promise<void> {
  const cluster = image.context.clusterBytes;
  const atOnce = Math.max(1, Math.min(MOST_AT_ONCE, MOST_AT_ONCE_BYTES / cluster));
  let running: Array<Promise<void>> = [];
  for (let done = 0; done < buffer.length;) {
    const at = offset + done;
    const length = Math.min(buffer.length - done, cluster - (at % cluster));
    running.push(readCluster(image, at, buffer.subarray(done, done + length)));
    done += length;
    if (running.length < atOnce && done < buffer.length) continue;
    // Nobody writes to the buffer any more when the request fails.
    const settled = await Promise.allSettled(running);
    for (const result of settled) if (result.status === 'rejected') throw result.reason;
    running = [];
  }
}

/** A part of one cluster. */
async function readCluster({ context, tables }: Compressed, offset: number, part: Uint8Array): Promise<void> {
  const { clusterBytes: cluster, l2, l2Entries } = context;
  const l1Index = Math.floor(offset / (l2Entries * cluster));
  const index = Math.floor(offset / cluster) % l2Entries;
  // Others who load tables may have made it leave memory again.
  while (!tables.peek(l1Index)) await tables.load(l1Index);
  const bytes = tables.peek(l1Index)?.bytes;
  assert(bytes && l2.kind(bytes, index) === ClusterKind.compressed, 'the mapping is held while it is used');
  const input = await readInput(context, l2.compressedRange(bytes, index, context.header.clusterBits));
  const isWhole = part.length === cluster;
  const output = isWhole ? part : Buffer.allocUnsafe(cluster);
  await decompress(context, input, output);
  if (!isWhole) part.set(output.subarray(offset % cluster, (offset % cluster) + part.length));
}

/** Its last sector may reach past the end of the file. */
async function readInput(context: ImageContext, range: CompressedRange): Promise<Buffer> {
  const { data } = context;
  const inside = Math.max(0, Math.min(range.lengthBytes, data.lengthBytes - range.hostOffset));
  const input = Buffer.alloc(range.lengthBytes);
  const read = input.subarray(0, inside);
  await context.announce('read_compressed');
  if (inside > 0 && !data.tryRead(range.hostOffset, read)) await data.read(range.hostOffset, read);
  return input;
}

async function decompress(context: ImageContext, input: Buffer, output: Uint8Array): Promise<void> {
  const { compute } = context.driver.host;
  const run = async <P>(task: ComputeTask<P>): Promise<number> => {
    const now = compute.tryRun(task);
    return now >= 0 ? now : await compute.run(task, { user: context });
  };
  const filled =
    context.header.compressionType === 0
      ? await run({ function: inflateRaw, input, output, parameters: ZLIB })
      : await run({ function: zstdDecompress, input, output, parameters: undefined });
  if (filled < output.byteLength)
    throw new BlockError('corrupt', 'Input/output error', { errno: 'EIO', node: context.driver.nodeName });
}
