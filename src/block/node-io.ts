import { assert, missing } from '../base/assert.js';
import { failureOf } from '../base/async.js';
import type { CancelSignal } from '../base/cancel-signal.js';
import { BlockError, errnoError } from '../base/error.js';
import { AlignedIo, isAlignedRequest } from './aligned-io.js';
import type { Change } from './change-gate.js';
import { DirtyBitmap } from './dirty-bitmap.js';
import type { DriverInstance, IoDriver, Preallocated } from './driver.js';
import type { LayerMap, Place } from './layers/layer-map.js';
import type { Located } from './located.js';
import { MappedIo } from './mapped/mapped-io.js';
import type { Node } from './node.js';
import { RangeLock } from './range-lock.js';
import { type BlockStatus, Flag, hasFlag, IoRequest, type Mapping, newMapping } from './request.js';

/**
 * The I/O facade of one node: the one place that aligns requests, serialises the padded ones, tells the dirty
 * bitmaps, and chooses between the driver's own data path and the generic one over its mapping.
 * Ranges were checked by whoever holds the edge; `mayGrow` lets a write end beyond the node (resize permission).
 */
export class NodeIo {
  readonly #node: Node;
  /** Requests that must not overlap others: read-modify-write here, allocations in MappedIo. */
  readonly ranges = new RangeLock();
  /** The data path: over a mapping, or the driver's own. */
  readonly #mapped: MappedIo | undefined;
  readonly #aligned: AlignedIo | undefined;
  /** What is read of the layers below is copied into this one (a drive's copy-on-read). */
  copiesOnRead = false;
  #unmaps = false;
  #detectsZeroes = false;

  constructor(node: Node, instance: DriverInstance) {
    this.#node = node;
    this.modesChanged();
    assert((instance.io === undefined) !== (instance.map === undefined), 'a driver has either io or map');
    if (instance.map) this.#mapped = new MappedIo(node, instance.map, this.ranges);
    if (instance.io) this.#aligned = new AlignedIo(node, this.ranges);
  }

  modesChanged(): void {
    const { discard, detectZeroes } = this.#node.modes;
    this.#unmaps = discard === 'unmap';
    this.#detectsZeroes = detectZeroes !== 'off';
  }

