import { alignDown, alignUp } from '../base/align.js';
import { missing } from '../base/assert.js';
import type { CancelSignal } from '../base/cancel-signal.js';
import { errnoError, isUnsupported } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { IoDriver } from './driver.js';
import { FileSource } from './file-source.js';
import type { Node } from './node.js';
import type { RangeLock, Release } from './range-lock.js';
import { Flag, hasFlag, IoRequest } from './request.js';

/** Zeroes are written in pieces of at most this, where a driver has no cheaper way. */
const ZERO_PIECE_BYTES = MiB;

/**
 * Requests to a driver that moves the bytes itself: in its units, what is smaller padded and alone in its range, and
 * zeroes written where it has no cheaper way.
 */
export class AlignedIo {
  readonly #node: Node;
  readonly #ranges: RangeLock;

  constructor(node: Node, ranges: RangeLock) {
    this.#node = node;
    this.#ranges = ranges;
  }

  #io(): IoDriver {
    return this.#node.instance.io ?? missing(`io of '${this.#node.name}'`);
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    if (this.#node.instance.requestAlignmentBytes > 1)
      return this.#readUnits(request, from, lengthBytes, offset);
    if (this.#io().tryRead?.(request, from, lengthBytes, offset)) return;
    return this.#io().read(request, from, lengthBytes, offset);
  }

  async #readUnits(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const align = this.#node.instance.requestAlignmentBytes;
    const start = alignDown(offset, align);
    const end = alignUp(offset + lengthBytes, align);
    const release = await this.#ranges.lockShared(start, end - start, request.signal);
    try {
      request.assertIs(generation);
      request.begin();
      if (start === offset && end === offset + lengthBytes)
        return await this.#io().read(request, from, lengthBytes, offset);
      const bounce = Buffer.allocUnsafe(end - start);
      await this.#io().read(IoRequest.ofBuffer(bounce), 0, bounce.length, start);
      request.assertIs(generation);
      request.copyFrom(bounce.subarray(offset - start, offset - start + lengthBytes), from);
    } finally {
      release();
    }
  }

