import fs from 'node:fs';
import { IoVector } from '../base/io-vector.js';
import type { Slots } from '../base/async.js';
import { KiB, MAX_SYNC_WRITE_BYTES, MiB } from '../base/limits.js';
import { callError, isNotSupported, nodeError } from './call-error.js';
import { type CopyBuffers, copyThroughMemory } from './copy-through-memory.js';
import { DirectMemory } from './direct-memory.js';
import { FileExtents } from './file-extents.js';
import { FileFlushes } from './file-flushes.js';
import { FileSending } from './file-sending.js';
import type { FileTraits, HostExtent, HostFile } from './host.js';
import type { CallResult } from './native-calls.js';
import { OpenDescriptor } from './open-descriptor.js';
import { afterBytes, transferPieces } from './pool-transfer.js';
import { SyncWrites, type TurnBudget } from './sync-writes.js';
import { FallocateMode, type Syscalls } from './syscalls.js';

/** Longer reads are never made on the event loop: 4 MiB take about a millisecond from memory. */
const MAX_SYNC_READ_BYTES = 4 * MiB;
/** Longest copy in memory that is made on the event loop. */
const MAX_SYNC_COPY_BYTES = 8 * MiB;
/** A longer copy within memory is worth a thread of its own, beside the event loop. */
const MAX_COPY_NOW_BYTES = 512 * KiB;
/** One copy_file_range: bounds how long it keeps a thread of the pool. */
const MAX_COPY_BYTES = 64 * MiB;
/** A flush above this means a device that makes page cache writes wait while it is flushed. */
const QUICK_FLUSH_MS = 2;

export interface RealFileProperties {
  fd: number;
  /** Called when the descriptor is closed. */
  release: () => void;
  path: string;
  writable: boolean;
  direct: boolean;
  traits: FileTraits;
  /** When it was opened. */
  allocatedBytes: number;
  /** copy_file_range would move its pages one by one: see copyFrom. */
  copiesPages: boolean;
  /** What SEEK_DATA calls a hole is one: see FileExtents. */
  knowsHoles: boolean;
}

/** What all files of a host share. */
export interface SharedByFiles {
  budget: TurnBudget;
  /** The places in the pool that remote files share. */
  remoteCalls: Slots;
  copyBuffers: CopyBuffers;
}

/** A descriptor; see HostFile for what each method promises. */
export class RealFile implements HostFile {
  readonly path: string;
  readonly writable: boolean;
  readonly traits: FileTraits;
  readonly isDirect: boolean;
  readonly sending: FileSending;
  readonly #fd: number;
  readonly #descriptor: OpenDescriptor;
  readonly #direct: boolean;
  readonly #directMemory: DirectMemory;
  /** O_DIRECT, or remote: then even a read that must not wait may ask for the size. */
  readonly #onlyInPool: boolean;
  readonly #system: Syscalls;
  readonly #syncWrites: SyncWrites;
  readonly #flushes: FileFlushes;
  readonly #extents: FileExtents;
  /** RWF_NOWAIT works here; found out by the first read. */
  #noWaitWorks: boolean;
  #durableWrites = 0;
  #lacksDurableWrites = false;
  readonly #copyBuffers: CopyBuffers;
  readonly #copiesPages: boolean;
  #allocatedBytes: number;

