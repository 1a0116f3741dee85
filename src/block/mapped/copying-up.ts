import { alignDown, alignUp } from '../../base/align.js';
import { defined } from '../../base/assert.js';
import { isUnsupported } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import type { Edge } from '../edge.js';
import type { Located } from '../located.js';
import { FileSource, fileRequest } from '../file-source.js';
import type { Node } from '../node.js';
import { Flag, IoRequest, newMapping } from '../request.js';
import { COPIED_AT_ONCE_BYTES, type MappedNode } from './mapped-node.js';
import { JOINED_WRITE_BYTES, type MappedWriting } from './writing.js';
import type { MappedZeroing } from './zeroing.js';

/** Most that a read copies in one go, and looks at for zeroes, as QEMU. */
const READ_PIECE_BYTES = 16 * MiB;

/** Brings what the backing chain holds into the image: nothing changes for a reader. */
export class MappedCopyingUp {
  readonly #mapped: MappedNode;
  readonly #writing: MappedWriting;
  readonly #zeroing: MappedZeroing;
  /** Of tryCopyUp, which is at once. */
  readonly #own = new IoRequest();
  #buffer: Buffer | undefined;

  constructor(mapped: MappedNode, writing: MappedWriting, zeroing: MappedZeroing) {
    this.#mapped = mapped;
    this.#writing = writing;
    this.#zeroing = zeroing;
  }

  /**
   * Copies into units of [offset, offset + lengthBytes) that are not in this image. What the guest wrote meanwhile stays
   * as it is. `zeroes`: the range is known to read as zeroes below. Units are copied whole, those at the ends too.
   */
  async copyUp(offset: number, lengthBytes: number, zeroes: boolean): Promise<void> {
    const { driver, node, ranges } = this.#mapped;
    const { clusterBytes: cluster, unitBytes: unit } = driver;
    const to = Math.min(alignUp(offset + lengthBytes, unit), node.lengthBytes);
    for (let at = alignDown(offset, unit); at < to;) {
      // Part by part: who waits for one need not wait for the next.
      const held = alignDown(at, cluster);
      const release = await ranges.lockExclusive(held, alignUp(to, cluster) - held);
      try {
        at = await this.#copyFirst(at, to, offset, zeroes ? offset + lengthBytes : offset);
      } finally {
        release();
      }
    }
  }

  /**
   * The same of what is read, as far as it comes from layers down to `last`. What is all zeroes becomes zero clusters,
   * also where no layer has it.
   */
  async copyOnRead(offset: number, lengthBytes: number, last?: Node): Promise<void> {
    const { driver, node } = this.#mapped;
    const mapping = newMapping();
    for (let at = offset; at < offset + lengthBytes;) {
      await this.#mapped.map(at, offset + lengthBytes - at, mapping);
      let length = mapping.lengthBytes;
      const { child } = mapping;
      // A raw image has no clusters: what is missing is missing in its file.
      if (driver.clusterBytes === 1 && mapping.kind === 'data' && mapping.plain && child?.isWritable === true)
        await child.copyOnRead(mapping.hostOffset, length, last && { bottom: last });
      let isDue = mapping.kind === 'backing';
      const below = node.backingNode();
      if (isDue && last) {
        const status = below && (await below.statusThroughChain(at, length, last));
        isDue = status?.allocated === true;
        length = status?.lengthBytes ?? length;
      }
      if (isDue) {
        length = Math.min(length, READ_PIECE_BYTES);
        const from = alignDown(at, driver.unitBytes);
        const to = Math.min(alignUp(at + length, driver.unitBytes), node.lengthBytes);
        await this.#copyRead(from, to);
      }
      at += length;
    }
  }

  /** [from, to) are whole units. Others may have written to some of them meanwhile. */
  async #copyRead(from: number, to: number): Promise<void> {
    const { driver, ranges } = this.#mapped;
    const start = alignDown(from, driver.clusterBytes);
    const release = await ranges.lockExclusive(start, alignUp(to, driver.clusterBytes) - start);
    try {
      const mapping = newMapping();
      for (let at = from; at < to;) {
        await this.#mapped.map(at, to - at, mapping);
        const end = at + mapping.lengthBytes;
        if (mapping.kind === 'backing') {
          const request = await readBelow(this.#mapped.backing, at, end - at);
          await this.#mapped.announce('cor_write');
          if (!request.isZero(0, end - at) || !(await this.#zeroUnits(at, end))) {
            for (let done = at; done < end;) done = await this.#writeRead(request, at, done, end);
          }
        }
        at = end;
      }
    } finally {
      release();
    }
  }

  /** Writes bytes that were read from `start` on, from `at`; answers how far. */
  async #writeRead(request: IoRequest, start: number, at: number, end: number): Promise<number> {
    const reservation = await this.#mapped.reserve(at, end - at);
    try {
      const stop = Math.min(end, reservation.offset + reservation.lengthBytes);
      const done = await this.#writing.fill(reservation, at, stop, { request, from: 0, offset: start });
      this.#mapped.link(reservation);
      return done;
    } catch (error) {
      reservation.abort();
      throw error;
    }
  }