  /** Whether a write with FUA is durable by the driver's own doing. */
  #honoursFua(flags: number): boolean {
    return hasFlag(flags, Flag.fua) && this.#io().honoursFua === true;
  }

  /** Answers whether FUA, if asked for, is done. */
  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<boolean> {
    if (hasFlag(flags, Flag.compressed) && !this.#node.isFilter)
      throw errnoError('ENOTSUP', undefined, { node: this.#node.name, offset });
    const align = this.#node.instance.requestAlignmentBytes;
    if (align > 1 && !isAlignedRequest(offset, lengthBytes, align))
      return this.#writePadded(request, from, lengthBytes, offset, flags);
    const { generation } = request;
    const release =
      align > 1 ? await this.#ranges.lockShared(offset, lengthBytes, request.signal) : noRelease;
    try {
      request.assertIs(generation);
      request.begin();
      const { source } = request;
      if (
        source instanceof FileSource &&
        (await copyOffloaded(this.#io(), source, from, lengthBytes, offset))
      )
        return false;
      const isDurable = this.#honoursFua(flags);
      if (source) {
        const bytes = await source.bytes(from, lengthBytes);
        await this.#io().write(IoRequest.ofBuffer(bytes), 0, lengthBytes, offset, flags);
        return isDurable;
      }
      if (align === 1 && !isDurable && this.#io().tryWrite?.(request, from, lengthBytes, offset))
        return false;
      await this.#io().write(request, from, lengthBytes, offset, flags);
      request.assertIs(generation);
      return isDurable;
    } finally {
      release();
    }
  }

  /** Read-modify-write of a request that is smaller than the driver's unit. */
  async #writePadded(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<boolean> {
    const { generation } = request;
    const align = this.#node.instance.requestAlignmentBytes;
    const start = alignDown(offset, align);
    const end = alignUp(offset + lengthBytes, align);
    const release = await this.#ranges.lockExclusive(start, end - start, request.signal);
    request.begin();
    try {
      const bounce = Buffer.alloc(end - start);
      const padded = IoRequest.ofBuffer(bounce);
      await this.#readPadding(padded, start, end, offset, offset + lengthBytes);
      request.assertIs(generation);
      bounce.set(await request.bytes(from, lengthBytes), offset - start);
      request.assertIs(generation);
      const isDurable = this.#honoursFua(flags);
      await this.#io().write(padded, 0, bounce.length, start, flags);
      return isDurable;
    } finally {
      release();
    }
  }

  /** What is to stay of the units at both ends of [from, to); beyond the end of the node are zeroes. */
  async #readPadding(padded: IoRequest, start: number, end: number, from: number, to: number): Promise<void> {
    const { instance, lengthBytes } = this.#node;
    const align = instance.requestAlignmentBytes;
    const read = async (first: number, last: number): Promise<void> => {
      const inside = Math.min(alignUp(lengthBytes, align), last) - first;
      if (inside > 0) await this.#io().read(padded, first - start, inside, first);
    };
    const [hasHead, hasTail] = [from > start, to < end];
    const isOneRead = end - start === align || (hasHead && hasTail && end - start === 2 * align);
    if (hasHead) await instance.announce?.('pwritev_rmw_head');
    if (hasTail && isOneRead) await instance.announce?.('pwritev_rmw_tail');
    if (hasHead || isOneRead) await read(start, isOneRead ? end : start + align);
    if (hasHead) await instance.announce?.('pwritev_rmw_after_head');
    if (!hasTail) return;
    if (!isOneRead) {
      await instance.announce?.('pwritev_rmw_tail');
      await read(end - align, end);
    }
    await instance.announce?.('pwritev_rmw_after_tail');
  }

  async #writeZeroBytes(offset: number, lengthBytes: number): Promise<void> {
    const zeroes = IoRequest.ofBuffer(Buffer.alloc(lengthBytes));
    await this.write(zeroes, 0, lengthBytes, offset, Flag.none);
  }

  async writeZeroes(
    offset: number,
    lengthBytes: number,
    flags: number,
    signal: CancelSignal | undefined,
  ): Promise<void> {
    const align = this.#node.instance.requestAlignmentBytes;
    const start = Math.min(alignUp(offset, align), offset + lengthBytes);
    const end = Math.max(alignDown(offset + lengthBytes, align), start);
    if (start > offset) await this.#writeZeroBytes(offset, start - offset);
    if (end > start)
      await this.#writeZeroesAligned(start, end - start, flags, start > offset ? undefined : signal);
    const tail = offset + lengthBytes - end;
    if (tail > 0) await this.#writeZeroBytes(end, tail);
  }

  async #writeZeroesAligned(
    offset: number,
    lengthBytes: number,
    flags: number,
    signal: CancelSignal | undefined,
  ): Promise<void> {
    try {
      const release = await this.#ranges.lockShared(offset, lengthBytes, signal);
      try {
        return await this.#io().writeZeroes(offset, lengthBytes, flags);
      } finally {
        release();
      }
    } catch (error) {
      if (!isUnsupported(error) || hasFlag(flags, Flag.noFallback)) throw error;
    }
    for (let done = 0; done < lengthBytes; done += ZERO_PIECE_BYTES) {
      const piece = Math.min(ZERO_PIECE_BYTES, lengthBytes - done);
      await this.#writeZeroBytes(offset + done, piece);
    }
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    const align = this.#node.instance.requestAlignmentBytes;
    const start = alignUp(offset, align);
    const end = alignDown(offset + lengthBytes, align);
    if (end > start) await this.#io().discard(start, end - start);
  }
}

const noRelease: Release = () => undefined;

export function isAlignedRequest(offset: number, lengthBytes: number, align: number): boolean {
  return offset % align === 0 && lengthBytes % align === 0;
}

/** copy_file_range of all of a stretch; false: nothing relied on, read and write instead. */
async function copyOffloaded(
  io: IoDriver,
  source: FileSource,
  from: number,
  lengthBytes: number,
  offset: number,
): Promise<boolean> {
  if (!io.copyFrom) return false;
  try {
    for (let done = 0; done < lengthBytes;) {
      const copied = await io.copyFrom(
        source.io,
        source.offset + from + done,
        offset + done,
        lengthBytes - done,
      );
      // The source ends early (a sparse tail beyond its last byte): the generic path knows that it is zeroes.
      if (copied === 0) return false;
      done += copied;
    }
    return true;
  } catch {
    // copy_file_range does not say which side failed: read plus write tells.
    return false;
  }
}
