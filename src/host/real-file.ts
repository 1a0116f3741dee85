import fs from 'node:fs';
import { assert } from '../base/assert.js';
import { BlockError, errnoError } from '../base/error.js';
import { isAligned } from '../base/align.js';
import { Abandonable, deferred, type Deferred, type Slots } from '../base/async.js';
import { IoVector } from '../base/io-vector.js';
import { KiB, MAX_SYNC_WRITE_BYTES, MiB } from '../base/limits.js';
import { type CopyBuffers, copyThroughMemory } from './copy-through-memory.js';
import type { FileTraits, HostExtent, HostFile } from './host.js';
import { callError, nodeError } from './call-error.js';
import type { CallResult } from './native-calls.js';
import { FallocateMode, Seek, type Syscalls } from './syscalls.js';
import { afterBytes, transferPieces } from './pool-transfer.js';
import { SyncWrites, type TurnBudget } from './sync-writes.js';

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
}

/** What all files of a host share. */
export interface SharedByFiles {
  budget: TurnBudget;
  /** The places in the pool that remote files share. */
  remoteCalls: Slots;
  copyBuffers: CopyBuffers;
}

interface Sought {
  position: number;
  lengthBytes: number;
  sizeBytes: number;
  data: CallResult;
  hole: number;
}

/** A descriptor; see HostFile for what each method promises. */
export class RealFile implements HostFile {
  readonly path: string;
  readonly writable: boolean;
  readonly traits: FileTraits;
  readonly #fd: number;
  readonly #release: () => void;
  readonly #direct: boolean;
  /** O_DIRECT, or remote: then even a read that must not wait may ask for the size. */
  readonly #onlyInPool: boolean;
  readonly #system: Syscalls;
  readonly #syncWrites: SyncWrites;
  /** RWF_NOWAIT works here; found out by the first read. */
  #noWaitWorks: boolean;
  #closed = false;
  #inFlight = 0;
  readonly #requests = new Abandonable();
  #idle: Deferred<void> | undefined;
  #flushFailure: BlockError | undefined;
  #flushRunning: Promise<void> | undefined;
  #flushNext: Promise<void> | undefined;
  #lastFlushMs = 0;
  #durableWrites = 0;
  #lacksDurableWrites = false;
  readonly #remoteCalls: Slots;
  readonly #copyBuffers: CopyBuffers;
  readonly #copiesPages: boolean;
  #allocatedBytes: number;

  constructor(properties: RealFileProperties, system: Syscalls, shared: SharedByFiles) {
    this.#remoteCalls = shared.remoteCalls;
    this.#copyBuffers = shared.copyBuffers;
    this.#copiesPages = properties.copiesPages;
    this.#allocatedBytes = properties.allocatedBytes;
    this.#fd = properties.fd;
    this.#release = properties.release;
    this.path = properties.path;
    this.writable = properties.writable;
    this.traits = properties.traits;
    this.#direct = properties.direct;
    this.#onlyInPool = properties.direct || properties.traits.isRemote;
    this.#system = system;
    this.#syncWrites = new SyncWrites(shared.budget);
    this.#noWaitWorks = !properties.direct;
  }

  /** Opens the same file once more by a path that leads to it until `open` has answered, whatever became of its name. */
  openAgain(open: (path: string) => Promise<number>): Promise<number> {
    return this.#use(() => open(`/proc/self/fd/${this.#fd}`), false);
  }

  sizeBytes(): number {
    this.#checkOpen();
    const size = this.#system.lseek(this.#fd, 0, Seek.end);
    if (size < 0) throw this.#error(this.#system.lastErrno());
    return size;
  }

