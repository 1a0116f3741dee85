import { Notifier } from '../base/async.js';
import { alignDown } from '../base/align.js';
import { KiB, MiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import type { IoDriver } from '../block/driver.js';
import type { ChainStatus } from '../block/chain-status.js';
import type { Node } from '../block/node.js';
import { FilePayload } from '../block/payload.js';
import { Flag } from '../block/request.js';
import { asError, type Job } from './job.js';

/** Data is moved in pieces of at most this. */
export const PIECE_BYTES = MiB;
/** Most that a job has in flight at a time, and in how many pieces. */
const WINDOW_BYTES = 16 * MiB;
const WINDOW_PIECES = 16;
/** Zeroes cost no data: one request may cover this much. */
export const ZERO_BYTES = 1024 * MiB;
/** A piece so small is read and written, not offloaded. */
const COPIED_AT_ONCE_BYTES = 256 * KiB;
/** Writeback of the target starts whenever this much was written to it. */
const WRITEBACK_BYTES = 32 * MiB;

/** The pieces that a job has in flight. */
export class CopyWindow {
  readonly #job: Job;
  readonly #windowBytes: number;
  #bytes = 0;
  #pieces = 0;
  #failure: Error | undefined;
  readonly #done = new Notifier();

  constructor(job: Job, windowBytes = WINDOW_BYTES) {
    this.#job = job;
    this.#windowBytes = windowBytes;
  }

  /** Largest piece that keeps the job's rate limit finely; whole units of `unit` bytes. */
  pieceBytes(unit: number): number {
    const most = Math.min(PIECE_BYTES, this.#job.limit.sliceBytes);
    return Math.max(unit, alignDown(Math.floor(most), unit));
  }

  #isFull(): boolean {
    return this.#pieces > 0 && (this.#pieces >= WINDOW_PIECES || this.#bytes >= this.#windowBytes);
  }

  /**
   * Waits, if it must, until there is room for a piece and the job may go on: it is not paused, within its rate, and has
   * given way to others. Throws what a piece failed with, and JobCancelled.
   */
  room(wake?: () => boolean): Promise<void> | undefined {
    const isOpen = this.#failure === undefined && !this.#isFull() && !this.#job.needsCheckpoint;
    return isOpen ? undefined : this.#untilRoom(wake);
  }

  async #untilRoom(wake?: () => boolean): Promise<void> {
    while (this.#isFull()) await this.#done.wait();
    this.#throwFailure();
    if (!this.#job.needsCheckpoint) return;
    await this.#job.checkpoint(() => this.quiet(), wake);
    this.#throwFailure();
  }

  /** A piece that is done by `attempt`, unless it answers false: then the caller launches it. After room(). */
  isDoneNow(rateBytes: number, attempt: () => boolean): boolean {
    if (!attempt()) return false;
    this.spend(rateBytes);
    return true;
  }

  /** What was copied without a wait costs of the rate limit too. */
  spend(rateBytes: number): void {
    this.#job.limit.spend(rateBytes);
  }

  /** Starts a piece; after room(). `rateBytes`: what it costs of the rate limit. */
  launch(rateBytes: number, work: () => Promise<void>): void {
    this.spend(rateBytes);
    this.#bytes += rateBytes;
    this.#pieces++;
    void work()
      .catch((error: unknown) => {
        this.#failure ??= asError(error);
      })
      .then(() => {
        this.#bytes -= rateBytes;
        this.#pieces--;
        this.#done.notify();
      });
  }

  /** Waits until nothing is in flight; does not throw. */
  async quiet(): Promise<void> {
    await this.#done.until(() => this.#pieces === 0);
  }

  /** The same, and throws what a piece failed with. */
  async finish(): Promise<void> {
    await this.quiet();
    this.#throwFailure();
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }
}

export interface MoverOptions {
  job: Job;
  /** What is read: the node with its chain. */
  source: BlockBackend;
  target: BlockBackend;
  /** Zeroes may deallocate. */
  unmap: boolean;
  /**
   * Zeroes need not be written where the target reads as zeroes already. False while the target lacks a backing file
   * that it is to get.
   */
  skipKnownZeroes: boolean;
  /**
   * The target is the next layer below this one of the source's chain: what no layer down to here holds is in the
   * target already, and is not copied onto itself.
   */
  lowest?: Node | undefined;
}

/** Moves content from a source to a target: holes and zeroes as such, plain extents by the kernel where it can. */
export class Mover {
  readonly #options: MoverOptions;
  readonly #buffers: Buffer[] = [];
  #unflushedBytes = 0;

  constructor(options: MoverOptions) {
    this.#options = options;
  }

  /**
   * Copies a stretch as the source's chain reads now. Nobody else writes there to the target meanwhile. `data`: the
   * chain's status at its beginning, if that is known to be data (or was: data that has turned to zeroes is copied too).
   */
  async copy(offset: number, lengthBytes: number, data?: ChainStatus): Promise<void> {
    const { source, lowest } = this.#options;
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      const from = at;
      const status =
        data ?? (await this.#read(() => source.node.statusThroughChain(from, end - from, lowest)));
      const length = Math.min(status.lengthBytes, end - from);
      data = undefined;
      at += length;
      if (lowest && !status.allocated) continue;
      if (status.zero) await this.zero(from, length);
      else await this.copyData(from, length);
    }
  }

  /**
   * copy() of a first part of a stretch, as far as no wait is needed and its extents are small. Answers how long that
   * part is; what lies behind it is as it was, as far as it matters.
   */
  tryCopy(offset: number, lengthBytes: number, data?: ChainStatus): number {
    let done = 0;
    // So long is nothing but zeroes, of which copy() learns with fewer questions.
    if (lengthBytes > PIECE_BYTES) return 0;
    while (done < lengthBytes) {
      const extentBytes = this.#tryCopyExtent(offset + done, lengthBytes - done, data);
      if (extentBytes === 0) break;
      done += extentBytes;
      data = undefined;
    }
    return done;
  }

  /** Answers the length of what was copied: all that is alike at `offset`, or 0. */
  #tryCopyExtent(offset: number, lengthBytes: number, data: ChainStatus | undefined): number {
    const { source, lowest } = this.#options;
    const status = data ?? source.node.tryStatusThroughChain(offset, lengthBytes, lowest);
    if (!status) return 0;
    const extentBytes = Math.min(status.lengthBytes, lengthBytes);
    if (lowest && !status.allocated) return extentBytes;
    const isDone = status.zero
      ? this.#isKnownZero(offset, extentBytes)
      : this.tryCopyData(offset, extentBytes);
    return isDone ? extentBytes : 0;
  }

  #isKnownZero(offset: number, lengthBytes: number): boolean {
    const { target, skipKnownZeroes } = this.#options;
    const status = skipKnownZeroes ? target.node.tryStatusThroughChain(offset, lengthBytes) : undefined;
    return status !== undefined && status.zero && status.lengthBytes >= lengthBytes;
  }

  /** copyData() of a small stretch without a wait. */
  tryCopyData(offset: number, lengthBytes: number): boolean {
    if (lengthBytes > COPIED_AT_ONCE_BYTES) return false;
    const { source, target } = this.#options;
    const whole = this.#takeBuffer();
    const buffer = whole.subarray(0, lengthBytes);
    try {
      if (!source.tryRead(offset, buffer) || !target.tryWrite(offset, buffer, 0)) return false;
    } catch {
      // Repeated, it fails again, and is told as it should.
      return false;
    } finally {
      this.#buffers.push(whole);
    }
    this.#startWriteback(lengthBytes);
    return true;
  }

  /** Makes a stretch of the target read as zeroes. */
  async zero(offset: number, lengthBytes: number): Promise<void> {
    const { target, unmap, skipKnownZeroes } = this.#options;
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      let length = end - at;
      if (skipKnownZeroes) {
        const status = await this.#write(() => target.node.statusThroughChain(at, length));
        length = status.lengthBytes;
        if (status.zero) {
          at += length;
          continue;
        }
      }
      const from = at;
      await this.#write(() => target.writeZeroes(from, length, unmap ? Flag.mayUnmap : Flag.none));
      at += length;
    }
  }

  /** Copies a stretch that holds data. */
  async copyData(offset: number, lengthBytes: number): Promise<void> {
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      if (lengthBytes <= COPIED_AT_ONCE_BYTES) {
        // In memory, most of the time: cheaper than to find out whether the kernel can copy it.
        await this.#readAndWrite(at, end - at);
        break;
      }
      const offloaded = await this.#offload(at, end - at);
      if (offloaded > 0) at += offloaded;
      else {
        const length = Math.min(end - at, PIECE_BYTES);
        await this.#readAndWrite(at, length);
        at += length;
      }
    }
    this.#startWriteback(lengthBytes);
  }

  /** copy_file_range of a first part of the stretch; answers its length, 0 when it must be read and written. */
  async #offload(offset: number, lengthBytes: number): Promise<number> {
    const { source, target } = this.#options;
    if (!protocolOf(target.node)?.copyFrom) return 0;
    const located = await this.#read(() => source.node.io.locate(offset, lengthBytes));
    if (located.kind !== 'plain') return 0;
    try {
      if (!located.io.copyFrom) return 0;
      const payload = new FilePayload(located.io, located.offset, located.lengthBytes);
      await target.writePayload(offset, payload);
      return located.lengthBytes;
    } catch {
      // Which side failed shows when the piece is read and written.
      return 0;
    } finally {
      located.release();
    }
  }

  #takeBuffer(): Buffer {
    return this.#buffers.pop() ?? this.#options.job.buffer(PIECE_BYTES);
  }

  async #readAndWrite(offset: number, lengthBytes: number): Promise<void> {
    const { source, target } = this.#options;
    const whole = this.#takeBuffer();
    const buffer = whole.subarray(0, lengthBytes);
    try {
      await this.#read(() => (source.tryRead(offset, buffer) ? undefined : source.read(offset, buffer)));
      await this.#write(() =>
        target.tryWrite(offset, buffer, 0) ? undefined : target.write(offset, buffer),
      );
    } finally {
      this.#buffers.push(whole);
    }
  }

  async #read<T>(request: () => Promise<T> | T): Promise<T> {
    try {
      return await request();
    } catch (error) {
      throw this.#options.job.ioError('read', error);
    }
  }

  async #write<T>(request: () => Promise<T> | T): Promise<T> {
    try {
      return await request();
    } catch (error) {
      throw this.#options.job.ioError('write', error);
    }
  }

  /** Everything moved so far is durable afterwards. */
  flush(): Promise<void> {
    return this.#write(() => this.#options.target.flush());
  }

  #startWriteback(bytes: number): void {
    this.#unflushedBytes += bytes;
    if (this.#unflushedBytes < WRITEBACK_BYTES) return;
    this.#unflushedBytes = 0;
    startWriteback(this.#options.target.node);
  }
}

/** Starts writeback of all that the file below a node has dirty; a hint. */
export function startWriteback(node: Node): void {
  const bottom = bottomOf(node);
  bottom.instance.io?.startWriteback?.(0, bottom.lengthBytes);
}

function bottomOf(node: Node): Node {
  let at = node;
  for (let edge = at.filtered; edge; edge = at.filtered) at = edge.node;
  return at;
}

/** The protocol that stores a node's data. */
function protocolOf(node: Node): IoDriver | undefined {
  return bottomOf(node).instance.io;
}