  /** A first part of [at, to), which is held; [zeroFrom, zeroTo) is known to read as zeroes. Answers where it ends. */
  async #copyFirst(at: number, to: number, zeroFrom: number, zeroTo: number): Promise<number> {
    const mapping = newMapping();
    await this.#mapped.map(at, to - at, mapping);
    const end = at + mapping.lengthBytes;
    if (mapping.kind !== 'backing') return end;
    if (zeroTo > zeroFrom && (await this.#zero(at, end, zeroFrom, zeroTo))) return end;
    return this.#copyPart(at, end);
  }

  /** copyUp() without a wait, of few whole units, none of them in this image, whose data is in memory; or false. */
  tryCopyUp(offset: number, lengthBytes: number): boolean {
    const { backing, driver, isHeard, ranges, scratch: mapping } = this.#mapped;
    const unit = driver.unitBytes;
    if (lengthBytes > COPIED_AT_ONCE_BYTES || offset % unit !== 0 || lengthBytes % unit !== 0) return false;
    if (!backing || offset + lengthBytes > backing.lengthBytes || isHeard) return false;
    if (!ranges.isIdle || !driver.tryMap(offset, lengthBytes, mapping)) return false;
    if (mapping.kind !== 'backing' || mapping.lengthBytes < lengthBytes) return false;
    this.#buffer ??= Buffer.allocUnsafeSlow(COPIED_AT_ONCE_BYTES);
    const request = this.#own.ask('write', offset, lengthBytes);
    request.setBuffer(this.#buffer);
    if (!backing.tryReadPart(request, 0, lengthBytes, offset)) return false;
    for (let done = 0; done < lengthBytes;) {
      const length = this.#writing.tryWriteAnew(request, done, lengthBytes - done, offset + done);
      if (length === 0) return false;
      done += length;
    }
    return true;
  }

  /** Zero clusters for [at, end), when all of it is known to be zero; false: copy. The range is held. */
  async #zero(at: number, end: number, zeroFrom: number, zeroTo: number): Promise<boolean> {
    if (!(await this.#zeroing.readsZero(at, Math.min(end, zeroFrom)))) return false;
    if (!(await this.#zeroing.readsZero(Math.max(at, zeroTo), end))) return false;
    return this.#zeroUnits(at, end);
  }

  async #zeroUnits(at: number, end: number): Promise<boolean> {
    try {
      await this.#mapped.zeroClusters(at, end - at, Flag.mayUnmap);
      return true;
    } catch (error) {
      if (!isUnsupported(error)) throw error;
      return false;
    }
  }

  /** Copies a first part of the unallocated units [at, end), whose range is held; answers where it ends. */
  async #copyPart(at: number, end: number): Promise<number> {
    const { driver } = this.#mapped;
    const backing = defined(this.#mapped.backing, 'backing file to copy from');
    const length = Math.min(end - at, JOINED_WRITE_BYTES);
    const located: Located =
      at < backing.lengthBytes && length > COPIED_AT_ONCE_BYTES
        ? await backing.locate(at, Math.min(length, backing.lengthBytes - at))
        : { kind: 'other', lengthBytes: length };
    const plain = located.kind === 'plain' ? located : undefined;
    try {
      // Whole units only: what a plain stretch lacks of its last unit is read with the rest.
      const whole = plain ? alignDown(plain.lengthBytes, driver.unitBytes) : 0;
      const covered = plain && plain.lengthBytes === end - at ? plain.lengthBytes : whole;
      const size = covered > 0 ? covered : length;
      const reservation = await this.#mapped.reserve(at, size);
      try {
        const stop = Math.min(at + size, reservation.offset + reservation.lengthBytes);
        const request =
          plain && covered > 0
            ? fileRequest(new FileSource(plain.io, plain.offset), stop - at)
            : await readBelow(backing, at, stop - at);
        const done = await this.#writing.fill(reservation, at, stop, { request, from: 0, offset: at });
        this.#mapped.link(reservation);
        return done;
      } catch (error) {
        reservation.abort();
        throw error;
      }
    } finally {
      plain?.release();
    }
  }
}

/** A request to write what the backing file has there. */
async function readBelow(backing: Edge | undefined, at: number, lengthBytes: number): Promise<IoRequest> {
  if (!backing) return IoRequest.ofBuffer(Buffer.alloc(lengthBytes));
  const request = IoRequest.ofBuffer(Buffer.allocUnsafe(lengthBytes));
  if (!backing.tryReadPart(request, 0, lengthBytes, at)) await backing.readPart(request, 0, lengthBytes, at);
  return request;
}
