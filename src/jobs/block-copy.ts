import { alignDown } from '../base/align.js';
import { KiB, MiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import type { ChainStatus } from '../block/chain-status.js';
import type { Stretch } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import { protocolOf } from '../block/protocol-below.js';
import { FileSource, SentSource } from '../block/file-source.js';
import { areOpen, type CopyTurn, whenOpen } from '../block/copy-turn.js';
import { isZeroForGood } from '../block/zero-target.js';
import { CopyTarget, type UnitPart } from './copy-target.js';
import { PIECE_BYTES } from './copy-window.js';
import type { Job } from './job.js';
import type { FailureFate } from './job-errors.js';
import type { Tally } from './job-progress.js';
import { PieceBuffers } from './piece-buffers.js';
import type { ChunkHashes } from './verified/chunk-hashes.js';
import { statusOrData, tryStatus } from './source-status.js';

/** Zeroes cost no data: one request may cover this much. */
export const ZERO_BYTES = 1024 * MiB;
/** A piece so small is read and written, not offloaded, where that needs no wait. */
const COPIED_AT_ONCE_BYTES = 256 * KiB;
/** The same where the target always needs one: less costs more to send from a file than to copy. */
const SENT_AS_BYTES = 16 * KiB;
/** Longest piece that the kernel copies. */
const OFFLOADED_BYTES = 4 * MiB;

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
  /** What holds data is written compressed, in units of the target's clusters. */
  compress?: boolean;
  /** The kernel copies where it can; default: true. */
  offloads?: boolean | undefined;
  /** The target may hold much of it already: what is alike there is not written. */
  compares?: boolean | undefined;
  /** Told of what is written, in whole chunks, which divide the copy's units: all of it passes through memory. */
  hashes?: ChunkHashes | undefined;
  /** Told of what copyFirst and tryCopy do without copying data. */
  tally?: Tally;
}

/** Moves content from a source to a target: holes and zeroes as such, plain extents by the kernel where it can. */
export class Mover {
  readonly #options: MoverOptions;
  readonly #buffers: PieceBuffers;
  readonly #tally: Tally;
  readonly target: CopyTarget;

