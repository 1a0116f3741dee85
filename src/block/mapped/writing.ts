import { assert, defined } from '../../base/assert.js';
import { alignDown, alignUp } from '../../base/align.js';
import { MAX_SYNC_WRITE_BYTES, MiB } from '../../base/limits.js';
import type { ChildIo, Reservation } from '../driver.js';
import { BufferPayload, FilePayload, type Payload } from '../payload.js';
import { Flag, newMapping, placeOf } from '../request.js';
import type { MappedNode } from './mapped-node.js';
import type { MappedReading } from './reading.js';

/** Writes up to this size are put together with their copy-on-write into one buffer and one request. */
export const JOINED_WRITE_BYTES = 2 * MiB;

/** Where guest bytes go: a reservation, or data that is overwritten. */
interface Target {
  readonly child: ChildIo;
  readonly plain: boolean;
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
  tryWrite(offset: number, buffer: Uint8Array): boolean {
    const { driver, isHeard, scratch: mapping } = this.#mapped;
    // Of a long write, no cluster is taken that the file would not fill now.
    if (buffer.length > MAX_SYNC_WRITE_BYTES || isHeard) return false;
    for (let done = 0; done < buffer.length;) {
      if (!driver.tryMap(offset + done, buffer.length - done, mapping)) return false;
      let length = mapping.lengthBytes;
      const part = length === buffer.length ? buffer : buffer.subarray(done, done + length);
      if (mapping.kind !== 'data' || !mapping.writable) length = this.tryWriteAnew(offset + done, part);
      else if (!mapping.plain || !placeOf(mapping).tryWrite(mapping.hostOffset, part, Flag.none))
        return false;
      if (length === 0) return false;
      done += length;
    }
    return true;
  }

  /** A first part of a synchronous write, in one reservation; answers its length, or 0 to leave it to write(). */
  tryWriteAnew(offset: number, buffer: Uint8Array): number {
    const { driver, ranges } = this.#mapped;
    if (!driver.tryReserve || !ranges.isIdle) return 0;
    const reservation = driver.tryReserve(offset, buffer.length);
    if (!reservation) return 0;
    const length = Math.min(buffer.length, reservation.offset + reservation.lengthBytes - offset);
    let wrote = false;
    try {
      wrote = tryFill(reservation, offset, length === buffer.length ? buffer : buffer.subarray(0, length));
    } finally {
      if (wrote) reservation.link();
      else reservation.abort();
    }
    return wrote ? length : 0;
  }

  async write(offset: number, payload: Payload): Promise<void> {
    const end = offset + payload.lengthBytes;
    for (let at = offset; at < end;) {
      at = await this.#writeInPlace(at, end, offset, payload);
      if (at < end) at = await this.#writeAllocating(at, end, offset, payload);
    }
  }