  constructor(properties: RealFileProperties, system: Syscalls, shared: SharedByFiles) {
    const { fd, path, writable, direct, traits } = properties;
    this.#fd = fd;
    const { isRemote, inMemory } = traits;
    this.#descriptor = new OpenDescriptor({ ...properties, isRemote, remoteCalls: shared.remoteCalls });
    this.#copyBuffers = shared.copyBuffers;
    this.#copiesPages = properties.copiesPages;
    this.#allocatedBytes = properties.allocatedBytes;
    this.path = path;
    this.writable = writable;
    this.traits = traits;
    this.#direct = direct;
    this.isDirect = direct;
    this.#directMemory = new DirectMemory(system, traits.alignmentBytes);
    this.#onlyInPool = direct || isRemote;
    this.#system = system;
    this.#syncWrites = new SyncWrites(shared.budget);
    this.#flushes = new FileFlushes(this.#descriptor, {
      inMemory,
      direct,
      ...(isRemote && { flushed: () => this.#askAgain() }),
    });
    this.sending = new FileSending(this.#descriptor, system, traits, direct);
    this.#extents = new FileExtents(this.#descriptor, system, properties.knowsHoles);
    this.#noWaitWorks = !direct;
  }

  get descriptor(): number {
    return this.#fd;
  }

  /** Opens the same file once more by a path that leads to it until `open` has answered, whatever became of its name. */
  openAgain(open: (path: string) => Promise<number>): Promise<number> {
    return this.#descriptor.use(() => open(`/proc/self/fd/${this.#fd}`), false);
  }

  sizeBytes(): number {
    return this.#extents.sizeBytes();
  }

  allocatedBytes(): number {
    this.#descriptor.check();
    if (!this.traits.isRemote) return fs.fstatSync(this.#fd).blocks * 512;
    void this.#askAgain();
    return this.#allocatedBytes;
  }

  async #askAgain(): Promise<void> {
    await this.#descriptor.use(() => this.#askAllocated()).catch(() => undefined);
  }

  #askAllocated(): Promise<void> {
    return new Promise((resolve, reject) => {
      fs.fstat(this.#fd, (error, stat) => {
        if (error) return reject(error);
        this.#allocatedBytes = stat.blocks * 512;
        resolve();
      });
    });
  }

  tryRead(position: number, memory: IoVector, from: number, length: number): boolean {
    if (this.#descriptor.isClosed || this.#onlyInPool || length > MAX_SYNC_READ_BYTES) return false;
    if (length === 0) return true;
    let got: number;
    if (this.traits.inMemory) got = this.#system.read(this.#fd, memory, from, length, position);
    else if (this.#noWaitWorks) {
      got = this.#system.readNoWait(this.#fd, memory, from, length, position);
      if (got < 0) {
        const errno = this.#system.lastErrno();
        if (errno !== 'EAGAIN' && errno !== 'EINTR') this.#noWaitWorks = false;
      }
    } else return false;
    if (got === length) return true;
    if (got < 0 || this.sizeBytes() > position + got) return false;
    memory.fillZero(from + got, length - got);
    return true;
  }

  async read(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    if (this.#direct) return this.#readDirect(position, memory, from, lengthBytes);
    await this.#transfer('read', position, memory, from, lengthBytes);
  }

  tryWrite(position: number, memory: IoVector, from: number, length: number): boolean {
    if (this.#descriptor.isClosed || this.#onlyInPool || !this.writable || length > MAX_SYNC_WRITE_BYTES)
      return false;
    if (this.traits.inMemory) return this.#writeNow(position, memory, from, length);
    const startMs = performance.now();
    if (!this.#mayChangeNow(startMs)) return false;
    const done = this.#writeNow(position, memory, from, length);
    this.#syncWrites.wrote(startMs, performance.now());
    return done;
  }

  /** Whether a change of the page cache is not likely to wait for the device. */
  #mayChangeNow(nowMs: number): boolean {
    if (this.#flushes.isRunning || this.#durableWrites > 0 || this.#flushes.lastMs > QUICK_FLUSH_MS)
      return false;
    return this.#syncWrites.mayWrite(nowMs);
  }

  /** A change that a failure leaves to the promise form, which reports it. */
  #tryChange(change: () => boolean): boolean {
    if (this.#descriptor.isClosed || this.#onlyInPool || !this.writable) return false;
    if (this.traits.inMemory) return change();
    const startMs = performance.now();
    if (!this.#mayChangeNow(startMs)) return false;
    const done = change();
    this.#syncWrites.wrote(startMs, performance.now());
    return done;
  }

  async write(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    if (this.#direct) return this.#writeDirect(position, memory, from, lengthBytes);
    await this.#transfer('write', position, memory, from, lengthBytes);
  }

  async writeDurable(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    if (this.#flushes.failure) throw this.#flushes.failure;
    if (this.#lacksDurableWrites || this.traits.inMemory)
      return this.#writeAndFlush(position, memory, from, lengthBytes);
    let pieces = memory.pieces(from, lengthBytes);
    if (this.#direct) {
      this.#directMemory.check(position, lengthBytes);
      if (!this.#directMemory.isAligned(memory, from, lengthBytes))
        pieces = [this.#directMemory.copyOf(memory, from, lengthBytes)];
    }
    this.#durableWrites++;
    const errno = await this.#descriptor
      .use(() => this.#writePieces(pieces, position))
      .finally(() => this.#durableWrites--);
    if (errno === '') return;
    // Says the kernel, or the file system.
    if (isNotSupported(errno) || errno === 'EINVAL') {
      this.#lacksDurableWrites = true;
      return this.#writeAndFlush(position, memory, from, lengthBytes);
    }
    if (this.#direct) throw this.#descriptor.error(errno, position);
    // It failed to write, and does so again, or afterwards: then the page cache may have dropped anything, as with a flush.
    await this.#transferPieces('write', position, pieces, lengthBytes);
    this.#flushes.failure = this.#descriptor.error(errno, position);
    throw this.#flushes.failure;
  }

  /** Answers the errno of the call that failed; '' when all is written and durable. */
  async #writePieces(pieces: readonly Uint8Array[], position: number): Promise<string> {
    let at = position;
    for (let rest = pieces; rest.length > 0;) {
      const { value, errno } = await this.#system.writeDurable(this.#fd, rest, at);
      if (value < 0) return errno;
      if (value === 0) return 'EIO';
      at += value;
      rest = afterBytes(rest, value);
    }
    return '';
  }

  async #writeAndFlush(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    await this.write(position, memory, from, lengthBytes);
    await this.flush();
  }

  flush(): Promise<void> {
    return this.#flushes.flush();
  }

  get hasLostWrites(): boolean {
    return this.#flushes.failure !== undefined;
  }

  forbidCopyOnWrite(): void {
    this.#descriptor.check();
    this.#system.forbidCopyOnWrite(this.#fd);
  }

  async punchHole(position: number, lengthBytes: number): Promise<void> {
    await this.#fallocate(FallocateMode.punchHole, position, lengthBytes);
  }

  async zeroRange(position: number, lengthBytes: number): Promise<void> {
    await this.#fallocate(FallocateMode.zeroRange, position, lengthBytes);
  }

  async allocate(position: number, lengthBytes: number): Promise<void> {
    await this.#fallocate(FallocateMode.allocate, position, lengthBytes);
  }

  tryAllocate(position: number, lengthBytes: number): boolean {
    return this.#tryChange(
      () => this.#system.fallocateNow(this.#fd, FallocateMode.allocate, position, lengthBytes).value >= 0,
    );
  }

  tryTruncate(sizeBytes: number): boolean {
    return this.#tryChange(() => {
      try {
        fs.ftruncateSync(this.#fd, sizeBytes);
        return true;
      } catch {
        return false;
      }
    });
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#descriptor.use(
      () =>
        new Promise((resolve, reject) => {
          fs.ftruncate(this.#fd, sizeBytes, (error) => {
            if (error) reject(nodeError(error, undefined, { path: this.path }));
            else resolve();
          });
        }),
    );
  }

  extentAt(position: number, lengthBytes: number): HostExtent | Promise<HostExtent> {
    return this.#extents.extentAt(position, lengthBytes);
  }

  tryCopyFrom(source: HostFile, sourcePosition: number, position: number, lengthBytes: number): number {
    if (!(source instanceof RealFile) || this.#descriptor.isClosed || source.#descriptor.isClosed) return -1;
    if (!this.traits.inMemory || !source.traits.inMemory || this.#direct || source.#direct) return -1;
    if (lengthBytes > MAX_COPY_NOW_BYTES) return -1;
    return this.#system.copyFileRangeNow(source.#fd, sourcePosition, this.#fd, position, lengthBytes).value;
  }

  async copyFrom(
    source: HostFile,
    sourcePosition: number,
    position: number,
    lengthBytes: number,
  ): Promise<number> {
    if (!(source instanceof RealFile)) throw callError('EXDEV', 'copy_file_range', { path: this.path });
    const bytes = Math.min(lengthBytes, MAX_COPY_BYTES);
    // One place for both: a copy that holds one and waits for another would wait for its like.
    const takesPlace = source.traits.isRemote || this.traits.isRemote;
    const both = <T>(request: () => Promise<T>): Promise<T> =>
      source.#descriptor.use(() => this.#descriptor.use(request, takesPlace), false);
    if (this.#copiesPages && source.#copiesPages)
      return both(() =>
        copyThroughMemory(
          { fd: source.#fd, path: source.path, position: sourcePosition },
          { fd: this.#fd, path: this.path, position },
          bytes,
          this.#copyBuffers,
        ),
      );
    const copy = (): Promise<CallResult> =>
      this.#system.copyFileRange(source.#fd, sourcePosition, this.#fd, position, bytes);
    const { value, errno } = await both(copy);
    if (value < 0) throw callError(errno, undefined, { path: this.path, offset: position });
    return value;
  }

  startWriteback(position: number, lengthBytes: number): void {
    if (this.#descriptor.isClosed || this.traits.inMemory || this.#direct) return;
    // A hint: the flush that follows reports what went wrong.
    this.#descriptor
      .use(() => this.#system.startWriteback(this.#fd, position, lengthBytes))
      .catch(() => undefined);
  }

  lockByteShared(byteOffset: number): boolean {
    this.#descriptor.check();
    return this.#system.lockByteShared(this.#fd, byteOffset);
  }

  unlockByte(byteOffset: number): void {
    this.#descriptor.check();
    this.#system.unlockByte(this.#fd, byteOffset);
  }

  isByteLockedByOther(byteOffset: number): boolean {
    this.#descriptor.check();
    return this.#system.isByteLockedByOther(this.#fd, byteOffset);
  }

  close(): Promise<void> {
    this.sending.recall();
    return this.#descriptor.close();
  }

  abandon(): void {
    this.sending.recall();
    this.#descriptor.abandon();
  }

  #writeNow(position: number, memory: IoVector, from: number, length: number): boolean {
    for (let done = 0; done < length;) {
      const wrote = this.#system.write(this.#fd, memory, from + done, length - done, position + done);
      // The promise form of the request repeats it and reports the error.
      if (wrote <= 0) return false;
      done += wrote;
    }
    return true;
  }

  /** Reads or writes all of a stretch of memory in the pool. */
  #transfer(
    what: 'read' | 'write',
    position: number,
    memory: IoVector,
    from: number,
    lengthBytes: number,
  ): Promise<void> {
    if (lengthBytes === 0) return this.#descriptor.use(async () => undefined);
    // The request is its owner's again as soon as somebody is told; the pool keeps to the memory itself.
    return this.#transferPieces(what, position, memory.pieces(from, lengthBytes), lengthBytes);
  }

  #transferPieces(
    what: 'read' | 'write',
    position: number,
    pieces: readonly Uint8Array[],
    lengthBytes: number,
  ): Promise<void> {
    return this.#descriptor.use(() =>
      transferPieces({
        fd: this.#fd,
        path: this.path,
        endsShort: this.#direct,
        what,
        position,
        pieces,
        lengthBytes,
      }),
    );
  }

  async #fallocate(mode: number, position: number, lengthBytes: number): Promise<void> {
    if (lengthBytes === 0) return;
    const quick = this.traits.inMemory && lengthBytes <= MAX_SYNC_COPY_BYTES;
    const { value, errno } = await this.#descriptor.use(async () =>
      quick
        ? this.#system.fallocateNow(this.#fd, mode, position, lengthBytes)
        : await this.#system.fallocate(this.#fd, mode, position, lengthBytes),
    );
    if (value < 0) throw callError(errno, undefined, { path: this.path, offset: position });
  }

  async #readDirect(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    this.#directMemory.check(position, lengthBytes);
    if (this.#directMemory.isAligned(memory, from, lengthBytes))
      return this.#transfer('read', position, memory, from, lengthBytes);
    const bounce = this.#directMemory.buffer(lengthBytes);
    const pieces = memory.pieces(from, lengthBytes);
    await this.#transfer('read', position, IoVector.of(bounce), 0, lengthBytes);
    let done = 0;
    for (const piece of pieces) {
      piece.set(bounce.subarray(done, done + piece.length));
      done += piece.length;
    }
  }

  async #writeDirect(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    this.#directMemory.check(position, lengthBytes);
    if (this.#directMemory.isAligned(memory, from, lengthBytes))
      return this.#transfer('write', position, memory, from, lengthBytes);
    const bounce = this.#directMemory.copyOf(memory, from, lengthBytes);
    await this.#transfer('write', position, IoVector.of(bounce), 0, lengthBytes);
  }
}