  constructor(options: MoverOptions) {
    this.#options = options;
    this.#tally = options.tally ?? { zeroBytes: 0, skippedBytes: 0 };
    this.#buffers = new PieceBuffers(options.job.host);
    this.target = new CopyTarget({ ...options, tally: this.#tally, buffers: this.#buffers });
  }

  /**
   * Copies a first part of a stretch as the source's chain reads now, with one request to the target where it can; whole
   * units of `unit` bytes, or all. Answers how long that part is. Nobody else writes there to the target meanwhile. `data`:
   * the chain's status at its beginning, if that is known to be data (or was: data that has turned to zeroes is copied too).
   */
  async copyFirst(turn: CopyTurn, { offset, lengthBytes }: Stretch, options: CopyOptions): Promise<number> {
    const { unit, data, fate = 'policy' } = options;
    const status = data ?? (await this.#status(offset, lengthBytes));
    const alike = Math.min(status.lengthBytes, lengthBytes);
    const whole = alike === lengthBytes ? alike : alignDown(alike, unit);
    if (whole === 0) {
      const one = Math.min(unit, lengthBytes);
      if (this.#options.compress === true) await this.#copyData(turn, offset, one, fate, unit);
      else await this.#copyMixed(turn, offset, one, fate);
      return one;
    }
    const { source, lowest } = this.#options;
    if (lowest && !status.allocated) {
      this.#tally.skippedBytes += whole;
      return whole;
    }
    if (status.zero) {
      turn.doneWith(source);
      const zeroed = await this.target.zeroUnits(offset, whole, unit, fate);
      this.#tally.zeroBytes += zeroed;
      this.#options.hashes?.zeroes(offset, zeroed);
      return zeroed;
    }
    const length = Math.min(whole, Math.max(this.longestBytes(), unit));
    await this.#copyData(turn, offset, length, fate, unit);
    return length;
  }

  /** Longest piece of data. */
  longestBytes(): number {
    const { source, target, offloads = true, hashes, compares } = this.#options;
    return offloads && !hashes && compares !== true ? longestBetween(source.node, target.node) : PIECE_BYTES;
  }

  /** Copies a unit of which parts are not alike: reads all of them first, so that the source does not wait for the target. */
  async #copyMixed(turn: CopyTurn, offset: number, lengthBytes: number, fate: FailureFate): Promise<void> {
    for (const part of await this.take(turn, { offset, lengthBytes }, fate))
      await this.target.put(part, fate);
  }

  /** Reads a stretch, whose parts the target's put() is given then: so long they are in memory. */
  async take(turn: CopyTurn, { offset, lengthBytes }: Stretch, fate: FailureFate): Promise<UnitPart[]> {
    const { source, lowest, compress = false } = this.#options;
    if (compress) {
      const buffer = await this.readWhole({ offset, lengthBytes }, fate);
      turn.doneWith(source);
      return [{ offset, lengthBytes, buffer, isOwn: true }];
    }
    const end = offset + lengthBytes;
    const parts: UnitPart[] = [];
    const tally: Tally = { zeroBytes: 0, skippedBytes: 0 };
    for (let at = offset; at < end;) {
      const status = await this.#status(at, end - at);
      const alike = Math.min(status.lengthBytes, end - at);
      const isSkipped = lowest !== undefined && !status.allocated;
      const isData = !isSkipped && !status.zero;
      const length = isData ? Math.min(alike, PIECE_BYTES) : alike;
      const part = { offset: at, lengthBytes: length };
      if (isSkipped) tally.skippedBytes += length;
      else if (isData) parts.push({ ...part, buffer: await this.#readPart(part, fate) });
      else parts.push(part);
      if (status.zero && !isSkipped) tally.zeroBytes += length;
      at += length;
    }
    await this.#hashMixed(offset, lengthBytes, fate);
    turn.doneWith(source);
    this.#tally.zeroBytes += tally.zeroBytes;
    this.#tally.skippedBytes += tally.skippedBytes;
    return parts;
  }

  /** What a stretch reads as, in memory of its own. */
  async readWhole({ offset, lengthBytes }: Stretch, fate: FailureFate): Promise<Buffer> {
    const { source, hashes } = this.#options;
    const bytes = Buffer.allocUnsafe(lengthBytes);
    await this.#read(() => (source.tryRead(offset, bytes) ? undefined : source.read(offset, bytes)), fate);
    await hashes?.data(offset, bytes);
    return bytes;
  }

  /** What is held by layers below counts too: the target has it. */
  async #hashMixed(offset: number, lengthBytes: number, fate: FailureFate): Promise<void> {
    const { hashes } = this.#options;
    if (!hashes) return;
    for (let done = 0; done < lengthBytes; done += PIECE_BYTES) {
      const part = { offset: offset + done, lengthBytes: Math.min(lengthBytes - done, PIECE_BYTES) };
      const whole = await this.#readPart(part, fate);
      await hashes.data(part.offset, whole.subarray(0, part.lengthBytes));
      this.#buffers.giveBack(whole);
    }
  }

  /** Answers a buffer of which a first part is filled. That of a request that failed may still be in use. */
  async #readPart({ offset, lengthBytes }: Stretch, fate: FailureFate): Promise<Buffer> {
    const { source } = this.#options;
    const whole = this.#buffers.take(lengthBytes);
    const buffer = whole.subarray(0, lengthBytes);
    await this.#read(() => (source.tryRead(offset, buffer) ? undefined : source.read(offset, buffer)), fate);
    return whole;
  }

  #status(offset: number, lengthBytes: number): ChainStatus | Promise<ChainStatus> {
    const { source, lowest } = this.#options;
    return statusOrData(source.node, offset, lengthBytes, lowest);
  }

  /**
   * copyFirst() as far as no wait is needed and extents are small: whole units, or all. Answers how long that part is;
   * what lies behind it is as it was, as far as it matters.
   */
  tryCopy(offset: number, lengthBytes: number, { unit, data }: CopyOptions): number {
    const { source, target, hashes, compares } = this.#options;
    // So long is nothing but zeroes, of which others learn with fewer questions.
    if (hashes || compares === true || lengthBytes > PIECE_BYTES || !areOpen([source, target])) return 0;
    let whole = 0;
    let [zeroBytes, skippedBytes] = [0, 0];
    for (let done = 0; done < lengthBytes;) {
      const extent = this.#tryCopyExtent(offset + done, lengthBytes - done, done === 0 ? data : undefined);
      if (!extent) break;
      done += extent.lengthBytes;
      if (extent.kind === 'zero') zeroBytes += extent.lengthBytes;
      else if (extent.kind === 'skipped') skippedBytes += extent.lengthBytes;
      if (done !== lengthBytes && done % unit !== 0) continue;
      whole = done;
      this.#tally.zeroBytes += zeroBytes;
      this.#tally.skippedBytes += skippedBytes;
      [zeroBytes, skippedBytes] = [0, 0];
    }
    return whole;
  }

  /** Copies all that is alike at `offset`; undefined: that needs a wait. */
  #tryCopyExtent(offset: number, lengthBytes: number, data: ChainStatus | undefined): Copied | undefined {
    const { source, lowest } = this.#options;
    const status = data ?? tryStatus(source.node, offset, lengthBytes, lowest);
    if (!status) return undefined;
    const extent = { lengthBytes: Math.min(status.lengthBytes, lengthBytes) };
    if (lowest && !status.allocated) return { ...extent, kind: 'skipped' };
    if (!status.zero)
      return this.tryCopyData(offset, extent.lengthBytes) ? { ...extent, kind: 'data' } : undefined;
    return this.#isKnownZero(offset, extent.lengthBytes) ? { ...extent, kind: 'zero' } : undefined;
  }

  #isKnownZero(offset: number, lengthBytes: number): boolean {
    const { target, skipKnownZeroes } = this.#options;
    if (!skipKnownZeroes) return false;
    if (this.target.isKnownZero(offset, lengthBytes)) return true;
    const status = tryStatus(target.node, offset, lengthBytes);
    return status !== undefined && isZeroForGood(target.node, status) && status.lengthBytes >= lengthBytes;
  }

