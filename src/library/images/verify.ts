import { createHash } from 'node:crypto';
import { MiB } from '../../base/limits.js';
import type { BlockBackend } from '../../block/backend.js';
import type { HostCompute } from '../../host/compute.js';
import { ChunkHashes } from '../../jobs/verified/chunk-hashes.js';
import type { ContentSink } from './content-hash.js';
import { NO_PROGRESS, type OnProgress } from './progress.js';
import { SourceImages } from './source-images.js';

const PIECE_BYTES = 2 * MiB;
/** Of the manifests of conversions. */
const CHUNK_BYTES = 64 * 1024;
/** How often timers and sockets have their turn. */
const BYTES_PER_TURN = 64 * MiB;

/** Hashes of chunks of a disk, fed with its bytes in order, from the first to the last. */
export class ChunkStream implements ContentSink {
  readonly hashes: ChunkHashes;
  readonly #zeroes = Buffer.alloc(CHUNK_BYTES);
  #hash = createHash('sha256');
  #bytes = 0;

  constructor(compute: HostCompute, diskBytes: number) {
    this.hashes = new ChunkHashes(compute, diskBytes, CHUNK_BYTES);
  }

  add(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      const part = bytes.subarray(at, at + this.#roomBytes());
      this.#hash.update(part);
      at += part.length;
      this.#advance(part.length);
    }
  }

  addZeroes(lengthBytes: number): void {
    for (let left = lengthBytes; left > 0;) {
      const isAtStart = this.#bytes % CHUNK_BYTES === 0;
      const toEnd = this.#bytes + left === this.hashes.sizeBytes;
      const whole = !isAtStart ? 0 : toEnd ? left : left - (left % CHUNK_BYTES);
      if (whole > 0) {
        this.hashes.zeroes(this.#bytes, whole);
        this.#bytes += whole;
        left -= whole;
        continue;
      }
      const part = Math.min(left, this.#roomBytes());
      this.add(this.#zeroes.subarray(0, part));
      left -= part;
    }
  }

  #roomBytes(): number {
    return CHUNK_BYTES - (this.#bytes % CHUNK_BYTES);
  }

  #advance(bytes: number): void {
    const index = Math.floor(this.#bytes / CHUNK_BYTES);
    this.#bytes += bytes;
    if (this.#bytes % CHUNK_BYTES !== 0 && this.#bytes !== this.hashes.sizeBytes) return;
    this.hashes.add(index, this.#hash.digest());
    this.#hash = createHash('sha256');
  }
}

export interface VerifyOptions {
  /** Told of each chunk that is not what it should be; it may have mended it. */
  onDiffers: (chunk: { offset: number; lengthBytes: number }) => Promise<void> | void;
  /** Memory to read into; see HostFiles.buffer. */
  buffer: (lengthBytes: number) => Buffer;
  onProgress?: OnProgress;
  signal?: AbortSignal | undefined;
}

/** Compares what a disk shows with what is known of it; holes are not read. Errors: see requestFailure. */
export async function verifyContent(
  image: BlockBackend,
  hashes: ChunkHashes,
  options: VerifyOptions,
): Promise<void> {
  const { onDiffers, onProgress = NO_PROGRESS, signal } = options;
  const source = new SourceImages([image]);
  const whole = options.buffer(Math.max(PIECE_BYTES, hashes.chunkBytes));
  let turnBytes = 0;
  for (let at = hashes.next(0); at;) {
    signal?.throwIfAborted();
    const { offset, lengthBytes, isZero } = at;
    const zeroBytes = isZero ? await zeroBytesAt(image, hashes, offset, lengthBytes) : 0;
    const length = zeroBytes > 0 ? zeroBytes : Math.min(lengthBytes, whole.length);
    if (zeroBytes === 0) {
      const buffer = whole.subarray(0, length);
      await source.read(offset, buffer);
      for (const chunk of await hashes.differing(offset, buffer))
        await onDiffers({ offset: chunk, lengthBytes: hashes.lengthAt(chunk / hashes.chunkBytes) });
      turnBytes += length;
    }
    onProgress(offset + length, hashes.sizeBytes);
    at = hashes.next(offset + length);
    if (turnBytes < BYTES_PER_TURN) continue;
    turnBytes = 0;
    await image.clock.macrotask();
  }
}

/** How long a first part, whole chunks, is zeroes by its status. */
async function zeroBytesAt(
  image: BlockBackend,
  { chunkBytes }: ChunkHashes,
  offset: number,
  lengthBytes: number,
): Promise<number> {
  const status = await image.node.statusThroughChain(offset, lengthBytes);
  if (!status.zero) return 0;
  return status.lengthBytes >= lengthBytes
    ? lengthBytes
    : status.lengthBytes - (status.lengthBytes % chunkBytes);
}
