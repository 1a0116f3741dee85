import { Abandonable } from '../base/async.js';
import { alignDown } from '../base/align.js';
import { BlockError, errnoError } from '../base/error.js';
import type { IoVector } from '../base/io-vector.js';
import type { FileTraits, HostFile } from './host.js';
import { type Change, SECTOR_BYTES, type SimulatedInode } from './simulated-disk.js';
import type { Machine, OperationKind } from './simulated-machine.js';

/** An open file of the simulation. Every promise form takes a random time, and any try* may answer false. */
export class SimulatedFile implements HostFile {
  readonly path: string;
  readonly writable: boolean;
  readonly traits: FileTraits = { inMemory: false, isRemote: false, isBlockDevice: false, alignmentBytes: 1 };
  readonly #inode: SimulatedInode;
  readonly #machine: Machine;
  readonly #boot: number;
  #closed = false;
  readonly #requests = new Abandonable();
  #flushFailure: BlockError | undefined;

  constructor(machine: Machine, path: string, inode: SimulatedInode, writable: boolean) {
    this.#machine = machine;
    this.#boot = machine.boot;
    this.#inode = inode;
    inode.handles.add(this);
    this.path = path;
    this.writable = writable;
  }

  /** What it leads to, whatever became of its name. */
  get inode(): SimulatedInode {
    this.#checkOpen();
    return this.#inode;
  }

  sizeBytes(): number {
    this.#checkOpen();
    return this.#inode.sizeBytes;
  }

  allocatedBytes(): number {
    this.#checkOpen();
    return this.#inode.allocatedBytes;
  }

  tryRead(position: number, memory: IoVector, from: number, lengthBytes: number): boolean {
    if (!this.#mayTry('read')) return false;
    this.#readPieces(position, memory.pieces(from, lengthBytes));
    return true;
  }

  /** Whether a socket may send it from its page cache now. */
  isAtHand(): boolean {
    return !this.#closed && this.#mayTry('read');
  }

  /** What such a socket finds there, as long as the inode lives. */
  cached(position: number, lengthBytes: number): Buffer {
    const bytes = Buffer.alloc(lengthBytes);
    this.#inode.read(position, bytes);
    return bytes;
  }

  read(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    const pieces = memory.pieces(from, lengthBytes);
    return this.#perform('read', position, () => this.#readPieces(position, pieces));
  }

  #readPieces(position: number, pieces: readonly Uint8Array[]): void {
    let at = position;
    for (const piece of pieces) {
      this.#inode.read(at, piece);
      at += piece.length;
    }
  }

  tryWrite(position: number, memory: IoVector, from: number, lengthBytes: number): boolean {
    const data = Buffer.concat(memory.pieces(from, lengthBytes));
    return this.#tryChange('write', { type: 'write', position, data });
  }

  /** Looks at the memory when its time has come, not before. */
  async write(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    this.#checkWritable();
    const pieces = memory.pieces(from, lengthBytes);
    const change = { type: 'write' as const, position, data: Buffer.concat(pieces) };
    const write = (): void => {
      change.data = Buffer.concat(pieces);
      this.#apply(change);
    };
    await this.#perform('write', position, write, change);
  }

  async writeDurable(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    await this.write(position, memory, from, lengthBytes);
    const mark = this.#inode.mark;
    await this.#settle(() => this.#inode.persistRange(position, position + lengthBytes, mark));
  }

  flush(): Promise<void> {
    const mark = this.#inode.mark;
    return this.#settle(() => this.#inode.persist(mark));
  }

