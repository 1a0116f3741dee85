import { ByteRanges } from '../../src/base/byte-ranges.js';
import { errnoError } from '../../src/base/error.js';
import type { MemoryImage } from './memory-layer.js';

/**
 * What an image holds is on a server that loses all of it with the next flush, which fails, as do all others until it was
 * written anew. Content is not zeroes. `before`: what happens just before.
 */
export function loseAtFlush(
  { node, layer, file }: MemoryImage,
  before: () => Promise<void> = () => Promise.resolve(),
): void {
  let isGone = false;
  const lost = (): ByteRanges => {
    const ranges = new ByteRanges();
    for (const [index, at] of isGone ? layer.table : []) {
      if (typeof at !== 'number') continue;
      const cluster = file.bytes.subarray(at, at + layer.clusterBytes);
      if (cluster.every((byte) => byte === 0)) ranges.add(index * layer.clusterBytes, layer.clusterBytes);
    }
    return ranges;
  };
  const flush = file.flush.bind(file);
  file.flush = async () => {
    if (!isGone) {
      await before();
      file.bytes.fill(0);
      isGone = true;
    }
    if (!lost().isEmpty) throw errnoError('EIO');
    await flush();
  };
  node.instance.takeDoubtful = lost;
  Object.defineProperty(node.instance, 'hasLostWrites', { get: () => !lost().isEmpty });
}
