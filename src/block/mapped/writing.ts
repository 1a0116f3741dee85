import { assert, defined } from '../../base/assert.js';
import { alignDown, alignUp } from '../../base/align.js';
import { MAX_SYNC_WRITE_BYTES, MiB } from '../../base/limits.js';
import type { ChildIo, Reservation } from '../driver.js';
import { Flag, hasFlag, IoRequest, newMapping, placeOf } from '../request.js';
import type { MappedNode } from './mapped-node.js';
import type { MappedReading } from './reading.js';

/** Writes up to this size are put together with their copy-on-write into one buffer and one request. */
export const JOINED_WRITE_BYTES = 2 * MiB;

/** Where guest bytes go: a reservation, or data that is overwritten. */
interface Target {
  readonly child: ChildIo;
  readonly plain: boolean;
}

/** The part of a request that a node writes: position `from` of its memory is for the guest's `offset`. */
export interface Part {
  readonly request: IoRequest;
  readonly from: number;
  readonly offset: number;
  /** It is to be durable. */
  readonly fua?: boolean;
  /** Some of it is durable only after a flush. */
  needsFlush?: boolean;
}

/** Writing through a mapping: in place, or with copy-on-write into clusters of its own. */
export class MappedWriting {
  readonly #mapped: MappedNode;
  readonly #reading: MappedReading;

  constructor(mapped: MappedNode, reading: MappedReading) {
    this.#mapped = mapped;
    this.#reading = reading;
  }

  /** In place, or into clusters that need no copy-on-write and whose tables are in memory. */
  tryWrite(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    const { driver, isHeard, scratch: mapping } = this.#mapped;
    // Of a long write, no cluster is taken that the file would not fill now.
    if (lengthBytes > MAX_SYNC_WRITE_BYTES || isHeard) return false;
    for (let done = 0; done < lengthBytes;) {
      if (!driver.tryMap(offset + done, lengthBytes - done, mapping)) return false;
      let length = mapping.lengthBytes;
      if (mapping.kind !== 'data' || !mapping.writable)
        length = this.tryWriteAnew(request, from + done, length, offset + done);
      else if (!mapping.plain) return false;
      else if (!placeOf(mapping).tryWritePart(request, from + done, length, mapping.hostOffset)) return false;
      if (length === 0) return false;
      done += length;
    }
    return true;
  }

  /** A first part of a synchronous write, in one reservation; answers its length, or 0 to leave it to write(). */
  tryWriteAnew(request: IoRequest, from: number, lengthBytes: number, offset: number): number {
    const { driver, ranges } = this.#mapped;
    if (!driver.tryReserve || !ranges.isIdle) return 0;
    const reservation = driver.tryReserve(offset, lengthBytes);
    if (!reservation) return 0;
    const length = Math.min(lengthBytes, reservation.offset + reservation.lengthBytes - offset);
    let wrote = false;
    try {
      wrote = tryFill(reservation, request, from, length, offset);
    } finally {
      if (wrote) this.#mapped.link(reservation);
      else reservation.abort();
    }
    return wrote ? length : 0;
  }