  allocatedBytes(): number {
    this.#checkOpen();
    if (!this.traits.isRemote) return fs.fstatSync(this.#fd).blocks * 512;
    void this.#askAgain();
    return this.#allocatedBytes;
  }

  async #askAgain(): Promise<void> {
    await this.#use(() => this.#askAllocated()).catch(() => undefined);
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
    if (this.#closed || this.#onlyInPool || length > MAX_SYNC_READ_BYTES) return false;
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
    if (this.#closed || this.#onlyInPool || !this.writable || length > MAX_SYNC_WRITE_BYTES) return false;
    if (this.traits.inMemory) return this.#writeNow(position, memory, from, length);
    const startMs = performance.now();
    if (!this.#mayChangeNow(startMs)) return false;
    const done = this.#writeNow(position, memory, from, length);
    this.#syncWrites.wrote(startMs, performance.now());
    return done;
  }

  /** Whether a change of the page cache is not likely to wait for the device. */
  #mayChangeNow(nowMs: number): boolean {
    if (this.#flushRunning || this.#durableWrites > 0 || this.#lastFlushMs > QUICK_FLUSH_MS) return false;
    return this.#syncWrites.mayWrite(nowMs);
  }

  /** A change that a failure leaves to the promise form, which reports it. */
  #tryChange(change: () => boolean): boolean {
    if (this.#closed || this.#onlyInPool || !this.writable) return false;
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
    if (this.#flushFailure) throw this.#flushFailure;
    if (this.#lacksDurableWrites || this.traits.inMemory)
      return this.#writeAndFlush(position, memory, from, lengthBytes);
    let pieces = memory.pieces(from, lengthBytes);
    if (this.#direct) {
      this.#checkDirect(position, lengthBytes);
      if (!this.#isAligned(memory, from, lengthBytes))
        pieces = [this.#alignedCopy(memory, from, lengthBytes)];
    }
    this.#durableWrites++;
    const errno = await this.#use(() => this.#writePieces(pieces, position)).finally(
      () => this.#durableWrites--,
    );
    if (errno === '') return;
    // Says the kernel, or the file system.
    if (errno === 'EOPNOTSUPP' || errno === 'ENOSYS' || errno === 'EINVAL') {
      this.#lacksDurableWrites = true;
      return this.#writeAndFlush(position, memory, from, lengthBytes);
    }
    if (this.#direct) throw this.#error(errno, position);
    // It failed to write, and does so again, or afterwards: then the page cache may have dropped anything, as with a flush.
    await this.#transferPieces('write', position, pieces, lengthBytes);
    this.#flushFailure = this.#error(errno, position);
    throw this.#flushFailure;
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
    // A flush that has not begun covers everyone who asks before it does; one under way does not.
    if (!this.#flushRunning) return this.#startFlush();
    this.#flushNext ??= this.#flushRunning
      .catch(() => undefined)
      .then(() => {
        this.#flushNext = undefined;
        return this.#startFlush();
      });
    return this.#flushNext;
  }

  get hasLostWrites(): boolean {
    return this.#flushFailure !== undefined;
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
    return this.#use(
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
    this.#checkOpen();
    if (this.traits.isRemote) return this.#use(() => this.#askExtent(position, lengthBytes));
    const sizeBytes = this.sizeBytes();
    if (position >= sizeBytes) return { isHole: true, lengthBytes };
    const value = this.#system.lseek(this.#fd, position, Seek.data);
    const data = { value, errno: value < 0 ? this.#system.lastErrno() : '' };
    const hole = value === position ? this.#system.lseek(this.#fd, position, Seek.hole) : -1;
    return this.#extentOf({ position, lengthBytes, sizeBytes, data, hole });
  }

  async #askExtent(position: number, lengthBytes: number): Promise<HostExtent> {
    const { value: sizeBytes, errno } = await this.#system.lseekInPool(this.#fd, 0, Seek.end);
    if (sizeBytes < 0) throw this.#error(errno, position);
    if (position >= sizeBytes) return { isHole: true, lengthBytes };
    const data = await this.#system.lseekInPool(this.#fd, position, Seek.data);
    const isData = data.value === position;
    const hole = isData ? (await this.#system.lseekInPool(this.#fd, position, Seek.hole)).value : -1;
    return this.#extentOf({ position, lengthBytes, sizeBytes, data, hole });
  }

  /** What SEEK_DATA and, at data, SEEK_HOLE answered. */
  #extentOf({ position, lengthBytes, sizeBytes, data, hole }: Sought): HostExtent {
    if (data.value < 0) {
      if (data.errno === 'ENXIO') return { isHole: true, lengthBytes };
      if (data.errno !== 'EINVAL') throw this.#error(data.errno, position);
      // No holes on this kind of file: all of it is data.
      return { isHole: false, lengthBytes: Math.min(lengthBytes, sizeBytes - position) };
    }
    if (data.value > position)
      return { isHole: true, lengthBytes: Math.min(lengthBytes, data.value - position) };
    // Someone punched it between the two calls, or cut the file: calling it data is always right.
    const end = hole > position ? hole : sizeBytes;
    return { isHole: false, lengthBytes: Math.min(lengthBytes, end - position) };
  }

  tryCopyFrom(source: HostFile, sourcePosition: number, position: number, lengthBytes: number): number {
    if (!(source instanceof RealFile) || this.#closed || source.#closed) return -1;
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
      source.#use(() => this.#use(request, takesPlace), false);
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
    if (this.#closed || this.traits.inMemory || this.#direct) return;
    // A hint: the flush that follows reports what went wrong.
    this.#use(() => this.#system.startWriteback(this.#fd, position, lengthBytes)).catch(() => undefined);
  }

  lockByteShared(byteOffset: number): boolean {
    this.#checkOpen();
    return this.#system.lockByteShared(this.#fd, byteOffset);
  }

  unlockByte(byteOffset: number): void {
    this.#checkOpen();
    this.#system.unlockByte(this.#fd, byteOffset);
  }

  isByteLockedByOther(byteOffset: number): boolean {
    this.#checkOpen();
    return this.#system.isByteLockedByOther(this.#fd, byteOffset);
  }

  /** Waits for requests in flight: a descriptor number given back too early would be somebody else's file. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#requests.during(this.#closeDescriptor());
  }

  abandon(): void {
    this.#requests.abandon(this.#error('ECANCELED'));
    this.close().catch(() => undefined);
  }

  async #closeDescriptor(): Promise<void> {
    if (this.#inFlight > 0) {
      this.#idle = deferred();
      await this.#idle.promise;
    }
    await new Promise<void>((resolve, reject) => {
      fs.close(this.#fd, (error) => {
        this.#release();
        if (error) reject(nodeError(error, undefined, { path: this.path }));
        else resolve();
      });
    });
  }

  #error(errno: string, offset?: number): BlockError {
    return errnoError(
      errno,
      undefined,
      offset === undefined ? { path: this.path } : { path: this.path, offset },
    );
  }

  #checkOpen(): void {
    this.#requests.check();
    if (this.#closed) throw new BlockError('closed', `File '${this.path}' is closed`, { path: this.path });
  }

  /** Counts a request in flight, so that close() waits for it. `takesPlace`: one of those that remote files share. */
  async #use<T>(request: () => Promise<T>, takesPlace = this.traits.isRemote): Promise<T> {
    this.#checkOpen();
    this.#inFlight++;
    return this.#requests.during(this.#counted(request, takesPlace));
  }

  async #counted<T>(request: () => Promise<T>, takesPlace: boolean): Promise<T> {
    try {
      return await (takesPlace ? this.#inTurn(request) : request());
    } finally {
      this.#inFlight--;
      if (this.#inFlight === 0) this.#idle?.resolve();
    }
  }

  /** Calls that do not return keep their places: those of other files have theirs. */
  async #inTurn<T>(request: () => Promise<T>): Promise<T> {
    await this.#remoteCalls.take();
    try {
      this.#requests.check();
      return await request();
    } finally {
      this.#remoteCalls.giveBack();
    }
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
    if (lengthBytes === 0) return this.#use(async () => undefined);
    // The request is its owner's again as soon as somebody is told; the pool keeps to the memory itself.
    return this.#transferPieces(what, position, memory.pieces(from, lengthBytes), lengthBytes);
  }

  #transferPieces(
    what: 'read' | 'write',
    position: number,
    pieces: readonly Uint8Array[],
    lengthBytes: number,
  ): Promise<void> {
    return this.#use(() =>
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

  #startFlush(): Promise<void> {
    if (this.#flushFailure) return Promise.reject(this.#flushFailure);
    if (this.traits.inMemory && !this.#closed) return Promise.resolve();
    const startMs = performance.now();
    const running = this.#use(
      () =>
        new Promise<void>((resolve, reject) => {
          fs.fdatasync(this.#fd, (error) => {
            this.#flushRunning = undefined;
            this.#lastFlushMs = performance.now() - startMs;
            if (!error) return resolve();
            const failure = nodeError(error, undefined, { path: this.path });
            // What the page cache could not write it may drop; past it nothing is kept that could be dropped.
            if (!this.#direct) this.#flushFailure = failure;
            reject(failure);
          });
        }),
    );
    if (!this.#closed) this.#flushRunning = running;
    return this.traits.isRemote ? running.then(() => this.#askAgain()) : running;
  }

  async #fallocate(mode: number, position: number, lengthBytes: number): Promise<void> {
    if (lengthBytes === 0) return;
    const quick = this.traits.inMemory && lengthBytes <= MAX_SYNC_COPY_BYTES;
    const { value, errno } = await this.#use(async () =>
      quick
        ? this.#system.fallocateNow(this.#fd, mode, position, lengthBytes)
        : await this.#system.fallocate(this.#fd, mode, position, lengthBytes),
    );
    if (value < 0) throw callError(errno, undefined, { path: this.path, offset: position });
  }

  /** O_DIRECT wants memory aligned as well, which only we can see to. */
  async #readDirect(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    this.#checkDirect(position, lengthBytes);
    if (this.#isAligned(memory, from, lengthBytes))
      return this.#transfer('read', position, memory, from, lengthBytes);
    const bounce = this.#system.alignedBuffer(lengthBytes, this.traits.alignmentBytes);
    const pieces = memory.pieces(from, lengthBytes);
    await this.#transfer('read', position, IoVector.of(bounce), 0, lengthBytes);
    let done = 0;
    for (const piece of pieces) {
      piece.set(bounce.subarray(done, done + piece.length));
      done += piece.length;
    }
  }

  async #writeDirect(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void> {
    this.#checkDirect(position, lengthBytes);
    if (this.#isAligned(memory, from, lengthBytes))
      return this.#transfer('write', position, memory, from, lengthBytes);
    const bounce = this.#alignedCopy(memory, from, lengthBytes);
    await this.#transfer('write', position, IoVector.of(bounce), 0, lengthBytes);
  }

  #alignedCopy(memory: IoVector, from: number, lengthBytes: number): Buffer {
    const copy = this.#system.alignedBuffer(lengthBytes, this.traits.alignmentBytes);
    memory.copyTo(copy, from, lengthBytes);
    return copy;
  }

  #checkDirect(position: number, lengthBytes: number): void {
    const unit = this.traits.alignmentBytes;
    assert(isAligned(position, unit) && isAligned(lengthBytes, unit), 'O_DIRECT request is not aligned');
  }

  /** Each piece begins and ends where O_DIRECT wants it. */
  #isAligned(memory: IoVector, from: number, lengthBytes: number): boolean {
    const unit = this.traits.alignmentBytes;
    return memory
      .pieces(from, lengthBytes)
      .every((piece) => isAligned(piece.length, unit) && this.#system.addressModulo(piece, unit) === 0);
  }
}
