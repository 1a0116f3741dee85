import { assert, defined } from '../base/assert.js';
import { alignDown, alignUp } from '../base/align.js';
import { BlockError, isUnsupported } from '../base/error.js';
import { KiB, MAX_SYNC_WRITE_BYTES, MiB } from '../base/limits.js';
import type { MapDriver, Reservation } from './driver.js';
import type { Edge } from './edge.js';
import type { Node } from './node.js';
import type { Located } from './node-io.js';
import { BufferPayload, FilePayload, type Payload, zeroPayload } from './payload.js';
import type { RangeLock, Release } from './range-lock.js';
import { type BlockStatus, Flag, hasFlag, type Mapping, newMapping } from './request.js';

/** Writes up to this size are put together with their copy-on-write into one buffer and one request. */
const JOINED_WRITE_BYTES = 2 * MiB;
/** Most that copyUp reads and writes without a wait; also less than is worth a copy_file_range in the pool. */
const COPIED_AT_ONCE_BYTES = 256 * KiB;
/** Of a file without holes in its data, so many clusters may have less space than their size: tables hardly used. */
const METADATA_CLUSTERS = 16;
/** Zeroes that a format cannot express are written in pieces of this size. */
const ZERO_PIECE_BYTES = MiB;

/**
 * Reading, writing, zeroing, discarding and block status, written once for every driver that only maps.
 * A request holds its range in `ranges`: shared while it uses a mapping as it is, exclusive (whole clusters)
 * while it changes one.
 */
export class MappedIo {
  readonly #node: Node;
  readonly #driver: MapDriver;
  readonly #ranges: RangeLock;
  /** Reused by the synchronous path, which never interleaves with itself on one node. */
  readonly #scratch = newMapping();
  #copyBuffer: Buffer | undefined;
  /** The file has less space than its length: preallocated, or with many holes. */
  #sparse: boolean | undefined;

  constructor(node: Node, driver: MapDriver, ranges: RangeLock) {
    this.#node = node;
    this.#driver = driver;
    this.#ranges = ranges;
  }

