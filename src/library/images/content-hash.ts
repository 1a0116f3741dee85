import { createHash } from 'node:crypto';
import { MiB } from '../../base/limits.js';
import type { BlockBackend } from '../../block/backend.js';
import { NO_PROGRESS, type OnProgress } from './progress.js';
import { SourceImages } from './source-images.js';

const PIECE_BYTES = 2 * MiB;
/** How often timers and sockets have their turn. */
const BYTES_PER_TURN = 64 * MiB;

export const HASH_ALGORITHMS = ['sha256', 'sha512', 'sha1', 'md5', 'blake2b512'] as const;
export type HashAlgorithm = (typeof HASH_ALGORITHMS)[number];

/** Fed with all bytes of a disk in order, from the first to the last. */
export interface ContentSink {
  add(bytes: Uint8Array): void;
  addZeroes(lengthBytes: number): void;
}

/** The hash of a disk's bytes, as a hash of the raw image would be: fed in order, from the first byte to the last. */
export class ContentHash implements ContentSink {
  readonly algorithm: HashAlgorithm;
  readonly #hash;
  readonly #zeroes = Buffer.alloc(PIECE_BYTES);
  #bytes = 0;

  constructor(algorithm: HashAlgorithm) {
    this.algorithm = algorithm;
    this.#hash = createHash(algorithm);
  }

  /** How much it was fed. */
  get bytes(): number {
    return this.#bytes;
  }

  add(bytes: Uint8Array): void {
    this.#hash.update(bytes);
    this.#bytes += bytes.length;
  }

  addZeroes(lengthBytes: number): void {
    for (let left = lengthBytes; left > 0; left -= PIECE_BYTES)
      this.add(this.#zeroes.subarray(0, Math.min(left, PIECE_BYTES)));
  }

  /** Hexadecimal; nothing is added afterwards. */
  digest(): string {
    return this.#hash.digest('hex');
  }
}

export interface HashOptions {
  algorithm: HashAlgorithm;
  /** Memory to read into; see HostFiles.buffer. */
  buffer: (lengthBytes: number) => Buffer;
  onProgress?: OnProgress;
  signal?: AbortSignal | undefined;
}

/** Of what a disk shows; holes are not read. Errors: see requestFailure. */
export async function hashContent(image: BlockBackend, options: HashOptions): Promise<string> {
  const { onProgress = NO_PROGRESS, signal } = options;
  const source = new SourceImages([image]);
  const hash = new ContentHash(options.algorithm);
  const whole = options.buffer(PIECE_BYTES);
  const end = image.lengthBytes;
  let turnBytes = 0;
  for (let at = 0; at < end;) {
    signal?.throwIfAborted();
    const { zero, lengthBytes } = await image.node.statusThroughChain(at, end - at);
    const buffer = whole.subarray(0, Math.min(PIECE_BYTES, lengthBytes));
    const length = zero ? Math.min(lengthBytes, BYTES_PER_TURN) : buffer.length;
    if (zero) hash.addZeroes(length);
    else {
      await source.read(at, buffer);
      hash.add(buffer);
    }
    at += length;
    turnBytes += length;
    onProgress(at, end);
    if (turnBytes < BYTES_PER_TURN) continue;
    turnBytes = 0;
    await image.clock.macrotask();
  }
  return hash.digest();
}
