import { alignDown } from '../base/align.js';
import { failureOf } from '../base/async.js';
import { given } from '../base/given.js';
import { MiB } from '../base/limits.js';
import { isZero } from '../base/zero.js';
import type { BlockBackend } from '../block/backend.js';
import { whenOpen } from '../block/copy-turn.js';
import type { Stretch } from '../block/dirty-bitmap.js';
import { hasLostWrites } from '../block/lost-writes.js';
import type { Node } from '../block/node.js';
import { Flag } from '../block/request.js';
import { ZeroTarget } from '../block/zero-target.js';
import { isRetried, PIECE_BYTES, RETRY_MS } from './copy-window.js';
import type { Job } from './job.js';
import { type FailureFate, JobCancelled } from './job-errors.js';
import type { Tally } from './job-progress.js';
import type { PieceBuffers } from './piece-buffers.js';
import type { ChunkHashes } from './verified/chunk-hashes.js';

/** Writeback of the target starts whenever this much was written to it. */
const WRITEBACK_BYTES = 32 * MiB;

/** See MoverOptions. */
export interface CopyTargetOptions {
  readonly job: Job;
  readonly target: BlockBackend;
  readonly unmap: boolean;
  readonly skipKnownZeroes: boolean;
  readonly compress?: boolean;
  readonly compares?: boolean | undefined;
  readonly hashes?: ChunkHashes | undefined;
  readonly tally: Tally;
  readonly buffers: PieceBuffers;
}

/** Of a unit, alike in itself: data that was read, or zeroes. */
export interface UnitPart extends Stretch {
  buffer?: Buffer;
  /** The buffer is somebody's, and not of those that are used again. */
  isOwn?: boolean;
}

/** How what a job copies gets into its target: data, and zeroes with as little as makes them. */
export class CopyTarget {
  readonly #options: CopyTargetOptions;
  readonly #zeroes: ZeroTarget;
  /** Compressed writes that failed: a part of each may be there. */
  readonly torn = new Set<Stretch>();
  #unflushedBytes = 0;

  constructor(options: CopyTargetOptions) {
    this.#options = options;
    const { target, unmap, skipKnownZeroes: believesStatus } = options;
    this.#zeroes = new ZeroTarget(target, { unmap, believesStatus });
  }

  /** Writes data, or zeroes where there is no buffer. */
  async put(
    { offset, lengthBytes, buffer: whole, isOwn = false }: UnitPart,
    fate: FailureFate,
  ): Promise<void> {
    const { target, buffers } = this.#options;
    const back = (used: Buffer): void => {
      if (!isOwn) buffers.giveBack(used);
    };
    if (!whole) {
      for (let done = 0; done < lengthBytes;)
        done += await this.#zeroFirst(offset + done, lengthBytes - done, fate);
      return;
    }
    const buffer = whole.subarray(0, lengthBytes);
    if (await this.#isAlike(offset, buffer, fate)) {
      this.#options.tally.skippedBytes += lengthBytes;
      back(whole);
      return;
    }
    const write = (): Promise<void> | undefined => {
      if (this.#options.compress === true) return this.#writeCompressed(offset, buffer);
      return target.tryWrite(offset, buffer, Flag.none) ? undefined : target.write(offset, buffer, Flag.none);
    };
    await this.#write(write, fate);
    back(whole);
    this.wrote(lengthBytes);
  }

  /** What was written of it when it failed must go before it is written again: nothing is compressed over data. */
  async #writeCompressed(offset: number, buffer: Buffer): Promise<void> {
    const { target } = this.#options;
    const end = offset + buffer.length;
    for (const torn of [...this.torn]) {
      if (torn.offset >= end || torn.offset + torn.lengthBytes <= offset) continue;
      // Whoever writes another part of it meanwhile comes after that.
      this.torn.delete(torn);
      await this.#tornByFailure(torn, () => target.writeZeroes(torn.offset, torn.lengthBytes, Flag.mayUnmap));
    }
    const stretch = { offset, lengthBytes: buffer.length };
    await this.#tornByFailure(stretch, () => target.write(offset, buffer, Flag.compressed));
  }

