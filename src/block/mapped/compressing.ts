import { MiB } from '../../base/limits.js';
import { errnoError } from '../../base/error.js';
import { Flag, type IoRequest, newMapping } from '../request.js';
import type { MappedNode } from './mapped-node.js';
import type { MappedWriting, Part } from './writing.js';

/** So many clusters of one request, and so many bytes of them, are compressed at a time. */
const MOST_AT_ONCE = 8;
const MOST_AT_ONCE_BYTES = 8 * MiB;

/** Writes that are to be compressed: whole clusters, into what holds no data yet. */
export class MappedCompressing {
  readonly #mapped: MappedNode;
  readonly #writing: MappedWriting;

  constructor(mapped: MappedNode, writing: MappedWriting) {
    this.#mapped = mapped;
    this.#writing = writing;
  }

  /** Errors: ENOTSUP, EINVAL for a part of a cluster, EIO for one that has data; those of writing. */
  async write(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { driver, node } = this.#mapped;
    const cluster = driver.clusterBytes;
    const end = offset + lengthBytes;
    if (!driver.writeCompressed) throw errnoError('ENOTSUP', undefined, { node: node.name, offset });
    const isWhole = offset % cluster === 0 && (end % cluster === 0 || end === node.lengthBytes);
    if (!isWhole) throw errnoError('EINVAL', undefined, { node: node.name, offset });
    const { generation } = request;
    await request.stabilise();
    request.assertIs(generation);
    request.begin();
    const atOnce = Math.max(1, Math.min(MOST_AT_ONCE, MOST_AT_ONCE_BYTES / cluster));
    for (let at = offset; at < end; at += atOnce * cluster) {
      const running: Array<Promise<void>> = [];
      for (let i = 0; i < atOnce && at + i * cluster < end; i++)
        running.push(this.#writeCluster({ request, from, offset }, at + i * cluster, end));
      // Nobody reads the request's memory any more when it fails.
      const settled = await Promise.allSettled(running);
      request.assertIs(generation);
      for (const result of settled) if (result.status === 'rejected') throw result.reason;
    }
  }

  async #writeCluster(part: Part, at: number, end: number): Promise<void> {
    const { driver, node, ranges } = this.#mapped;
    const cluster = driver.clusterBytes;
    const length = Math.min(cluster, end - at);
    const from = part.from + (at - part.offset);
    const release = await ranges.lockExclusive(at, cluster);
    try {
      if (await this.#hasData(at, length))
        throw errnoError('EIO', undefined, { node: node.name, offset: at });
      const bytes = await part.request.bytes(from, length);
      const whole = length === cluster ? bytes : Buffer.concat([bytes], cluster);
      if ((await driver.writeCompressed?.(at, whole)) === true) return;
    } finally {
      this.#mapped.changed(at, length);
      release();
    }
    await this.#writing.write(part.request, from, length, at, Flag.none);
  }

  /** Whether a part of a cluster is data, though others are not. */
  async #hasData(from: number, lengthBytes: number): Promise<boolean> {
    const mapping = newMapping();
    const end = from + lengthBytes;
    for (let at = from; at < end; at += mapping.lengthBytes) {
      await this.#mapped.map(at, end - at, mapping);
      if (mapping.kind === 'data') return true;
    }
    return false;
  }
}