  /** Answers whether what was to be durable is it, without a flush. */
  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<boolean> {
    const { generation } = request;
    const fua = hasFlag(flags, Flag.fua);
    const part: Part = { request, from, offset, fua, needsFlush: !fua };
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      at = await this.#writeInPlace(at, end, part);
      request.assertIs(generation);
      if (at < end) {
        part.needsFlush = true;
        at = await this.#writeAllocating(at, end, part);
      }
      request.assertIs(generation);
    }
    return part.needsFlush !== true;
  }

  /** Overwrites writable plain data from `at`; answers where the first other stretch begins. */
  async #writeInPlace(at: number, end: number, part: Part): Promise<number> {
    const { request } = part;
    const { generation } = request;
    const release = await this.#mapped.ranges.lockShared(at, end - at, request.signal);
    const mapping = newMapping();
    try {
      while (at < end) {
        await this.#mapped.map(at, end - at, mapping);
        if (mapping.kind !== 'data' || !mapping.writable || !mapping.plain) return at;
        await this.#mapped.announce('write_aio');
        request.assertIs(generation);
        request.begin();
        const isEnough = part.fua === true && this.#mapped.driver.isMappingDurable === true;
        if (!isEnough) part.needsFlush = true;
        const flags = isEnough ? Flag.fua : Flag.none;
        await writePlain(placeOf(mapping), mapping.hostOffset, part, at, mapping.lengthBytes, flags);
        at += mapping.lengthBytes;
      }
      return at;
    } finally {
      release();
    }
  }

  /** Reserves, fills and links clusters for a stretch from `at`; answers where it ends. */
  async #writeAllocating(at: number, end: number, part: Part): Promise<number> {
    const cluster = this.#mapped.driver.clusterBytes;
    const mapping = newMapping();
    await this.#mapped.map(at, end - at, mapping);
    const stop = Math.min(end, at + mapping.lengthBytes);
    const start = alignDown(at, cluster);
    const { signal } = part.request;
    const release = await this.#mapped.ranges.lockExclusive(start, alignUp(stop, cluster) - start, signal);
    part.request.begin();
    try {
      // While this waited for the lock, another request may have allocated the cluster.
      await this.#mapped.map(at, stop - at, mapping);
      const length = Math.min(mapping.lengthBytes, stop - at);
      if (mapping.kind === 'data' && mapping.writable) {
        if (mapping.plain) return at;
        await this.#mapped.announce('write_aio');
        const target = { child: placeOf(mapping), plain: false };
        await this.#writeHost(target, mapping.hostOffset, part, at, length);
        return at + length;
      }
      return await this.#writeAnew(at, length, part);
    } finally {
      release();
    }
  }

  async #writeAnew(at: number, lengthBytes: number, part: Part): Promise<number> {
    const reservation = await this.#mapped.reserve(at, lengthBytes);
    try {
      const done = await this.fill(reservation, at, at + lengthBytes, part);
      this.#mapped.link(reservation);
      return done;
    } catch (error) {
      reservation.abort();
      await this.#endWhole(reservation);
      throw error;
    }
  }

  /** After a write that failed: the file may have become longer by a part of it. */
  async #endWhole({ child, hostOffset, lengthBytes }: Reservation): Promise<void> {
    const inside = child.lengthBytes - hostOffset;
    if (inside <= 0 || inside >= lengthBytes) return;
    const end = hostOffset + alignUp(inside, this.#mapped.driver.unitBytes);
    await child.extend(end).catch(() => undefined);
  }

  /** Writes guest data and copy-on-write into reserved clusters; answers the guest offset where the data ends. */
  async fill(r: Reservation, at: number, end: number, part: Part): Promise<number> {
    assert(r.plain || !r.readsZero, 'what is not plain does not read as its bytes are');
    const { request } = part;
    const { generation } = request;
    const dataEnd = Math.min(end, r.offset + r.lengthBytes);
    const head = at - r.offset;
    const tail = r.offset + r.lengthBytes - dataEnd;
    const bare = (r.readsZero && r.before === 'zero') || (head === 0 && tail === 0);
    await this.#mapped.announce('write_aio');
    if (bare) {
      if (tail > 0 && !r.child.tryExtend(hostEnd(r))) await r.child.extend(hostEnd(r));
      request.assertIs(generation);
      await this.#writeHost(r, r.hostOffset + head, part, at, dataEnd - at);
      return dataEnd;
    }
    // What is not plain is encoded as a whole: a part alone would be taken for all of it.
    if (r.plain && (request.source || r.lengthBytes > JOINED_WRITE_BYTES)) {
      await this.#copyOnWrite(r, r.offset, head);
      request.assertIs(generation);
      await this.#writeHost(r, r.hostOffset + head, part, at, dataEnd - at);
      await this.#copyOnWrite(r, dataEnd, tail);
      return dataEnd;
    }
    if (request.source) await request.stabilise();
    const joined = Buffer.allocUnsafe(r.lengthBytes);
    await this.#readOld(r, r.offset, joined.subarray(0, head));
    request.assertIs(generation);
    request.copyTo(joined.subarray(head), part.from + (at - part.offset), dataEnd - at);
    await this.#readOld(r, dataEnd, joined.subarray(r.lengthBytes - tail));
    await this.#writeHost(r, r.hostOffset, ownPart(joined, r.offset), r.offset, joined.length);
    return dataEnd;
  }

  async #copyOnWrite(r: Reservation, offset: number, lengthBytes: number): Promise<void> {
    if (lengthBytes === 0 || (r.readsZero && r.before === 'zero')) return;
    const old = Buffer.allocUnsafe(lengthBytes);
    await this.#readOld(r, offset, old);
    await this.#mapped.announce('cow_write');
    const hostOffset = r.hostOffset + (offset - r.offset);
    await this.#writeHost(r, hostOffset, ownPart(old, offset), offset, lengthBytes);
  }

  /** What the clusters held before the reservation; zeroes beyond the end of the image. */
  async #readOld(r: Reservation, offset: number, buffer: Uint8Array): Promise<void> {
    if (buffer.length === 0) return;
    const inside = Math.max(0, Math.min(buffer.length, this.#mapped.node.lengthBytes - offset));
    buffer.fill(0, r.before === 'zero' ? 0 : inside);
    if (r.before === 'zero' || inside === 0) return;
    await this.#mapped.announce('cow_read');
    await this.#reading.readLocked(IoRequest.ofBuffer(buffer), 0, inside, offset);
  }

  /** `at`: where the guest has the bytes. */
  async #writeHost(
    target: Target,
    hostOffset: number,
    part: Part,
    at: number,
    lengthBytes: number,
  ): Promise<void> {
    if (target.plain) return writePlain(target.child, hostOffset, part, at, lengthBytes);
    const { request } = part;
    const { generation } = request;
    // Encoders look at bytes more than once.
    await request.stabilise();
    request.assertIs(generation);
    const bytes = request.gather(part.from + (at - part.offset), lengthBytes);
    const { driver } = this.#mapped;
    await defined(driver.writeSpecial?.(target.child, hostOffset, at, bytes), 'writer of what is not plain');
    request.assertIs(generation);
  }
}