  /** Overwrites writable plain data from `at`; answers where the first other stretch begins. */
  async #writeInPlace(at: number, end: number, base: number, payload: Payload): Promise<number> {
    const release = await this.#mapped.ranges.lockShared(at, end - at);
    const mapping = newMapping();
    try {
      while (at < end) {
        await this.#mapped.map(at, end - at, mapping);
        if (mapping.kind !== 'data' || !mapping.writable || !mapping.plain) return at;
        await this.#mapped.announce('write_aio');
        await writePlain(placeOf(mapping), mapping.hostOffset, payload, at - base, mapping.lengthBytes);
        at += mapping.lengthBytes;
      }
      return at;
    } finally {
      release();
    }
  }

  /** Reserves, fills and links clusters for a stretch from `at`; answers where it ends. */
  async #writeAllocating(at: number, end: number, base: number, payload: Payload): Promise<number> {
    const cluster = this.#mapped.driver.clusterBytes;
    const mapping = newMapping();
    await this.#mapped.map(at, end - at, mapping);
    const stop = Math.min(end, at + mapping.lengthBytes);
    const from = alignDown(at, cluster);
    const release = await this.#mapped.ranges.lockExclusive(from, alignUp(stop, cluster) - from);
    try {
      // While this waited for the lock, another request may have allocated the cluster.
      await this.#mapped.map(at, stop - at, mapping);
      const length = Math.min(mapping.lengthBytes, stop - at);
      if (mapping.kind === 'data' && mapping.writable) {
        if (mapping.plain) return at;
        await this.#mapped.announce('write_aio');
        const target = { child: placeOf(mapping), plain: false };
        await this.#writeHost(target, mapping.hostOffset, at, payload, at - base, length);
        return at + length;
      }
      return await this.#writeAnew(at, length, base, payload);
    } finally {
      release();
    }
  }

  async #writeAnew(at: number, lengthBytes: number, base: number, payload: Payload): Promise<number> {
    const reservation = await this.#mapped.reserve(at, lengthBytes);
    try {
      const done = await this.fill(reservation, at, at + lengthBytes, base, payload);
      reservation.link();
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
  async fill(r: Reservation, at: number, end: number, base: number, payload: Payload): Promise<number> {
    assert(r.plain || !r.readsZero, 'what is not plain does not read as its bytes are');
    const dataEnd = Math.min(end, r.offset + r.lengthBytes);
    const head = at - r.offset;
    const tail = r.offset + r.lengthBytes - dataEnd;
    const bare = (r.readsZero && r.before === 'zero') || (head === 0 && tail === 0);
    await this.#mapped.announce('write_aio');
    if (bare) {
      if (tail > 0 && !r.child.tryExtend(hostEnd(r))) await r.child.extend(hostEnd(r));
      await this.#writeHost(r, r.hostOffset + head, at, payload, at - base, dataEnd - at);
      return dataEnd;
    }
    if (payload.file || r.lengthBytes > JOINED_WRITE_BYTES) {
      await this.#copyOnWrite(r, r.offset, head);
      await this.#writeHost(r, r.hostOffset + head, at, payload, at - base, dataEnd - at);
      await this.#copyOnWrite(r, dataEnd, tail);
      return dataEnd;
    }
    const joined = Buffer.allocUnsafe(r.lengthBytes);
    await this.#readOld(r, r.offset, joined.subarray(0, head));
    joined.set(await payload.bytes(at - base, dataEnd - at), head);
    await this.#readOld(r, dataEnd, joined.subarray(r.lengthBytes - tail));
    await this.#writeHost(r, r.hostOffset, r.offset, new BufferPayload(joined), 0, joined.length);
    return dataEnd;
  }

  async #copyOnWrite(r: Reservation, offset: number, lengthBytes: number): Promise<void> {
    if (lengthBytes === 0 || (r.readsZero && r.before === 'zero')) return;
    const old = Buffer.allocUnsafe(lengthBytes);
    await this.#readOld(r, offset, old);
    await this.#mapped.announce('cow_write');
    const hostOffset = r.hostOffset + (offset - r.offset);
    await this.#writeHost(r, hostOffset, offset, new BufferPayload(old), 0, lengthBytes);
  }

  /** What the clusters held before the reservation; zeroes beyond the end of the image. */
  async #readOld(r: Reservation, offset: number, buffer: Uint8Array): Promise<void> {
    if (buffer.length === 0) return;
    const inside = Math.max(0, Math.min(buffer.length, this.#mapped.node.lengthBytes - offset));
    buffer.fill(0, r.before === 'zero' ? 0 : inside);
    if (r.before === 'zero' || inside === 0) return;
    await this.#mapped.announce('cow_read');
    await this.#reading.readLocked(offset, buffer.subarray(0, inside));
  }

  /** `offset`: where the guest has the bytes. */
  async #writeHost(
    target: Target,
    hostOffset: number,
    offset: number,
    payload: Payload,
    from: number,
    lengthBytes: number,
  ): Promise<void> {
    if (target.plain) return writePlain(target.child, hostOffset, payload, from, lengthBytes);
    const bytes = await payload.bytes(from, lengthBytes);
    const { driver } = this.#mapped;
    await defined(
      driver.writeSpecial?.(target.child, hostOffset, offset, bytes),
      'writer of what is not plain',
    );
  }
}

async function writePlain(
  child: ChildIo,
  hostOffset: number,
  payload: Payload,
  from: number,
  lengthBytes: number,
): Promise<void> {
  const source = payload.file;
  if (source) {
    const part = new FilePayload(source.io, source.offset + from, lengthBytes);
    return child.writePayload(hostOffset, part, Flag.none);
  }
  const bytes = await payload.bytes(from, lengthBytes);
  if (!child.tryWrite(hostOffset, bytes, Flag.none)) await child.write(hostOffset, bytes, Flag.none);
}

/** Writes what needs no copy-on-write. */
function tryFill(r: Reservation, offset: number, part: Uint8Array): boolean {
  if (!r.plain) return false;
  const head = offset - r.offset;
  const isWhole = head === 0 && part.length === r.lengthBytes;
  const isBare = r.readsZero && r.before === 'zero';
  if (!isWhole && !(isBare && r.child.tryExtend(hostEnd(r)))) return false;
  return r.child.tryWrite(r.hostOffset + head, part, Flag.none);
}

/** The child is to reach so far: its last cluster is whole, however little of it is written. */
function hostEnd(reservation: Reservation): number {
  return reservation.hostOffset + reservation.lengthBytes;
}