  #file(): Edge {
    return this.#node.child('file');
  }

  #backing(): Edge | undefined {
    return this.#node.children.get('backing');
  }

  /** The caller has looked at the range locks and the end. */
  tryRead(offset: number, buffer: Uint8Array): boolean {
    const file = this.#file();
    if (file.node.instance.announce) return false;
    const mapping = this.#scratch;
    for (let done = 0; done < buffer.length;) {
      if (!this.#driver.tryMap(offset + done, buffer.length - done, mapping)) return false;
      const length = mapping.lengthBytes;
      const whole = length === buffer.length;
      switch (mapping.kind) {
        case 'data':
          if (!file.tryRead(mapping.hostOffset, whole ? buffer : buffer.subarray(done, done + length)))
            return false;
          break;
        case 'zero':
          buffer.fill(0, done, done + length);
          break;
        case 'backing':
          if (!this.#tryReadBacking(offset + done, whole ? buffer : buffer.subarray(done, done + length)))
            return false;
          break;
        case 'compressed':
          return false;
      }
      done += length;
    }
    return true;
  }

  #tryReadBacking(offset: number, buffer: Uint8Array): boolean {
    const backing = this.#backing();
    if (backing && offset < backing.lengthBytes) return backing.tryRead(offset, buffer);
    buffer.fill(0);
    return true;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    const release = await this.#ranges.lockShared(offset, buffer.length);
    try {
      await this.#readLocked(offset, buffer);
    } finally {
      release();
    }
  }

  /** Reads through the mapping; the range is held by the caller. */
  async #readLocked(offset: number, buffer: Uint8Array): Promise<void> {
    const mapping = newMapping();
    for (let done = 0; done < buffer.length;) {
      await this.#map(offset + done, buffer.length - done, mapping);
      const part = buffer.subarray(done, done + mapping.lengthBytes);
      await this.#readMapping(mapping, offset + done, part);
      done += part.length;
    }
  }

  async #readMapping(mapping: Mapping, offset: number, part: Uint8Array): Promise<void> {
    switch (mapping.kind) {
      case 'data': {
        await this.#file().announce('read_aio');
        if (!this.#file().tryRead(mapping.hostOffset, part))
          await this.#file().read(mapping.hostOffset, part);
        return;
      }
      case 'zero':
        part.fill(0);
        return;
      case 'backing': {
        const backing = this.#backing();
        if (!backing) {
          part.fill(0);
          return;
        }
        await this.#file().announce('read_backing_aio');
        if (!backing.node.io.tryRead(offset, part)) await backing.read(offset, part);
        return;
      }
      case 'compressed':
        await defined(this.#driver.readCompressed?.(offset, part), 'reader of compressed data');
    }
  }

  async #map(offset: number, lengthBytes: number, mapping: Mapping): Promise<void> {
    if (!this.#driver.tryMap(offset, lengthBytes, mapping))
      await this.#driver.map(offset, lengthBytes, mapping);
    assert(
      mapping.lengthBytes > 0 && mapping.lengthBytes <= lengthBytes,
      () => `mapping of ${mapping.lengthBytes} bytes`,
    );
  }

  /** In place, or into clusters that need no copy-on-write and whose tables are in memory. */
  tryWrite(offset: number, buffer: Uint8Array): boolean {
    const file = this.#file();
    // Of a long write, no cluster is taken that the file would not fill now.
    if (buffer.length > MAX_SYNC_WRITE_BYTES || file.node.instance.announce) return false;
    const mapping = this.#scratch;
    for (let done = 0; done < buffer.length;) {
      if (!this.#driver.tryMap(offset + done, buffer.length - done, mapping)) return false;
      let length = mapping.lengthBytes;
      const part = length === buffer.length ? buffer : buffer.subarray(done, done + length);
      if (mapping.kind !== 'data' || !mapping.writable) length = this.#tryAllocate(offset + done, part);
      else if (!file.tryWrite(mapping.hostOffset, part, Flag.none)) length = 0;
      if (length === 0) return false;
      done += length;
    }
    return true;
  }

  /** A first part of a synchronous write, in one reservation; answers its length, or 0 to leave it to write(). */
  #tryAllocate(offset: number, buffer: Uint8Array): number {
    if (!this.#driver.tryReserve || !this.#ranges.isIdle) return 0;
    const reservation = this.#driver.tryReserve(offset, buffer.length);
    if (!reservation) return 0;
    const length = Math.min(buffer.length, reservation.offset + reservation.lengthBytes - offset);
    let wrote = false;
    try {
      wrote = this.#tryFill(
        reservation,
        offset,
        length === buffer.length ? buffer : buffer.subarray(0, length),
      );
    } finally {
      if (wrote) reservation.link();
      else reservation.abort();
    }
    return wrote ? length : 0;
  }

  /** Writes what needs no copy-on-write. */
  #tryFill(r: Reservation, offset: number, part: Uint8Array): boolean {
    const file = this.#file();
    const head = offset - r.offset;
    const isWhole = head === 0 && part.length === r.lengthBytes;
    const isBare = r.readsZero && r.before === 'zero';
    if (!isWhole && !(isBare && file.tryExtend(hostEnd(r)))) return false;
    return file.tryWrite(r.hostOffset + head, part, Flag.none);
  }

  async write(offset: number, payload: Payload): Promise<void> {
    const end = offset + payload.lengthBytes;
    for (let at = offset; at < end;) {
      at = await this.#writeInPlace(at, end, offset, payload);
      if (at < end) at = await this.#writeAllocating(at, end, offset, payload);
    }
  }

  /** Overwrites writable data clusters from `at`; answers where the first other cluster begins. */
  async #writeInPlace(at: number, end: number, base: number, payload: Payload): Promise<number> {
    const release = await this.#ranges.lockShared(at, end - at);
    const mapping = newMapping();
    try {
      while (at < end) {
        await this.#map(at, end - at, mapping);
        if (mapping.kind !== 'data' || !mapping.writable) return at;
        await this.#file().announce('write_aio');
        await this.#writeHost(mapping.hostOffset, payload, at - base, mapping.lengthBytes);
        at += mapping.lengthBytes;
      }
      return at;
    } finally {
      release();
    }
  }

  /** Reserves, fills and links clusters for a stretch from `at`; answers where it ends. */
  async #writeAllocating(at: number, end: number, base: number, payload: Payload): Promise<number> {
    const cluster = this.#driver.clusterBytes;
    const mapping = newMapping();
    await this.#map(at, end - at, mapping);
    const stop = Math.min(end, at + mapping.lengthBytes);
    const from = alignDown(at, cluster);
    const release = await this.#ranges.lockExclusive(from, alignUp(stop, cluster) - from);
    try {
      // While this waited for the lock, another request may have allocated the cluster.
      await this.#map(at, stop - at, mapping);
      if (mapping.kind === 'data' && mapping.writable) return at;
      const length = Math.min(mapping.lengthBytes, stop - at);
      const reservation = this.#driver.tryReserve?.(at, length) ?? (await this.#driver.reserve(at, length));
      try {
        const done = await this.#fill(reservation, at, at + length, base, payload);
        reservation.link();
        return done;
      } catch (error) {
        reservation.abort();
        await this.#endWhole(reservation);
        throw error;
      }
    } finally {
      release();
    }
  }

  /** After a write that failed: the file may have become longer by a part of it. */
  async #endWhole({ hostOffset, lengthBytes }: Reservation): Promise<void> {
    const inside = this.#file().lengthBytes - hostOffset;
    if (inside <= 0 || inside >= lengthBytes) return;
    const end = hostOffset + alignUp(inside, this.#driver.clusterBytes);
    await this.#file()
      .extend(end)
      .catch(() => undefined);
  }

  /** Writes guest data and copy-on-write into reserved clusters; answers the guest offset where the data ends. */
  async #fill(r: Reservation, at: number, end: number, base: number, payload: Payload): Promise<number> {
    const dataEnd = Math.min(end, r.offset + r.lengthBytes);
    const head = at - r.offset;
    const tail = r.offset + r.lengthBytes - dataEnd;
    const bare = (r.readsZero && r.before === 'zero') || (head === 0 && tail === 0);
    await this.#file().announce('write_aio');
    if (bare) {
      if (tail > 0 && !this.#file().tryExtend(hostEnd(r))) await this.#file().extend(hostEnd(r));
      await this.#writeHost(r.hostOffset + head, payload, at - base, dataEnd - at);
      return dataEnd;
    }
    if (payload.file || r.lengthBytes > JOINED_WRITE_BYTES) {
      await this.#copyOnWrite(r, r.offset, head);
      await this.#writeHost(r.hostOffset + head, payload, at - base, dataEnd - at);
      await this.#copyOnWrite(r, dataEnd, tail);
      return dataEnd;
    }
    const joined = Buffer.allocUnsafe(r.lengthBytes);
    await this.#readOld(r, r.offset, joined.subarray(0, head));
    joined.set(await payload.bytes(at - base, dataEnd - at), head);
    await this.#readOld(r, dataEnd, joined.subarray(r.lengthBytes - tail));
    await this.#writeHost(r.hostOffset, new BufferPayload(joined), 0, joined.length);
    return dataEnd;
  }

  async #copyOnWrite(r: Reservation, offset: number, lengthBytes: number): Promise<void> {
    if (lengthBytes === 0 || (r.readsZero && r.before === 'zero')) return;
    const old = Buffer.allocUnsafe(lengthBytes);
    await this.#readOld(r, offset, old);
    await this.#file().announce('cow_write');
    await this.#writeHost(r.hostOffset + (offset - r.offset), new BufferPayload(old), 0, lengthBytes);
  }

  /** What the clusters held before the reservation; zeroes beyond the end of the image. */
  async #readOld(r: Reservation, offset: number, buffer: Uint8Array): Promise<void> {
    if (buffer.length === 0) return;
    const inside = Math.max(0, Math.min(buffer.length, this.#node.lengthBytes - offset));
    buffer.fill(0, r.before === 'zero' ? 0 : inside);
    if (r.before === 'zero' || inside === 0) return;
    await this.#file().announce('cow_read');
    await this.#readLocked(offset, buffer.subarray(0, inside));
  }

  async #writeHost(hostOffset: number, payload: Payload, from: number, lengthBytes: number): Promise<void> {
    const file = this.#file();
    const source = payload.file;
    if (source) {
      const part = new FilePayload(source.io, source.offset + from, lengthBytes);
      return file.node.io.writePayload(hostOffset, part, Flag.none, true);
    }
    const bytes = await payload.bytes(from, lengthBytes);
    if (!file.tryWrite(hostOffset, bytes, Flag.none)) await file.write(hostOffset, bytes, Flag.none);
  }

  async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const end = offset + lengthBytes;
    const done = await this.#zeroWholeClusters(offset, end, flags);
    await this.#writeZeroBytes(offset, done.offset - offset);
    await this.#writeZeroBytes(done.end, end - done.end);
  }

  /** Turns whole clusters of [offset, end) into zero clusters; answers which part that took care of. */
  async #zeroWholeClusters(
    offset: number,
    end: number,
    flags: number,
  ): Promise<{ offset: number; end: number }> {
    const cluster = this.#driver.clusterBytes;
    const from = alignDown(offset, cluster);
    const to = alignUp(end, cluster);
    const release = await this.#ranges.lockExclusive(from, to - from);
    try {
      // A cluster counts as whole too when the rest of it reads as zeroes already, or lies past the image's end.
      const start = (await this.#readsZero(from, offset)) ? from : alignUp(offset, cluster);
      const stop = (await this.#readsZero(end, to)) ? to : alignDown(end, cluster);
      if (hasFlag(flags, Flag.noFallback) && (start > offset || stop < end)) {
        throw new BlockError('unsupported', 'Operation not supported', {
          errno: 'ENOTSUP',
          node: this.#node.name,
        });
      }
      if (start >= stop) return { offset: end, end };
      await this.#file().announce('pwritev_zero');
      const imageEnd = Math.max(this.#node.lengthBytes, end);
      await this.#driver.zeroClusters(start, Math.min(stop, imageEnd) - start, hasFlag(flags, Flag.mayUnmap));
      return { offset: Math.max(start, offset), end: Math.min(stop, end) };
    } catch (error) {
      if (!isUnsupported(error) || hasFlag(flags, Flag.noFallback)) throw error;
      return { offset: end, end };
    } finally {
      release();
    }
  }

  /** Whether [from, to), a part of one cluster, reads as zeroes; what lies past the image's end does. */
  async #readsZero(from: number, to: number): Promise<boolean> {
    const end = Math.min(to, this.#node.lengthBytes);
    for (let at = from; at < end;) {
      const status = await this.#node.statusThroughChain(at, end - at);
      if (!status.zero) return false;
      at += status.lengthBytes;
    }
    return true;
  }

  async #writeZeroBytes(offset: number, lengthBytes: number): Promise<void> {
    for (let done = 0; done < lengthBytes; done += ZERO_PIECE_BYTES) {
      await this.write(offset + done, zeroPayload(Math.min(ZERO_PIECE_BYTES, lengthBytes - done)));
    }
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    const cluster = this.#driver.clusterBytes;
    const start = alignUp(offset, cluster);
    const end =
      offset + lengthBytes >= this.#node.lengthBytes
        ? offset + lengthBytes
        : alignDown(offset + lengthBytes, cluster);
    if (start >= end) return;
    const release = await this.#ranges.lockExclusive(start, alignUp(end, cluster) - start);
    try {
      await this.#driver.discardClusters(start, end - start);
    } finally {
      release();
    }
  }

  /**
   * Copies what the backing chain holds into clusters of [offset, offset + lengthBytes) that are not in this image:
   * nothing changes for a reader. Clusters that the guest wrote meanwhile stay as they are. `zeroes`: the range is
   * known to read as zeroes below. Clusters are copied whole, those at the ends too.
   */
  async copyUp(offset: number, lengthBytes: number, zeroes: boolean): Promise<void> {
    const cluster = this.#driver.clusterBytes;
    const from = alignDown(offset, cluster);
    const to = Math.min(alignUp(offset + lengthBytes, cluster), this.#node.lengthBytes);
    for (let at = from; at < to;) {
      // Part by part: who waits for one need not wait for the next.
      const release = await this.#ranges.lockExclusive(at, alignUp(to, cluster) - at);
      try {
        at = await this.#copyUpFirst(at, to, offset, zeroes ? offset + lengthBytes : offset);
      } finally {
        release();
      }
    }
  }

  /** A first part of [at, to), which is held; [zeroFrom, zeroTo) is known to read as zeroes. Answers where it ends. */
  async #copyUpFirst(at: number, to: number, zeroFrom: number, zeroTo: number): Promise<number> {
    const mapping = newMapping();
    await this.#map(at, to - at, mapping);
    const end = at + mapping.lengthBytes;
    if (mapping.kind !== 'backing') return end;
    if (zeroTo > zeroFrom && (await this.#zeroUp(at, end, zeroFrom, zeroTo))) return end;
    return this.#copyUpPart(at, end);
  }

  /** copyUp() without a wait, of few whole clusters, none of them in this image, whose data is in memory; or false. */
  tryCopyUp(offset: number, lengthBytes: number): boolean {
    const cluster = this.#driver.clusterBytes;
    const backing = this.#backing();
    if (lengthBytes > COPIED_AT_ONCE_BYTES || offset % cluster !== 0 || lengthBytes % cluster !== 0)
      return false;
    if (!backing || offset + lengthBytes > backing.lengthBytes || this.#file().node.instance.announce)
      return false;
    const mapping = this.#scratch;
    if (!this.#ranges.isIdle || !this.#driver.tryMap(offset, lengthBytes, mapping)) return false;
    if (mapping.kind !== 'backing' || mapping.lengthBytes < lengthBytes) return false;
    this.#copyBuffer ??= Buffer.allocUnsafeSlow(COPIED_AT_ONCE_BYTES);
    const buffer = this.#copyBuffer.subarray(0, lengthBytes);
    if (!backing.tryRead(offset, buffer)) return false;
    for (let done = 0; done < lengthBytes;) {
      const length = this.#tryAllocate(offset + done, buffer.subarray(done));
      if (length === 0) return false;
      done += length;
    }
    return true;
  }

  /** Zero clusters for [at, end), when all of it is known to be zero; false: copy. The range is held. */
  async #zeroUp(at: number, end: number, zeroFrom: number, zeroTo: number): Promise<boolean> {
    if (!(await this.#readsZero(at, Math.min(end, zeroFrom)))) return false;
    if (!(await this.#readsZero(Math.max(at, zeroTo), end))) return false;
    try {
      await this.#driver.zeroClusters(at, end - at, true);
      return true;
    } catch (error) {
      if (!isUnsupported(error)) throw error;
      return false;
    }
  }

  /** Copies a first part of the unallocated clusters [at, end), whose range is held; answers where it ends. */
  async #copyUpPart(at: number, end: number): Promise<number> {
    const backing = defined(this.#backing(), 'backing file to copy from');
    const length = Math.min(end - at, JOINED_WRITE_BYTES);
    const located: Located =
      at < backing.lengthBytes && length > COPIED_AT_ONCE_BYTES
        ? await backing.node.io.locate(at, Math.min(length, backing.lengthBytes - at))
        : { kind: 'other', lengthBytes: length };
    const plain = located.kind === 'plain' ? located : undefined;
    try {
      // Whole clusters only: what a plain stretch lacks of its last cluster is read with the rest.
      const whole = plain ? alignDown(plain.lengthBytes, this.#driver.clusterBytes) : 0;
      const covered = plain && plain.lengthBytes === end - at ? plain.lengthBytes : whole;
      const size = covered > 0 ? covered : length;
      const reservation = this.#driver.tryReserve?.(at, size) ?? (await this.#driver.reserve(at, size));
      try {
        const stop = Math.min(at + size, reservation.offset + reservation.lengthBytes);
        const payload =
          plain && covered > 0
            ? new FilePayload(plain.io, plain.offset, stop - at)
            : await this.#readUp(backing, at, stop - at);
        const done = await this.#fill(reservation, at, stop, at, payload);
        reservation.link();
        return done;
      } catch (error) {
        reservation.abort();
        throw error;
      }
    } finally {
      plain?.release();
    }
  }

  async #readUp(backing: Edge, at: number, lengthBytes: number): Promise<Payload> {
    const buffer = Buffer.allocUnsafe(lengthBytes);
    if (!backing.node.io.tryRead(at, buffer)) await backing.read(at, buffer);
    return new BufferPayload(buffer);
  }

  /** ChildIo.allocate, as far as the mapping is one of bytes in the file; elsewhere space is found at the write. */
  async allocate(offset: number, lengthBytes: number): Promise<void> {
    const mapping = newMapping();
    for (let done = 0; done < lengthBytes; done += mapping.lengthBytes) {
      await this.#map(offset + done, lengthBytes - done, mapping);
      if (mapping.kind === 'data' && mapping.writable)
        await this.#file().allocate(mapping.hostOffset, mapping.lengthBytes);
    }
  }

  tryAllocate(offset: number, lengthBytes: number): boolean {
    const mapping = this.#scratch;
    if (this.#driver.clusterBytes !== 1 || !this.#driver.tryMap(offset, lengthBytes, mapping)) return false;
    return this.#file().tryAllocate(mapping.hostOffset, mapping.lengthBytes);
  }

  /** Only a driver without clusters has its end where the file has it. */
  async extend(lengthBytes: number): Promise<void> {
    if (this.#driver.clusterBytes !== 1) return;
    const mapping = newMapping();
    await this.#map(0, lengthBytes, mapping);
    await this.#file().extend(mapping.hostOffset + lengthBytes);
  }

  tryExtend(lengthBytes: number): boolean {
    const mapping = this.#scratch;
    if (this.#driver.clusterBytes !== 1 || !this.#driver.tryMap(0, lengthBytes, mapping)) return false;
    return this.#file().tryExtend(mapping.hostOffset + lengthBytes);
  }

  /**
   * Status now if no wait is needed. Without clusters of its own (raw) the driver knows nothing of holes, so the file
   * says, later. Where there are clusters, data is what the tables call so, unless the file is much smaller than it is
   * long: asking it about each would cost more than it tells.
   */
  tryStatus(offset: number, lengthBytes: number): BlockStatus | undefined {
    const mapping = this.#scratch;
    if (this.#driver.clusterBytes === 1 || !this.#driver.tryMap(offset, lengthBytes, mapping))
      return undefined;
    if (mapping.kind === 'data' && this.#isFileSparse(offset)) return undefined;
    return this.#statusOf(mapping);
  }

  /** Looked at when a look through the image begins. */
  #isFileSparse(offset: number): boolean {
    if (offset > 0 && this.#sparse !== undefined) return this.#sparse;
    const { node } = this.#file();
    const allocated = node.allocatedBytes();
    const slack = Math.max(METADATA_CLUSTERS * this.#driver.clusterBytes, (allocated ?? 0) / 9);
    this.#sparse = allocated !== undefined && node.lengthBytes > allocated + slack;
    return this.#sparse;
  }

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    const mapping = newMapping();
    await this.#map(offset, lengthBytes, mapping);
    const status = this.#statusOf(mapping);
    const hasClusters = this.#driver.clusterBytes > 1;
    if (mapping.kind !== 'data' || (hasClusters && !this.#isFileSparse(offset))) return status;
    const file = this.#file();
    const inside = Math.min(mapping.lengthBytes, file.lengthBytes - mapping.hostOffset);
    if (inside <= 0) return { ...status, zero: true, data: hasClusters };
    const { lengthBytes: length, zero, data, hostOffset: at } = await file.status(mapping.hostOffset, inside);
    // Clusters are there, even where the file has none of their bytes yet.
    if (hasClusters) return { ...status, lengthBytes: length, zero };
    // Also where the bytes are is for the file to say: an export knows no place beyond its end.
    return { lengthBytes: length, allocated: true, zero, data, ...(at !== undefined && { hostOffset: at }) };
  }

  #statusOf(mapping: Mapping): BlockStatus {
    switch (mapping.kind) {
      case 'data':
        return withHost(
          { lengthBytes: mapping.lengthBytes, allocated: true, zero: false, data: true },
          mapping,
        );
      case 'zero':
        return withHost(
          { lengthBytes: mapping.lengthBytes, allocated: true, zero: true, data: false },
          mapping,
        );
      case 'backing':
        return {
          lengthBytes: mapping.lengthBytes,
          allocated: false,
          zero: !this.#node.children.has('backing'),
          data: false,
        };
      case 'compressed':
        return { lengthBytes: mapping.lengthBytes, allocated: true, zero: false, data: true };
    }
  }

  /** For offload: the first stretch at `offset`, its range held (shared) until release() when it is plain. */
  async locate(offset: number, lengthBytes: number): Promise<Located> {
    const release = await this.#ranges.lockShared(offset, lengthBytes);
    const mapping = newMapping();
    let located: Located = { kind: 'other', lengthBytes };
    try {
      await this.#map(offset, lengthBytes, mapping);
      located = await this.#locateMapping(mapping, offset);
      if (located.kind === 'plain') located = heldUntilReleased(located, release);
      return located;
    } finally {
      if (located.kind !== 'plain') release();
    }
  }

  async #locateMapping(mapping: Mapping, offset: number): Promise<Located> {
    const length = mapping.lengthBytes;
    switch (mapping.kind) {
      case 'data': {
        const { node } = this.#file();
        // Whoever listens is to hear of the read.
        if (node.instance.announce) return { kind: 'other', lengthBytes: length };
        return node.io.locate(mapping.hostOffset, length);
      }
      case 'zero':
        return { kind: 'zero', lengthBytes: length };
      case 'backing': {
        const backing = this.#backing();
        const inside = backing ? Math.min(length, backing.lengthBytes - offset) : 0;
        if (!backing || inside <= 0) return { kind: 'zero', lengthBytes: length };
        return backing.node.io.locate(offset, inside);
      }
      case 'compressed':
        return { kind: 'other', lengthBytes: length };
    }
  }
}

/** The file is to reach so far: its last cluster is whole, however little of it is written. */
function hostEnd(reservation: Reservation): number {
  return reservation.hostOffset + reservation.lengthBytes;
}

function withHost(status: BlockStatus, mapping: Mapping): BlockStatus {
  if (mapping.hostOffset >= 0) status.hostOffset = mapping.hostOffset;
  return status;
}

function heldUntilReleased(located: Extract<Located, { kind: 'plain' }>, release: Release): Located {
  const below = located.release;
  return {
    ...located,
    release: () => {
      below();
      release();
    },
  };
}
