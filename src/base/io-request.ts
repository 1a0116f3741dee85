import { assert } from './assert.js';
import type { CancelSignal } from './cancel-signal.js';
import { IoVector } from './io-vector.js';

export type RequestKind = 'read' | 'write' | 'zeroes' | 'discard' | 'flush';

/** Flags of a request, or-ed together (small integers, not offsets). */
export const Flag = {
  none: 0,
  /** The data is on stable storage when the request completes. */
  fua: 1,
  /** zeroes: the range may be deallocated. */
  mayUnmap: 2,
  /** zeroes: fail with kind 'unsupported' rather than send zeroes. */
  noFallback: 4,
  /** write: into space that holds no data yet, whole clusters, compressed. */
  compressed: 8,
} as const;

/** Where a write finds its bytes when they are in no memory yet. */
export interface RequestSource {
  bytes(from: number, lengthBytes: number): Promise<Uint8Array>;
  /** The write has ended. */
  end?(): void;
}

/** A reader who can do without the bytes: who has them in a file of the host may name their place instead. */
export interface FileTaker {
  /** Takes them from there, maybe later than now. False: they are to be read. `file` is the host's (HostFile). */
  takeFrom(file: object, position: number, lengthBytes: number): boolean;
}

/**
 * What is asked of a disk: one object through all stations. Each hands on the request and which part of it (`from`,
 * `lengthBytes`) is to be moved to or from where; what it was asked at the top stands in the request itself.
 *
 * It belongs to whoever took it out of a pool, who gives it back with the answer. Until then it is nobody else's: a
 * station that waits notes the generation and asserts it afterwards (`assertIs`).
 */
export class IoRequest extends IoVector {
  kind: RequestKind = 'read';
  /** As asked at the top; negative while nothing is asked. */
  offset = -1;
  lengthBytes = -1;
  flags = 0;
  /**
   * Nobody changes its memory meanwhile. False of memory that a guest can write at any time: whoever looks at bytes twice
   * calls stabilise() first.
   */
  isStable = true;
  /** Ends it while it waits for its turn. */
  signal: CancelSignal | undefined;
  /** Set: the bytes are not in `buffers`. */
  source: RequestSource | undefined;
  /**
   * Of a read: who may take all of it from a file instead of from `buffers`. Only where the bytes have that place for ever,
   * so that none but newer ones of the same range can be found there later.
   */
  taker: FileTaker | undefined;
  /** Goes up with each answer. */
  generation = 0;
  /** Copy of unstable memory. */
  #bounce: Uint8Array | undefined;

  /** A request that is used once. */
  static ofBuffer(buffer: Uint8Array): IoRequest {
    const request = new IoRequest();
    request.setBuffer(buffer);
    request.lengthBytes = buffer.length;
    return request;
  }

  /** Sets what is asked; memory, stability and signal are set apart. */
  ask(kind: RequestKind, offset: number, lengthBytes: number, flags: number = Flag.none): this {
    this.kind = kind;
    this.offset = offset;
    this.lengthBytes = lengthBytes;
    this.flags = flags;
    return this;
  }

  /** It has its turn: from here on it is seen through. */
  begin(): void {
    this.signal = undefined;
  }

  assertIs(generation: number): void {
    assert(this.generation === generation, 'a request was answered, or used anew, while it was in flight');
  }

  /** The bytes of a part in one piece, to be looked at once. */
  bytes(from: number, lengthBytes: number): Uint8Array | Promise<Uint8Array> {
    return this.source ? this.source.bytes(from, lengthBytes) : this.gather(from, lengthBytes);
  }

  /**
   * After it, the bytes of a write are in memory that nobody changes: they may be looked at again and again. Copies them,
   * once, where they are not; a promise only where they are still to be read.
   */
  stabilise(): Promise<void> | undefined {
    if (this.source) return this.#fetch(this.source);
    if (this.isStable) return undefined;
    const copy = Buffer.allocUnsafe(this.lengthBytes);
    this.copyTo(copy, 0, this.lengthBytes);
    this.#bounce = copy;
    this.setBuffer(copy);
    this.isStable = true;
    return undefined;
  }

  async #fetch(source: RequestSource): Promise<void> {
    const { generation } = this;
    const bytes = await source.bytes(0, this.lengthBytes);
    this.assertIs(generation);
    this.setBuffer(bytes);
    this.source = undefined;
  }

  /** Nothing has been asked since the last answer. */
  get isUnused(): boolean {
    return this.lengthBytes < 0 && this.offset < 0 && this.flags === Flag.none && this.hasNoMemory;
  }

  /** It has its answer: what comes now is another request. Answers the copy that was made of its memory. */
  end(): Uint8Array | undefined {
    const bounce = this.#bounce;
    this.#bounce = undefined;
    this.generation++;
    this.offset = this.lengthBytes = -1;
    this.flags = 0;
    this.isStable = true;
    this.signal = undefined;
    this.source = undefined;
    this.taker = undefined;
    this.clearBuffers();
    return bounce;
  }
}

/** Sees the requests that were answered: the simulation's looks for those who use them still. */
export interface RequestWatch {
  /** `bounce`: memory of ours that it had. False: it is not to be used again. */
  mayServeAgain(request: IoRequest, bounce: Uint8Array | undefined): boolean;
}

/** Most that are kept; more in flight are made as they are needed. */
const MOST_KEPT = 256;

/**
 * The requests of one who asks. What is answered at once is given back at once, so that the same one serves again and
 * again; one that must wait stays away until it is answered, and the next takes its place.
 */
export class RequestPool {
  readonly #free: IoRequest[] = [];
  readonly #watch: RequestWatch | undefined;

  constructor(watch?: RequestWatch) {
    this.#watch = watch;
  }

  take(): IoRequest {
    return this.#free.pop() ?? new IoRequest();
  }

  /** Its answer is there. */
  give(request: IoRequest): void {
    const bounce = request.end();
    if (this.#watch && !this.#watch.mayServeAgain(request, bounce)) return;
    if (this.#free.length < MOST_KEPT) this.#free.push(request);
  }
}
