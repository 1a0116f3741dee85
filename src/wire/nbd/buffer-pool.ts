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
  #takenBytes = 0;
  /** Called when takenBytes has become less. */
  onLess: (() => void) | undefined;

  /** `allocate`: where buffers come from; see HostFiles.buffer. */
  constructor(allocate: (lengthBytes: number) => Buffer, mostKeptBytes = DEFAULT_KEPT_BYTES) {
    this.#allocate = allocate;
    this.#mostKeptBytes = mostKeptBytes;
  }

  /** Of all buffers that were taken and not given back or left, and what is held beside them. */
  get takenBytes(): number {
    return this.#takenBytes;
  }

  /** A buffer of at least `lengthBytes`. */
  take(lengthBytes: number): Buffer {
    let size = SMALLEST_BYTES;
    while (size + EXTRA_BYTES < lengthBytes) size *= 2;
    size += EXTRA_BYTES;
    this.#takenBytes += size;
    const found = this.#free.get(size)?.pop();
    if (!found) return this.#allocate(size);
    this.#keptBytes -= size;
    return found;
  }

  /** Gives a buffer of take() back; nobody may use it afterwards. */
  give(buffer: Buffer): void {
    this.leave(buffer);
    if (this.#keptBytes + buffer.length > this.#mostKeptBytes) return;
    this.#keptBytes += buffer.length;
    const list = this.#free.get(buffer.length);
    if (list) list.push(buffer);
    else this.#free.set(buffer.length, [buffer]);
  }

  /** A buffer of take() that somebody may use still, but that will not be given back. */
  leave(buffer: Buffer): void {
    this.release(buffer.length);
  }

  /** Counts memory that is no buffer of the pool, until it is released. */
  hold(lengthBytes: number): void {
    this.#takenBytes += lengthBytes;
  }

  release(lengthBytes: number): void {
    this.#takenBytes -= lengthBytes;
    this.onLess?.();
  }
}