  /** Copies a small stretch of data without a wait. */
  tryCopyData(offset: number, lengthBytes: number): boolean {
    const { source, target, compress } = this.#options;
    if (compress === true || lengthBytes > COPIED_AT_ONCE_BYTES || !areOpen([source, target])) return false;
    if (!protocolOf(target.node)?.tryWrite) return false;
    const whole = this.#buffers.take(lengthBytes);
    const buffer = whole.subarray(0, lengthBytes);
    try {
      if (!source.tryRead(offset, buffer) || !target.tryWrite(offset, buffer, 0)) return false;
    } catch {
      // Repeated, it fails again, and is told as it should.
      return false;
    } finally {
      this.#buffers.giveBack(whole);
    }
    this.target.wrote(lengthBytes);
    return true;
  }

  /**
   * How long a first part of a stretch reads as zeroes in the source and, for certain, in the target already. Whoever
   * changes one of them later sees to the other: nothing needs to be locked.
   */
  async zeroBytes(offset: number, lengthBytes: number): Promise<number> {
    const { source, target, skipKnownZeroes, hashes } = this.#options;
    if (!skipKnownZeroes || hashes) return 0;
    const above = await whenOpen(source, () => this.#status(offset, lengthBytes));
    if (!above.zero) return 0;
    const length = Math.min(above.lengthBytes, lengthBytes);
    return whenOpen(target, () => this.target.knownZeroBytes(offset, length));
  }

  /**
   * copyFirst() of what reads as zeroes, as far as no data is written for it: whole units, or all. Answers how long that
   * is. Nobody else writes there to the target meanwhile. Errors: of the target.
   */
  async zeroQuickly({ offset, lengthBytes }: Stretch, unit: number): Promise<number> {
    const { lowest, hashes } = this.#options;
    const status = await this.#status(offset, lengthBytes);
    const alike = status.lengthBytes >= lengthBytes ? lengthBytes : alignDown(status.lengthBytes, unit);
    if (lowest && !status.allocated) {
      this.#tally.skippedBytes += alike;
      return alike;
    }
    if (!status.zero || alike === 0) return 0;
    const zeroed = await this.target.zeroQuickly(offset, alike, unit);
    this.#tally.zeroBytes += zeroed;
    hashes?.zeroes(offset, zeroed);
    return zeroed;
  }

  /** Copies a stretch that holds data. */
  async #copyData(
    turn: CopyTurn,
    offset: number,
    lengthBytes: number,
    fate: FailureFate,
    unit: number,
  ): Promise<void> {
    const pieceBytes = this.#options.compress === true ? Math.max(PIECE_BYTES, unit) : PIECE_BYTES;
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      const offloaded = this.#isSmall(lengthBytes)
        ? 0
        : await this.#offload(turn, { offset: at, lengthBytes: end - at }, fate);
      if (offloaded > 0) {
        at += offloaded;
        this.target.wrote(offloaded);
      } else {
        // A small piece is in memory, most of the time: cheaper than to find out whether the kernel can copy it.
        const length = Math.min(end - at, pieceBytes);
        const { source } = this.#options;
        const read = at + length === end ? (): void => turn.doneWith(source) : (): void => undefined;
        await this.#readAndWrite(at, length, read, fate);
        at += length;
      }
    }
  }

  #isSmall(lengthBytes: number): boolean {
    if (lengthBytes > COPIED_AT_ONCE_BYTES) return false;
    return lengthBytes <= SENT_AS_BYTES || protocolOf(this.#options.target.node)?.tryWrite !== undefined;
  }

  /** A copy without reading of a first part of the stretch; answers its length, 0 when it must be read and written. */
  async #offload(turn: CopyTurn, { offset, lengthBytes }: Stretch, fate: FailureFate): Promise<number> {
    const { source, target, compress = false, offloads = true, hashes, compares } = this.#options;
    if (compress || !offloads || hashes || compares === true) return 0;
    const to = protocolOf(target.node);
    if (!to?.copyFrom) return 0;
    if (to.copiesToPeer === true) return this.#send(turn, { offset, lengthBytes }, fate);
    const located = await this.#read(() => source.node.io.locate(offset, lengthBytes), fate);
    if (located.kind !== 'plain') return 0;
    if (!located.io.file) {
      located.release();
      return 0;
    }
    const bytes = new FileSource(located.io, located.offset, located.release);
    try {
      await target.writeFrom(offset, located.lengthBytes, bytes);
      return located.lengthBytes;
    } catch (error) {
      throw this.#options.job.ioError(bytes.failedToRead ? 'read' : 'write', error, fate);
    }
  }

  /**
   * The same to a peer: all of the stretch, or nothing of it. What changes in the source is copied again, or waits for the
   * turn's end: so neither its requests nor drained sections wait for the peer.
   */
  async #send(turn: CopyTurn, { offset, lengthBytes }: Stretch, fate: FailureFate): Promise<number> {
    const { source, target } = this.#options;
    let isWanted = false;
    let leave = (): void => void (isWanted = true);
    const wanted = (): void => leave();
    const located = await this.#read(() => source.node.io.locate(offset, lengthBytes, wanted), fate);
    if (located.kind !== 'plain') return 0;
    if (!located.io.file || located.lengthBytes < lengthBytes) {
      located.release();
      return 0;
    }
    const forget = source.whenQuiesced(wanted);
    const left = (): void => {
      forget();
      located.release();
      turn.doneWith(source);
    };
    const bytes = new SentSource(located.io, located.offset, lengthBytes, left);
    leave = () => bytes.leave();
    if (isWanted || source.isQuiesced) bytes.leave();
    try {
      await target.writeFrom(offset, lengthBytes, bytes);
      return lengthBytes;
    } catch (error) {
      throw this.#options.job.ioError(bytes.failedToRead ? 'read' : 'write', error, fate);
    }
  }

  /** `read` is told when the source is not needed any more. */
  async #readAndWrite(
    offset: number,
    lengthBytes: number,
    read: () => void,
    fate: FailureFate,
  ): Promise<void> {
    const buffer = await this.#readPart({ offset, lengthBytes }, fate);
    read();
    await this.#options.hashes?.data(offset, buffer.subarray(0, lengthBytes));
    await this.target.put({ offset, lengthBytes, buffer }, fate);
  }

  async #read<T>(request: () => Promise<T> | T, fate: FailureFate): Promise<T> {
    try {
      return await request();
    } catch (error) {
      throw this.#options.job.ioError('read', error, fate);
    }
  }
}

interface Copied {
  lengthBytes: number;
  kind: 'data' | 'zero' | 'skipped';
}

/** Longest piece of data: what the kernel copies, on a thread, costs a job less the longer it is. */
export function longestBetween(source: Node, target: Node): number {
  if (!protocolOf(source)?.file || !protocolOf(target)?.copyFrom) return PIECE_BYTES;
  return OFFLOADED_BYTES;
}

export interface CopyOptions {
  /** A power of two that divides the offset. */
  unit: number;
  data?: ChainStatus | undefined;
  /** Default: what the job's error policies say. */
  fate?: FailureFate;
}
