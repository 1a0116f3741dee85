import { alignDown, alignUp } from '../../base/align.js';
import type { CancelSignal } from '../../base/cancel-signal.js';
import { BlockError, isUnsupported } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { Flag, hasFlag, IoRequest, withoutFlag } from '../request.js';
import type { MappedNode } from './mapped-node.js';
import type { MappedWriting } from './writing.js';

/** Zeroes that a format cannot express are written in pieces of this size. */
const ZERO_PIECE_BYTES = MiB;

/** Zeroes and discards: whole units in the tables, what is left as bytes or not at all. */
export class MappedZeroing {
  readonly #mapped: MappedNode;
  readonly #writing: MappedWriting;

  constructor(mapped: MappedNode, writing: MappedWriting) {
    this.#mapped = mapped;
    this.#writing = writing;
  }

  async writeZeroes(
    offset: number,
    lengthBytes: number,
    flags: number,
    signal?: CancelSignal,
  ): Promise<void> {
    const end = offset + lengthBytes;
    const done = await this.#zeroWholeUnits(offset, end, flags, signal);
    await this.#writeZeroBytes(offset, done.offset - offset);
    await this.#writeZeroBytes(done.end, end - done.end);
  }

  /** Turns whole units of [offset, end) into zero ones; answers which part that took care of. */
  async #zeroWholeUnits(
    offset: number,
    end: number,
    flags: number,
    signal: CancelSignal | undefined,
  ): Promise<{ offset: number; end: number }> {
    const { driver, node } = this.#mapped;
    const unit = driver.unitBytes;
    const from = alignDown(offset, unit);
    const to = alignUp(end, unit);
    const release = await this.#lock(from, to, signal);
    try {
      // A unit counts as whole too when the rest of it reads as zeroes already, or lies past the image's end.
      const start = (await this.readsZero(from, offset)) ? from : alignUp(offset, unit);
      const stop = (await this.readsZero(end, to)) ? to : alignDown(end, unit);
      if (hasFlag(flags, Flag.noFallback) && (start > offset || stop < end)) {
        throw new BlockError('unsupported', 'Operation not supported', { errno: 'ENOTSUP', node: node.name });
      }
      if (start >= stop) return { offset: end, end };
      const imageEnd = Math.max(node.lengthBytes, end);
      const passed = withoutFlag(flags, Flag.fua);
      await this.#mapped.zeroClusters(start, Math.min(stop, imageEnd) - start, passed);
      return { offset: Math.max(start, offset), end: Math.min(stop, end) };
    } catch (error) {
      if (!isUnsupported(error) || hasFlag(flags, Flag.noFallback)) throw error;
      return { offset: end, end };
    } finally {
      release();
    }
  }

  /** Holds all clusters of [from, to) alone. */
  #lock(from: number, to: number, signal: CancelSignal | undefined): (() => void) | Promise<() => void> {
    const { driver, ranges } = this.#mapped;
    const start = alignDown(from, driver.clusterBytes);
    return ranges.lockExclusive(start, alignUp(to, driver.clusterBytes) - start, signal);
  }

  /** Whether [from, to), a part of one unit, reads as zeroes; what lies past the image's end does. */
  async readsZero(from: number, to: number): Promise<boolean> {
    const { node } = this.#mapped;
    const end = Math.min(to, node.lengthBytes);
    for (let at = from; at < end;) {
      const status = await node.statusThroughChain(at, end - at);
      if (!status.zero) return false;
      at += status.lengthBytes;
    }
    return true;
  }

  async #writeZeroBytes(offset: number, lengthBytes: number): Promise<void> {
    for (let done = 0; done < lengthBytes; done += ZERO_PIECE_BYTES) {
      const piece = Math.min(ZERO_PIECE_BYTES, lengthBytes - done);
      const zeroes = IoRequest.ofBuffer(Buffer.alloc(piece));
      await this.#writing.write(zeroes, 0, piece, offset + done, Flag.none);
    }
  }

  async discard(offset: number, lengthBytes: number, signal?: CancelSignal): Promise<void> {
    const { driver, node } = this.#mapped;
    const unit = driver.unitBytes;
    const last = offset + lengthBytes;
    const start = alignUp(offset, unit);
    const end = last >= node.lengthBytes ? last : alignDown(last, unit);
    if (start >= end) return;
    const release = await this.#lock(start, end, signal);
    try {
      await driver.discardClusters(start, end - start);
    } finally {
      this.#mapped.changed(start, end - start);
      release();
    }
  }
}