  async #settle(persist: () => void): Promise<void> {
    const dropped = this.#machine.isFlushDropped(this.path);
    let isFull = false;
    try {
      await this.#perform('flush', 0, () => {
        if (this.#flushFailure) throw this.#flushFailure;
        isFull = this.#machine.isOverfull;
        if (isFull) throw errnoError('ENOSPC', undefined, { path: this.path });
        if (!dropped) persist();
      });
    } catch (error) {
      if (!isFull && error instanceof BlockError && error.kind !== 'closed') this.#flushFailure ??= error;
      throw error;
    }
  }

  get hasLostWrites(): boolean {
    return this.#flushFailure !== undefined;
  }

  /** A simulated disk overwrites in place. */
  forbidCopyOnWrite(): void {}

  punchHole(position: number, lengthBytes: number): Promise<void> {
    return this.#change('punchHole', position, { type: 'clear', position, lengthBytes, keepSize: true });
  }

  zeroRange(position: number, lengthBytes: number): Promise<void> {
    return this.#change('zeroRange', position, { type: 'clear', position, lengthBytes, keepSize: false });
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#change('truncate', sizeBytes, { type: 'truncate', sizeBytes });
  }

  allocate(position: number, lengthBytes: number): Promise<void> {
    return this.#change('allocate', position, { type: 'allocate', position, lengthBytes });
  }

  tryTruncate(sizeBytes: number): boolean {
    return this.#tryChange('truncate', { type: 'truncate', sizeBytes });
  }

  tryAllocate(position: number, lengthBytes: number): boolean {
    return this.#tryChange('allocate', { type: 'allocate', position, lengthBytes });
  }

  extentAt(position: number, lengthBytes: number): { isHole: boolean; lengthBytes: number } {
    this.#checkOpen();
    return this.#inode.extentAt(position, lengthBytes);
  }

  async copyFrom(
    source: HostFile,
    sourcePosition: number,
    position: number,
    lengthBytes: number,
  ): Promise<number> {
    if (!(source instanceof SimulatedFile)) throw errnoError('ENOTSUP', undefined, { path: this.path });
    this.#checkWritable();
    return this.#perform('copyFrom', position, () =>
      // Like the kernel, it may stop early.
      this.#copy(source, sourcePosition, position, this.#machine.shortenCopy(position, lengthBytes)),
    );
  }

  tryCopyFrom(source: HostFile, sourcePosition: number, position: number, lengthBytes: number): number {
    if (!(source instanceof SimulatedFile) || source.#closed || !this.writable) return -1;
    if (!this.#mayTry('copyFrom')) return -1;
    const bytes = this.#machine.shortenCopy(position, lengthBytes);
    if (!this.#machine.hasRoom(this.#inode, { type: 'allocate', position, lengthBytes: bytes })) return -1;
    return this.#copy(source, sourcePosition, position, bytes);
  }

  startWriteback(): void {
    // Only makes it likelier that changes reach the medium, which a power loss decides at random anyway.
  }

  lockByteShared(byteOffset: number): boolean {
    this.#checkOpen();
    if (this.#inode.foreignLocks.has(byteOffset)) return false;
    const holders = this.#inode.locks.get(byteOffset) ?? new Set();
    this.#inode.locks.set(byteOffset, holders.add(this));
    return true;
  }

  unlockByte(byteOffset: number): void {
    this.#checkOpen();
    this.#inode.locks.get(byteOffset)?.delete(this);
  }

  isByteLockedByOther(byteOffset: number): boolean {
    this.#checkOpen();
    if (this.#inode.foreignLocks.has(byteOffset)) return true;
    const holders = this.#inode.locks.get(byteOffset);
    return holders !== undefined && holders.size > (holders.has(this) ? 1 : 0);
  }

  abandon(): void {
    this.#requests.abandon(errnoError('ECANCELED', undefined, { path: this.path }));
    void this.close();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#inode.handles.delete(this);
    for (const holders of this.#inode.locks.values()) holders.delete(this);
  }

  #checkOpen(): void {
    this.#requests.check();
    if (!this.#closed && this.#machine.boot === this.#boot) return;
    throw new BlockError('closed', `File '${this.path}' is closed`, { path: this.path });
  }

  #checkWritable(): void {
    if (!this.writable) throw errnoError('EBADF', undefined, { path: this.path });
  }

  #mayTry(kind: OperationKind): boolean {
    if (this.#closed || this.#machine.boot !== this.#boot) return false;
    return this.#machine.mayTry(kind, this.path);
  }

  async #perform<T>(kind: OperationKind, offset: number, action: () => T, change?: Change): Promise<T> {
    const pending = change === undefined ? undefined : { inode: this.#inode, change };
    this.#checkOpen();
    const performed = this.#machine.perform(
      { kind, path: this.path, offset, boot: this.#boot },
      action,
      pending,
    );
    return this.#requests.during(performed);
  }

  async #change(kind: OperationKind, offset: number, change: Change): Promise<void> {
    this.#checkWritable();
    await this.#perform(kind, offset, () => this.#apply(change), change);
  }

  /** On a full disk a write may get as far as the space does. */
  #apply(change: Change): void {
    if (this.#machine.hasRoom(this.#inode, change))
      return this.#inode.change(change, this.#machine.fileTimeMs);
    if (change.type === 'write') {
      // It stops at the end of a block, as the kernel does.
      const { position, data } = change;
      const end = alignDown(position + this.#machine.shorten(data.length) - 1, SECTOR_BYTES);
      const part = { ...change, data: data.subarray(0, Math.max(0, end - position)) };
      if (part.data.length > 0 && this.#machine.hasRoom(this.#inode, part))
        this.#inode.change(part, this.#machine.fileTimeMs);
    }
    throw errnoError('ENOSPC', undefined, { path: this.path, offset: positionOf(change) });
  }

  #tryChange(kind: OperationKind, change: Change): boolean {
    if (!this.writable || !this.#mayTry(kind) || !this.#machine.hasRoom(this.#inode, change)) return false;
    this.#inode.change(change, this.#machine.fileTimeMs);
    return true;
  }

  #copy(source: SimulatedFile, sourcePosition: number, position: number, lengthBytes: number): number {
    const bytes = Math.max(Math.min(lengthBytes, source.#inode.sizeBytes - sourcePosition), 0);
    const data = Buffer.alloc(bytes);
    source.#inode.read(sourcePosition, data);
    this.#apply({ type: 'write', position, data });
    return bytes;
  }
}

function positionOf(change: Change): number {
  return change.type === 'truncate' ? change.sizeBytes : change.position;
}
