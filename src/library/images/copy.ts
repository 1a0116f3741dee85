import { Notifier } from '../../base/async.js';
import { alignDown, alignUp } from '../../base/align.js';
import { assert } from '../../base/assert.js';
import type { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { isZero } from '../../base/zero.js';
import type { BlockBackend } from '../../block/backend.js';
import { FileSource } from '../../block/file-source.js';
import { Flag } from '../../block/request.js';
import { ZeroTarget } from '../../block/zero-target.js';
import { requestFailure } from './request-failure.js';
import { RateLimit } from '../../jobs/rate-limit.js';
import type { ContentSink } from './content-hash.js';
import type { OnProgress } from './progress.js';
import type { SourceImages } from './source-images.js';

/** Data moves in pieces of this size, each a request: so long that it is written on a thread while the next is read. */
const PIECE_BYTES = 2 * MiB;
/** Zeroes cost no data: one request may cover this much. */
const ZERO_BYTES = 1024 * MiB;
/** Hashing them takes its time. */
const HASHED_ZERO_BYTES = 64 * MiB;
const SECTOR_BYTES = 512;
/** How often the loop gives way to timers and sockets. */
const BYTES_PER_TURN = 64 * MiB;

export interface CopyOptions {
  /** Requests in flight. */
  parallel: number;
  /** Shortest run of zeroes in data that is not written as data; 0: everything is written as it is. */
  sparseBytes: number;
  /** The target reads as zeroes already. */
  targetIsZero: boolean;
  /** What the source shows of its backing file, the target gets from its own. */
  targetHasBacking: boolean;
  /** Where the backing file of a new target ends: from there on the target reads as zeroes already. */
  targetBackingEnd?: number | undefined;
  /** One write after the other, in the order of the source: the same source gives the same target. Reads run ahead. */
  inOrder: boolean;
  /** Data is written compressed, in whole units of so many bytes; 0: as it is. */
  compressedUnitBytes: number;
  /** Let the kernel copy plain extents. */
  offload: boolean;
  /** 0: as fast as it goes. */
  bytesPerSecond?: number;
  /** Fed with all that the target shows afterwards; only in order, without offload and backing file. */
  hash?: ContentSink | undefined;
  progress: OnProgress;
  signal?: AbortSignal | undefined;
  /** Memory to read into; see HostFiles.buffer. */
  buffer: (lengthBytes: number) => Buffer;
}

interface Extent {
  readonly kind: 'skip' | 'zero' | 'data';
  readonly lengthBytes: number;
}

/** Copies images one behind the other into a target: holes and zeroes as such. Errors: see requestFailure. */
export class ImageCopy {
  readonly #source: SourceImages;
  readonly #target: BlockBackend;
  readonly #options: CopyOptions;
  readonly #limit: RateLimit;
  readonly #buffers: Buffer[] = [];
  readonly #pieceBytes: number;
  /** Zeroes of this length in data are none. */
  readonly #sparseBytes: number;
  readonly #zeroTarget: ZeroTarget;
  readonly #freed = new Notifier();
  #inFlight = 0;
  #doneBytes = 0;
  #turnBytes = 0;
  #failure: unknown;
  /** The end of the piece that was launched last. */
  #last: Promise<void> = Promise.resolve();

  constructor(source: SourceImages, target: BlockBackend, options: CopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.#zeroTarget = new ZeroTarget(target, { unmap: true, believesStatus: true });
    const { compressedUnitBytes, sparseBytes, hash, inOrder, offload, targetHasBacking } = options;
    assert(!hash || (inOrder && !offload && !targetHasBacking), 'a hash sees all bytes, in order');
    this.#limit = new RateLimit(options.bytesPerSecond ?? 0);
    this.#pieceBytes = Math.max(PIECE_BYTES, compressedUnitBytes);
    this.#sparseBytes = sparseBytes > 0 && compressedUnitBytes > 0 ? compressedUnitBytes : sparseBytes;
  }

  async run(): Promise<void> {
    try {
      await this.#copyAll();
    } finally {
      await this.#freed.until(() => this.#inFlight === 0);
    }
    this.#throwFailure();
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw asError(this.#failure);
  }

  async #copyAll(): Promise<void> {
    const end = this.#source.lengthBytes;
    for (let at = 0; at < end;) {
      this.#options.signal?.throwIfAborted();
      const extent = this.#wholeUnits(await this.#extent(at), at, end);
      const stop = at + extent.lengthBytes;
      if (extent.kind === 'skip') this.#advance(extent.lengthBytes);
      else if (extent.kind === 'zero') await this.#zeroes(at, stop);
      else await this.#data(at, stop);
      at = stop;
    }
  }

  /** What is compressed, is so in whole units, though only a part of one is data, or two images meet in it. */
  #wholeUnits(extent: Extent, offset: number, end: number): Extent {
    const unit = this.#options.compressedUnitBytes;
    const stop = offset + extent.lengthBytes;
    if (unit === 0 || stop === end) return extent;
    const whole = alignDown(stop, unit);
    if (extent.kind !== 'data' && whole > offset) return { ...extent, lengthBytes: whole - offset };
    return { kind: 'data', lengthBytes: Math.min(alignUp(stop, unit), end) - offset };
  }

  async #extent(offset: number): Promise<Extent> {
    const { targetHasBacking, targetBackingEnd = Infinity, sparseBytes } = this.#options;
    const place = this.#source.at(offset);
    const { node } = place.image;
    const isBehindBacking = offset >= targetBackingEnd;
    const backingBytes = node.skipFilters().backingNode()?.lengthBytes ?? 0;
    const extent = await this.#source.status(place, async (asked): Promise<Extent> => {
      let lengthBytes = isBehindBacking ? asked : Math.min(asked, targetBackingEnd - offset);
      if (targetHasBacking) {
        const own = await node.io.status(place.offset, lengthBytes);
        lengthBytes = own.lengthBytes;
        const belowBytes = backingBytes - place.offset;
        if (!own.allocated && belowBytes > 0)
          return { kind: 'skip', lengthBytes: Math.min(lengthBytes, belowBytes) };
      }
      if (sparseBytes === 0) return { kind: 'data', lengthBytes };
      const status = await node.statusThroughChain(place.offset, lengthBytes);
      const zero = isBehindBacking ? 'skip' : 'zero';
      return { kind: status.zero ? zero : 'data', lengthBytes: status.lengthBytes };
    });
    return extent ?? { kind: 'data', lengthBytes: Math.min(SECTOR_BYTES, place.leftBytes) };
  }

  #advance(bytes: number): void {
    this.#doneBytes += bytes;
    this.#options.progress(this.#doneBytes, this.#source.lengthBytes);
  }

  async #zeroes(from: number, to: number): Promise<void> {
    const { targetIsZero, hash } = this.#options;
    if (targetIsZero && !hash) return this.#advance(to - from);
    const pieceBytes = hash ? HASHED_ZERO_BYTES : ZERO_BYTES;
    for (let at = from; at < to; at += pieceBytes) {
      const length = Math.min(pieceBytes, to - at);
      await this.#launch(length, async (turn) => {
        await turn();
        hash?.addZeroes(length);
        if (!targetIsZero) await this.#writeZeroes(at, length);
      });
    }
  }

  async #data(from: number, to: number): Promise<void> {
    for (let at = from; at < to;) {
      const offset = at;
      const length = Math.min(alignDown(at, this.#pieceBytes) + this.#pieceBytes, to) - at;
      await this.#keepPace(length);
      await this.#launch(length, (turn) => this.#copyPiece(offset, length, turn));
      at += length;
    }
  }

  async #keepPace(bytes: number): Promise<void> {
    const { clock } = this.#target;
    for (let wait = this.#limit.delayMs(clock.nowMs()); wait > 0; wait = this.#limit.delayMs(clock.nowMs()))
      await clock.sleep(wait);
    this.#limit.spend(bytes);
  }

  /** Starts a piece as soon as there is room for one more. It may write when `turn` is over. */
  async #launch(bytes: number, work: (turn: () => Promise<void>) => Promise<void>): Promise<void> {
    await this.#freed.until(() => this.#inFlight < this.#options.parallel);
    // A read may take this thread: the write whose turn it is begins before that.
    if (bytes === this.#pieceBytes) await this.#target.clock.macrotask();
    this.#throwFailure();
    this.#options.signal?.throwIfAborted();
    this.#inFlight++;
    const before = this.#last;
    const turn = async (): Promise<void> => {
      if (this.#options.inOrder) await before;
      this.#throwFailure();
    };
    this.#last = work(turn)
      .catch((error: unknown) => (this.#failure ??= error))
      .then(() => {
        this.#inFlight--;
        this.#advance(bytes);
        this.#freed.notify();
      });
    this.#turnBytes += bytes;
    if (this.#turnBytes < BYTES_PER_TURN) return;
    this.#turnBytes = 0;
    await this.#target.clock.macrotask();
  }

  async #copyPiece(offset: number, lengthBytes: number, turn: () => Promise<void>): Promise<void> {
    const { offload, hash } = this.#options;
    if (offload) {
      await turn();
      if (await this.#offload(offset, lengthBytes)) return;
    }
    const whole = this.#buffers.pop() ?? this.#options.buffer(this.#pieceBytes);
    const buffer = whole.subarray(0, lengthBytes);
    try {
      await this.#source.read(offset, buffer);
      await turn();
      hash?.add(buffer);
      await this.#writeSparsely(offset, buffer);
    } finally {
      this.#buffers.push(whole);
    }
  }

  /** False: the piece must be read and written. */
  async #offload(offset: number, lengthBytes: number): Promise<boolean> {
    const { image, offset: at, leftBytes } = this.#source.at(offset);
    if (lengthBytes > leftBytes) return false;
    const located = await image.node.io.locate(at, lengthBytes);
    if (located.kind !== 'plain') return false;
    try {
      if (located.lengthBytes < lengthBytes || !located.io.file) return false;
      const source = new FileSource(located.io, located.offset);
      await this.#target.writeFrom(offset, lengthBytes, source);
      return true;
    } catch {
      // Which side failed shows when the piece is read and written.
      return false;
    } finally {
      located.release();
    }
  }

  /** Writes data; runs of zeroes long enough as zeroes, or not at all. */
  async #writeSparsely(offset: number, buffer: Buffer): Promise<void> {
    const sparseBytes = this.#sparseBytes;
    if (sparseBytes === 0 || isDataOnly(buffer, offset, sparseBytes)) return this.#write(offset, buffer);
    let from = 0;
    while (from < buffer.length) {
      const zero = isZeroRun(buffer, offset, from, sparseBytes);
      let to = from;
      while (to < buffer.length && isZeroRun(buffer, offset, to, sparseBytes) === zero)
        to = runEnd(buffer, offset, to, sparseBytes);
      if (!zero) await this.#write(offset + from, buffer.subarray(from, to));
      else if (!this.#options.targetIsZero) await this.#writeZeroes(offset + from, to - from);
      from = to;
    }
  }

  async #write(offset: number, buffer: Buffer): Promise<void> {
    try {
      const flags = this.#options.compressedUnitBytes > 0 ? Flag.compressed : Flag.none;
      if (!this.#target.tryWrite(offset, buffer, flags)) await this.#target.write(offset, buffer, flags);
    } catch (error) {
      throw writeFailure(offset, error);
    }
  }

  async #writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    try {
      await this.#zeroTarget.fill(offset, lengthBytes);
    } catch (error) {
      throw writeFailure(offset, error);
    }
  }
}

/** End of the aligned run of `unit` bytes that holds `at`. */
function runEnd(buffer: Buffer, offset: number, at: number, unit: number): number {
  return Math.min(buffer.length, alignUp(offset + at + 1, unit) - offset);
}

/** Whether a glance at the first byte of each run shows that none is zeroes. */
function isDataOnly(buffer: Buffer, offset: number, unit: number): boolean {
  if (buffer[0] === 0) return false;
  for (let at = unit - (offset % unit); at < buffer.length; at += unit) if (buffer[at] === 0) return false;
  return true;
}

function isZeroRun(buffer: Buffer, offset: number, at: number, unit: number): boolean {
  if (buffer[at] !== 0) return false;
  return isZero(buffer.subarray(at, runEnd(buffer, offset, at, unit)));
}

function writeFailure(offset: number, error: unknown): BlockError {
  return requestFailure(`error while writing at byte ${offset}`, error);
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