  /** Reads now if no wait is needed; past the end are zeroes. */
  tryRead(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    const { instance } = this.#node;
    const align = instance.requestAlignmentBytes;
    if (this.copiesOnRead || (align > 1 && !isAlignedRequest(offset, lengthBytes, align))) return false;
    if (!this.ranges.isFree && this.ranges.conflictsShared(offset, lengthBytes)) return false;
    if (offset + lengthBytes > instance.lengthBytes) return false;
    if (this.#mapped) return this.#mapped.reading.tryRead(request, from, lengthBytes, offset);
    return this.#io().tryRead?.(request, from, lengthBytes, offset) ?? false;
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const inside = Math.max(0, Math.min(lengthBytes, this.#node.lengthBytes - offset));
    if (inside < lengthBytes) request.fillZero(from + inside, lengthBytes - inside);
    if (inside === 0) return;
    if (this.copiesOnRead && this.#node.isWritable) {
      const { generation } = request;
      await this.copyOnRead(offset, inside);
      request.assertIs(generation);
    }
    if (this.#mapped) return this.#mapped.reading.read(request, from, inside, offset);
    return this.#unmapped().read(request, from, inside, offset);
  }

  readBuffer(offset: number, buffer: Uint8Array): Promise<void> {
    return this.read(IoRequest.ofBuffer(buffer), 0, buffer.length, offset);
  }

  tryWrite(request: IoRequest, from: number, lengthBytes: number, offset: number, mayGrow: boolean): boolean {
    const node = this.#node;
    const { instance } = node;
    if (this.#detectsZeroes && request.isZero(from, lengthBytes)) return false;
    if (node.guard?.concerns(offset)) return false;
    const align = instance.requestAlignmentBytes;
    if (align > 1 && !isAlignedRequest(offset, lengthBytes, align)) return false;
    if (!this.ranges.isFree && this.ranges.conflictsShared(offset, lengthBytes)) return false;
    this.#checkEnd(offset, lengthBytes, mayGrow);
    if (node.gate && !node.gate.isOpen(offset, lengthBytes)) return false;
    if (node.changeLog?.isOpen(offset, lengthBytes) === false) return false;
    if (node.writeThreshold) node.beginWrite(offset, lengthBytes);
    const done = this.#mapped
      ? this.#mapped.writing.tryWrite(request, from, lengthBytes, offset)
      : (this.#io().tryWrite?.(request, from, lengthBytes, offset) ?? false);
    if (done) node.markWritten(offset, lengthBytes);
    return done;
  }

  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
    mayGrow = false,
  ): Promise<void> {
    this.#checkEnd(offset, lengthBytes, mayGrow);
    if (lengthBytes === 0) return;
    const { generation } = request;
    const { guard } = this.#node;
    const isGuarded = guard?.concerns(offset) ?? false;
    if (this.#detectsZeroes || isGuarded) await request.stabilise();
    request.assertIs(generation);
    if (this.#detectsZeroes && request.isZero(from, lengthBytes))
      return this.#writeZeroBytes(offset, lengthBytes, flags, mayGrow);
    const write = (): Promise<void> => this.#writeGated(request, from, lengthBytes, offset, flags);
    if (!guard || !isGuarded) return write();
    await guard.run(offset, request.gather(from, lengthBytes), (sector) => this.readBuffer(0, sector), write);
  }

  async #writeGated(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    const { generation } = request;
    let isDurable = false;
    if (this.#passes(offset, lengthBytes)) {
      isDurable = await this.#write(request, from, lengthBytes, offset, flags);
      return this.#makeDurable(flags, isDurable);
    }
    // Others than the node itself will look at it.
    await request.stabilise();
    request.assertIs(generation);
    const buffer = request.gather(from, lengthBytes);
    await this.#throughGate({ kind: 'write', offset, lengthBytes, buffer, flags }, async () => {
      request.assertIs(generation);
      isDurable = await this.#write(request, from, lengthBytes, offset, flags);
    });
    request.assertIs(generation);
    await this.#makeDurable(flags, isDurable);
  }

  /** After a change, and what its gate did with it: a gate that flushes has a copy to make durable too. */
  async #makeDurable(flags: number, isDurable: boolean): Promise<void> {
    if (hasFlag(flags, Flag.fua) && (!isDurable || this.#node.gate?.flush)) await this.flush();
  }

  /** A write that turned out to be one of zeroes. */
  #writeZeroBytes(offset: number, lengthBytes: number, flags: number, mayGrow: boolean): Promise<void> {
    const mayUnmap = this.#unmaps && this.#node.modes.detectZeroes === 'unmap' ? Flag.mayUnmap : Flag.none;
    return this.writeZeroes(offset, lengthBytes, flags + mayUnmap, mayGrow);
  }

  async writeZeroes(
    offset: number,
    lengthBytes: number,
    flags: number,
    mayGrow = false,
    signal?: CancelSignal,
  ): Promise<void> {
    this.#checkEnd(offset, lengthBytes, mayGrow);
    if (lengthBytes === 0) return;
    const { guard } = this.#node;
    if (!guard?.concerns(offset)) return this.#zeroGated(offset, lengthBytes, flags, signal);
    const zero = (): Promise<void> => this.#zeroGated(offset, lengthBytes, flags, signal);
    const zeroes = Buffer.alloc(Math.min(lengthBytes, 512));
    await guard.run(offset, zeroes, (sector) => this.readBuffer(0, sector), zero);
  }

  async #zeroGated(
    offset: number,
    lengthBytes: number,
    flags: number,
    signal: CancelSignal | undefined,
  ): Promise<void> {
    if (this.#passes(offset, lengthBytes)) await this.#zero(offset, lengthBytes, flags, signal);
    else
      await this.#throughGate({ kind: 'zeroes', offset, lengthBytes, flags }, () =>
        this.#zero(offset, lengthBytes, flags, signal),
      );
    await this.#makeDurable(flags, false);
  }

  async discard(offset: number, lengthBytes: number, signal?: CancelSignal): Promise<void> {
    this.#checkEnd(offset, lengthBytes, false);
    if (lengthBytes === 0 || !this.#unmaps) return;
    if (this.#passes(offset, lengthBytes)) return this.#discard(offset, lengthBytes, signal);
    await this.#throughGate({ kind: 'discard', offset, lengthBytes }, () =>
      this.#discard(offset, lengthBytes, signal),
    );
  }

  #passes(offset: number, lengthBytes: number): boolean {
    const { gate } = this.#node;
    return gate === undefined || (gate.tracks !== true && gate.isOpen(offset, lengthBytes));
  }

  async #throughGate(change: Change, forward: () => Promise<void>): Promise<void> {
    const { gate } = this.#node;
    return gate ? gate.run(change, forward) : forward();
  }

  /** A change that the log of the node's durable bitmaps, if it has one, is to know of before it is made. */
  #logged<T>(offset: number, lengthBytes: number, change: () => Promise<T>): Promise<T> {
    const { changeLog } = this.#node;
    return changeLog ? changeLog.run(offset, lengthBytes, change) : change();
  }

  /** Answers whether it is durable already. */
  #write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<boolean> {
    if (!this.#node.changeLog) return this.#writeLogged(request, from, lengthBytes, offset, flags);
    const { generation } = request;
    return this.#logged(offset, lengthBytes, () => {
      request.assertIs(generation);
      return this.#writeLogged(request, from, lengthBytes, offset, flags);
    });
  }

  async #writeLogged(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<boolean> {
    const { generation } = request;
    this.#node.beginWrite(offset, lengthBytes);
    let isDurable: boolean;
    try {
      if (this.#mapped) isDurable = await this.#mapped.write(request, from, lengthBytes, offset, flags);
      else isDurable = await this.#unmapped().write(request, from, lengthBytes, offset, flags);
    } finally {
      // Also after a failure: part of the range may have been written.
      this.#node.markWritten(offset, lengthBytes);
    }
    request.assertIs(generation);
    return isDurable;
  }

  #zero(offset: number, lengthBytes: number, flags: number, signal: CancelSignal | undefined): Promise<void> {
    return this.#logged(offset, lengthBytes, () => this.#zeroLogged(offset, lengthBytes, flags, signal));
  }

  async #zeroLogged(
    offset: number,
    lengthBytes: number,
    flags: number,
    signal: CancelSignal | undefined,
  ): Promise<void> {
    this.#node.beginWrite(offset, lengthBytes);
    try {
      if (this.#mapped) await this.#mapped.zeroing.writeZeroes(offset, lengthBytes, flags, signal);
      else await this.#unmapped().writeZeroes(offset, lengthBytes, flags, signal);
    } finally {
      this.#node.markDirty(offset, lengthBytes);
    }
  }

  #discard(offset: number, lengthBytes: number, signal: CancelSignal | undefined): Promise<void> {
    return this.#logged(offset, lengthBytes, () => this.#discardLogged(offset, lengthBytes, signal));
  }

  async #discardLogged(offset: number, lengthBytes: number, signal: CancelSignal | undefined): Promise<void> {
    try {
      if (this.#mapped) await this.#mapped.zeroing.discard(offset, lengthBytes, signal);
      else await this.#unmapped().discard(offset, lengthBytes);
    } finally {
      this.#node.markDirty(offset, lengthBytes);
    }
  }

  flush(): Promise<void> {
    const { gate, instance } = this.#node;
    return gate?.flush ? gate.flush(() => instance.flush()) : instance.flush();
  }

  // ---- for merged maps (block/layers)

  /** What it has can be told by its mapping, and nobody hears of reads. */
  get mayLookThrough(): boolean {
    const mapped = this.#mapped?.mapped;
    return mapped !== undefined && mapped.driver.clusterBytes > 1 && !mapped.isHeard && !this.copiesOnRead;
  }

  /** See MapDriver; undefined: there is no mapping. */
  get unitBytes(): number | undefined {
    return this.#mapped?.mapped.driver.unitBytes;
  }

  get layerMap(): LayerMap | undefined {
    return this.#mapped?.mapped.layerMap;
  }

  /** The node is closed. */
  forgetLayers(): void {
    this.#mapped?.mapped.forgetLayers();
  }

  /** Nobody changes a part of the range, or waits to. */
  isFreeToRead(offset: number, lengthBytes: number): boolean {
    return this.ranges.isFree || !this.ranges.conflictsShared(offset, lengthBytes);
  }

  /** See MapDriver.mapAll. */
  mapAll(
    offset: number,
    lengthBytes: number,
    tell: (offset: number, mapping: Mapping) => void,
  ): Promise<boolean> {
    return (this.#mapped ?? missing(`mapping of '${this.#node.name}'`)).mapped.mapAll(
      offset,
      lengthBytes,
      tell,
    );
  }

  tryMap(offset: number, lengthBytes: number, mapping: Mapping): boolean {
    return this.#mapped?.mapped.driver.tryMap(offset, lengthBytes, mapping) ?? false;
  }

  /** Brings what tryMap needs for the range into memory. */
  async loadMap(offset: number, lengthBytes: number): Promise<void> {
    const mapping = newMapping();
    const end = Math.min(offset + lengthBytes, this.#node.lengthBytes);
    for (let at = offset; at < end; at += mapping.lengthBytes)
      await this.#mapped?.mapped.map(at, end - at, mapping);
  }

  /** status() now if no wait is needed. */
  tryStatus(offset: number, lengthBytes: number): BlockStatus | undefined {
    const inside = Math.min(lengthBytes, this.#node.lengthBytes - offset);
    return inside > 0 ? this.#mapped?.status.tryStatus(offset, inside) : undefined;
  }

  /** Status of this node's own layer; a filter answers for its child. */
  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    const inside = Math.min(lengthBytes, this.#node.lengthBytes - offset);
    assert(inside > 0, () => `status beyond the end of '${this.#node.name}'`);
    if (this.#mapped) return this.#mapped.status.status(offset, inside);
    return this.#io().status(offset, inside);
  }

  async truncate(lengthBytes: number): Promise<void> {
    const node = this.#node;
    if (!node.instance.truncate) {
      throw new BlockError('unsupported', `Image format driver does not support resize`, { node: node.name });
    }
    for (const { granularityBytes } of node.dirtyBitmaps)
      DirtyBitmap.checkSize(lengthBytes, granularityBytes);
    const before = node.lengthBytes;
    const release = await this.ranges.lockExclusive(0, Math.max(lengthBytes, before));
    const failure = await failureOf(async () => {
      await node.side?.resizing(lengthBytes);
      await node.instance.truncate?.(lengthBytes);
    });
    release();
    // A driver that fails may have another size all the same: what is kept of the disk follows it.
    if (!failure || node.lengthBytes !== before) {
      node.resized();
      await node.side?.resized();
    }
    if (failure) throw failure.error;
  }

  /** See MappedNode. */
  lookForPlainEnd(offset: number, place: Place): void {
    this.#mapped?.mapped.lookForPlainEnd(offset, place);
  }

  /** See DriverInstance.preallocate. */
  async preallocate(from: number, end: number, mode: Preallocated): Promise<void> {
    const { instance } = this.#node;
    assert(instance.preallocate !== undefined, () => `space ahead in '${this.#node.name}', which takes none`);
    const release = await this.ranges.lockExclusive(from, end - from);
    try {
      await instance.preallocate(from, end, mode);
    } finally {
      this.#node.layerMaps?.changed(this.#node, from, end - from);
      release();
    }
  }

  /** See ChildIo.allocate. */
  async allocate(offset: number, lengthBytes: number, mayGrow: boolean): Promise<void> {
    this.#checkEnd(offset, lengthBytes, mayGrow);
    if (this.#mapped) return this.#mapped.space.allocate(offset, lengthBytes);
    await this.#io().allocate?.(offset, lengthBytes);
  }

  tryAllocate(offset: number, lengthBytes: number, mayGrow: boolean): boolean {
    this.#checkEnd(offset, lengthBytes, mayGrow);
    if (this.#mapped) return this.#mapped.space.tryAllocate(offset, lengthBytes);
    const io = this.#io();
    return io.tryAllocate?.(offset, lengthBytes) ?? io.allocate === undefined;
  }

  /** See ChildIo.extend. */
  async extend(lengthBytes: number, mayGrow: boolean): Promise<void> {
    if (lengthBytes <= this.#node.lengthBytes) return;
    this.#checkEnd(0, lengthBytes, mayGrow);
    if (this.#mapped) return this.#mapped.space.extend(lengthBytes);
    await this.#io().extend?.(lengthBytes);
  }

  tryExtend(lengthBytes: number, mayGrow: boolean): boolean {
    if (lengthBytes <= this.#node.lengthBytes) return true;
    this.#checkEnd(0, lengthBytes, mayGrow);
    if (this.#mapped) return this.#mapped.space.tryExtend(lengthBytes);
    const io = this.#io();
    return io.tryExtend?.(lengthBytes) ?? io.extend === undefined;
  }

  /** See MappedCopyingUp.copyUp; only nodes with a backing file have something to copy up. */
  async copyUp(offset: number, lengthBytes: number, zeroes: boolean): Promise<void> {
    assert(this.#mapped, () => `copying up into '${this.#node.name}', which has no mapping`);
    await this.#mapped.copyingUp.copyUp(offset, lengthBytes, zeroes);
  }

  /** See ChildIo.copyOnRead; a node without layers below has nothing to copy. */
  async copyOnRead(offset: number, lengthBytes: number, last?: Node): Promise<void> {
    await this.#mapped?.copyingUp.copyOnRead(offset, lengthBytes, last);
  }

  /** See MappedCopyingUp.tryCopyUp. */
  tryCopyUp(offset: number, lengthBytes: number): boolean {
    return this.#mapped?.copyingUp.tryCopyUp(offset, lengthBytes) ?? false;
  }

  /** Where the bytes of [offset, ...) are plain bytes of a host file, for offload; see MappedStatus.locate. */
  locate(offset: number, lengthBytes: number, wanted?: () => void): Promise<Located> {
    if (this.#mapped) return this.#mapped.status.locate(offset, lengthBytes, wanted);
    return Promise.resolve({ kind: 'plain', io: this.#io(), offset, lengthBytes, release: () => undefined });
  }

  #unmapped(): AlignedIo {
    return this.#aligned ?? missing(`io of '${this.#node.name}'`);
  }

  #io(): IoDriver {
    return this.#node.instance.io ?? missing(`io of '${this.#node.name}'`);
  }

  /** What lies beyond the end of a disk whose size is in a header would be lost with the next opening. */
  #checkEnd(offset: number, lengthBytes: number, mayGrow: boolean): void {
    const node = this.#node;
    if (offset + lengthBytes <= node.lengthBytes) return;
    if (!mayGrow) throw errnoError('EIO', undefined, { node: node.name, offset });
    if (node.hasFixedLength) throw errnoError('ENOSPC', undefined, { node: node.name, offset });
  }
}