async function writePlain(
  child: ChildIo,
  hostOffset: number,
  { request, from, offset }: Part,
  at: number,
  lengthBytes: number,
  flags: number = Flag.none,
): Promise<void> {
  const { generation } = request;
  const first = from + (at - offset);
  const mayTry = !request.source && flags === Flag.none;
  if (mayTry && child.tryWritePart(request, first, lengthBytes, hostOffset)) return;
  await child.writePart(request, first, lengthBytes, hostOffset, flags);
  request.assertIs(generation);
}

/** Bytes of our own. */
function ownPart(buffer: Uint8Array, offset: number): Part {
  return { request: IoRequest.ofBuffer(buffer), from: 0, offset };
}

/** Writes what needs no copy-on-write. */
function tryFill(
  r: Reservation,
  request: IoRequest,
  from: number,
  lengthBytes: number,
  offset: number,
): boolean {
  if (!r.plain) return false;
  const head = offset - r.offset;
  const isWhole = head === 0 && lengthBytes === r.lengthBytes;
  const isBare = r.readsZero && r.before === 'zero';
  if (!isWhole && !(isBare && r.child.tryExtend(hostEnd(r)))) return false;
  return r.child.tryWritePart(request, from, lengthBytes, r.hostOffset + head);
}

/** The child is to reach so far: its last cluster is whole, however little of it is written. */
function hostEnd(reservation: Reservation): number {
  return reservation.hostOffset + reservation.lengthBytes;
}