  async #tornByFailure(stretch: Stretch, request: () => Promise<void>): Promise<void> {
    try {
      await request();
    } catch (error) {
      this.torn.add(stretch);
      throw error;
    }
  }

  /** Whether the target is known to hold it already. */
  async #isAlike(offset: number, buffer: Buffer, fate: FailureFate): Promise<boolean> {
    const { target, compares, buffers } = this.#options;
    if (compares !== true) return false;
    const whole = buffers.take(buffer.length);
    const there = whole.subarray(0, buffer.length);
    await this.#write(() => (target.tryRead(offset, there) ? undefined : target.read(offset, there)), fate);
    const isAlike = there.equals(buffer);
    buffers.giveBack(whole);
    return isAlike;
  }

  /** Writes what was read so. */
  async putWhole(offset: number, bytes: Buffer, fate: FailureFate): Promise<void> {
    const pieceBytes = this.#options.compress === true ? bytes.length : PIECE_BYTES;
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      const part = bytes.subarray(at, at + pieceBytes);
      const buffer = isZero(part) ? undefined : part;
      await this.put(
        { offset: offset + at, lengthBytes: part.length, isOwn: true, ...given({ buffer }) },
        fate,
      );
    }
  }

  /**
   * Makes a first part of a stretch zeroes with no data written for it: whole units, or all. Answers how long that is.
   * Errors: of the target.
   */
  async zeroQuickly(offset: number, lengthBytes: number, unit: number): Promise<number> {
    const { skipKnownZeroes } = this.#options;
    const first = skipKnownZeroes ? await this.#zeroes.first(offset, lengthBytes) : undefined;
    if (first?.zero !== true) return (await this.#zeroes.writeFast(offset, lengthBytes)) ? lengthBytes : 0;
    return first.lengthBytes === lengthBytes ? lengthBytes : alignDown(first.lengthBytes, unit);
  }

  /** How long a first part of a stretch is known to be zeroes already. */
  async knownZeroBytes(offset: number, lengthBytes: number): Promise<number> {
    const first = await this.#zeroes.first(offset, lengthBytes);
    return first.zero ? first.lengthBytes : 0;
  }

  /** Whether all of it is, without asking. */
  isKnownZero(offset: number, lengthBytes: number): boolean {
    return this.#zeroes.isKnown(offset, lengthBytes);
  }

  /** Makes a stretch of the target read as zeroes. */
  async zero(offset: number, lengthBytes: number): Promise<void> {
    const { job, target, hashes } = this.#options;
    for (let done = 0; done < lengthBytes;) {
      if (job.isCancelled) throw new JobCancelled();
      done += await whenOpen(target, () => this.#zeroFirst(offset + done, lengthBytes - done, 'policy'));
    }
    hashes?.zeroes(offset, lengthBytes);
  }

  /**
   * Makes a first part read as zeroes, whole units or all: what the target holds may change within a unit. Answers how
   * long that is.
   */
  async zeroUnits(offset: number, lengthBytes: number, unit: number, fate: FailureFate): Promise<number> {
    let done = await this.#zeroFirst(offset, lengthBytes, fate);
    while (done < lengthBytes && done % unit !== 0) {
      const rest = Math.min(lengthBytes - done, unit - (done % unit));
      done += await this.#zeroFirst(offset + done, rest, fate);
    }
    return done;
  }

  /** The same of all that is alike at `offset`; answers how long that is. */
  async #zeroFirst(offset: number, lengthBytes: number, fate: FailureFate): Promise<number> {
    let length = lengthBytes;
    if (this.#options.skipKnownZeroes) {
      const first = await this.#zeroes.first(offset, length);
      length = first.lengthBytes;
      if (first.zero) return length;
    }
    if (this.#options.compares === true) {
      const first = Math.min(length, PIECE_BYTES);
      if (await this.#isAlike(offset, Buffer.alloc(first), fate)) return first;
      length = first;
    }
    await this.#write(() => this.#zeroes.write(offset, length), fate);
    return length;
  }

  async #write<T>(request: () => Promise<T> | T, fate: FailureFate): Promise<T> {
    try {
      return await request();
    } catch (error) {
      throw this.#options.job.ioError('write', error, fate);
    }
  }

  /**
   * Everything moved so far is durable afterwards, unless `isToCopy` says that something is to be copied again, which is
   * answered: then a flush that failed is not done again before that. What is gone and cannot be copied again ends the job.
   */
  async flush(isToCopy: () => boolean = () => false): Promise<boolean> {
    const { job, target } = this.#options;
    for (;;) {
      const failure = await failureOf(() => whenOpen(target, () => target.flush()));
      const isAgain = isToCopy();
      if (!failure) return isAgain;
      const fate = !isAgain && hasLostWrites(target.node) ? 'lost' : 'policy';
      const error = job.ioError('write', failure.error, fate);
      if (!isRetried(error)) throw error;
      await job.pace.sleep(RETRY_MS);
      await job.pace.checkpoint(() => undefined);
      if (isToCopy() || isAgain) return true;
    }
  }

  /** So much was. */
  wrote(bytes: number): void {
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
