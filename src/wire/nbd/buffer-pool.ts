import { KiB, MiB } from '../../base/limits.js';

const SMALLEST_BYTES = 8 * KiB;
/** In each buffer beyond a power of two: room for the head of a message. */
const EXTRA_BYTES = 64;
const DEFAULT_KEPT_BYTES = 16 * MiB;

/** Buffers in sizes of powers of two, kept for reuse up to a bound. Contents are not cleared. */
export class BufferPool {
  readonly #free = new Map<number, Buffer[]>();
  readonly #allocate: (lengthBytes: number) => Buffer;
  readonly #mostKeptBytes: number;
  #keptBytes = 0;

  /** `allocate`: where buffers come from; see HostFiles.buffer. */
  constructor(allocate: (lengthBytes: number) => Buffer, mostKeptBytes = DEFAULT_KEPT_BYTES) {
    this.#allocate = allocate;
    this.#mostKeptBytes = mostKeptBytes;
  }

  /** A buffer of at least `lengthBytes`. */
  take(lengthBytes: number): Buffer {
    let size = SMALLEST_BYTES;
    while (size + EXTRA_BYTES < lengthBytes) size *= 2;
    size += EXTRA_BYTES;
    const found = this.#free.get(size)?.pop();
    if (!found) return this.#allocate(size);
    this.#keptBytes -= size;
    return found;
  }

  /** Gives a buffer of take() back; nobody may use it afterwards. */
  give(buffer: Buffer): void {
    if (this.#keptBytes + buffer.length > this.#mostKeptBytes) return;
    this.#keptBytes += buffer.length;
    const list = this.#free.get(buffer.length);
    if (list) list.push(buffer);
    else this.#free.set(buffer.length, [buffer]);
  }
}
