import { errnoError } from '../base/error.js';
import type { IoVector } from '../base/io-vector.js';
import type { Koffi } from './koffi.js';
import { MAPPED_ADDRESSES, MemoryPieces, MOST_PIECES } from './memory-pieces.js';
import { type CallResult, NativeCalls } from './native-calls.js';
import { SocketCalls } from './socket-calls.js';
import { TerminalCalls } from './terminal-calls.js';

/** preadv2: fail with EAGAIN instead of waiting for a device (linux/fs.h). */
const RWF_NOWAIT = 8;
/** pwritev2: what is written is durable when the call returns. */
const RWF_DSYNC = 2;
/** fallocate(2) modes (linux/falloc.h). */
export const FallocateMode = { allocate: 0, punchHole: 0x02 | 0x01, zeroRange: 0x10 } as const;
/** lseek(2) whence. */
export const Seek = { end: 2, data: 3, hole: 4 } as const;
/** fcntl(2) commands; those of open file description locks, and struct flock's l_type. */
const F_GETFL = 3;
const F_SETFL = 4;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const LockType = { read: 0, write: 1, none: 2 } as const;
/** ioctl(2): the attributes of a file (chattr), an int; no copy-on-write, mapped by extents, within its inode (linux/fs.h). */
const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_NOCOW_FL = 0x00800000;
const FS_EXTENT_FL = 0x00080000;
const FS_INLINE_DATA_FL = 0x10000000;
const SYNC_FILE_RANGE_WRITE = 2;
/** cachestat(2) has this number on all machines but alpha. */
const SYS_CACHESTAT = 451;
const PAGE_BYTES = 4096;
/** statx(2): of the descriptor itself; what O_DIRECT wants of memory and of offsets; struct statx. */
const AT_EMPTY_PATH = 0x1000;
const STATX_DIOALIGN = 0x2000;
const STATX_BYTES = 256;
const STX_DIO_MEM_ALIGN = 0x98;
const STX_DIO_OFFSET_ALIGN = 0x9c;

/**
 * The Linux system calls on files that Node does not offer, through koffi. Nothing is loaded before the first call.
 * Offsets and lengths are plain numbers below 2^53. Calls that retry do so on EINTR.
 */
export class Syscalls {
  readonly #calls = new NativeCalls();
  readonly #memory = new MemoryPieces(() => this.koffi);
  readonly #flock = Buffer.alloc(32);
  /** loff_t; of cachestat(2) an offset and a length. */
  readonly #position = new BigInt64Array(2);
  /** struct cachestat: pages in the cache, then four more counts. */
  readonly #cached = new BigInt64Array(5);
  readonly sockets = new SocketCalls(this.#calls);
  readonly terminals = new TerminalCalls(this.#calls);

  get koffi(): Koffi {
    return this.#calls.library.koffi;
  }

  /** Any number of bytes at an address, which are there until they are unmapped. */
  viewOf(address: number, lengthBytes: number): Buffer {
    const view = Buffer.from(this.koffi.view(BigInt(address), lengthBytes));
    MAPPED_ADDRESSES.set(view, address);
    return view;
  }

  /** Bytes read at once from the page cache or memory, or -1 with lastErrno(). Never more than one attempt. */
  read(fd: number, memory: IoVector, from: number, lengthBytes: number, position: number): number {
    const lib = this.#calls.library;
    const address = this.#memory.addressOf(memory, from, lengthBytes, 0);
    if (address > 0) return lib.pread(fd, address, lengthBytes, position);
    const count = this.#memory.fill(memory, from, lengthBytes);
    return lib.preadv2(fd, this.#memory.address, count, position, 0);
  }

  write(fd: number, memory: IoVector, from: number, lengthBytes: number, position: number): number {
    const lib = this.#calls.library;
    const address = this.#memory.addressOf(memory, from, lengthBytes, 1);
    if (address > 0) return lib.pwrite(fd, address, lengthBytes, position);
    const count = this.#memory.fill(memory, from, lengthBytes);
    return lib.pwritev(fd, this.#memory.address, count, position);
  }

  /** Writes a first part of the pieces, at most MOST_PIECES, durably (RWF_DSYNC), in the pool; answers its length. */
  writeDurable(fd: number, pieces: readonly Uint8Array[], position: number): Promise<CallResult> {
    const { koffi, pwritev2 } = this.#calls.library;
    const few = pieces.slice(0, MOST_PIECES);
    const iovec = BigUint64Array.from(few.flatMap((piece) => [koffi.address(piece), BigInt(piece.length)]));
    return this.#calls.inPool(pwritev2, [fd, iovec, few.length, position, RWF_DSYNC], few);
  }

  /** Like read, but answers EAGAIN, or fewer bytes, where the page cache lacks them. */
  readNoWait(fd: number, memory: IoVector, from: number, lengthBytes: number, position: number): number {
    const lib = this.#calls.library;
    const address = this.#memory.addressOf(memory, from, lengthBytes, 0);
    let count = 1;
    if (address > 0) this.#memory.set(0, address, lengthBytes);
    else count = this.#memory.fill(memory, from, lengthBytes);
    return lib.preadv2(fd, this.#memory.address, count, position, RWF_NOWAIT);
  }

  /** Ends the process now, without waiting for calls in libuv's pool as process.exit does. */
  exit(status: number): void {
    this.#calls.library.exit(status);
  }

  lseek(fd: number, position: number, whence: number): number {
    return this.#calls.library.lseek(fd, position, whence);
  }

  lseekInPool(fd: number, position: number, whence: number): Promise<CallResult> {
    return this.#calls.inPool(this.#calls.library.lseek, [fd, position, whence]);
  }

  /** Errno name of the call that just failed. */
  lastErrno(): string {
    return this.#calls.lastErrno();
  }

  /** Memory address of a buffer's first byte, modulo `unit` (a power of two below 2^31). */
  addressModulo(buffer: Uint8Array, unit: number): number {
    return Number(this.#calls.library.koffi.address(buffer) % BigInt(unit));
  }

  /** Memory that begins at a multiple of `unit`. */
  alignedBuffer(lengthBytes: number, unit: number): Buffer {
    const memory = Buffer.allocUnsafeSlow(lengthBytes + unit);
    const shift = (unit - this.addressModulo(memory, unit)) % unit;
    return memory.subarray(shift, shift + lengthBytes);
  }

  /**
   * What O_DIRECT requests of an open file, their offsets, lengths and memory, must be multiples of; undefined where the
   * kernel (before 6.1) or the file system does not say.
   */
  directAlignment(fd: number): number | undefined {
    const answer = Buffer.alloc(STATX_BYTES);
    const { value } = this.#calls.now(
      this.#calls.library.statx,
      fd,
      '',
      AT_EMPTY_PATH,
      STATX_DIOALIGN,
      answer,
    );
    if (value < 0 || (answer.readUInt32LE(0) & STATX_DIOALIGN) === 0) return undefined;
    const units = [answer.readUInt32LE(STX_DIO_MEM_ALIGN), answer.readUInt32LE(STX_DIO_OFFSET_ALIGN)];
    return units.includes(0) ? undefined : Math.max(...units);
  }

  fallocateNow(fd: number, mode: number, position: number, lengthBytes: number): CallResult {
    return this.#calls.now(this.#calls.library.fallocate, fd, mode, position, lengthBytes);
  }

  fallocate(fd: number, mode: number, position: number, lengthBytes: number): Promise<CallResult> {
    return this.#calls.inPool(this.#calls.library.fallocate, [fd, mode, position, lengthBytes]);
  }

  copyFileRangeNow(
    source: number,
    from: number,
    target: number,
    to: number,
    lengthBytes: number,
  ): CallResult {
    const offsets = BigInt64Array.of(BigInt(from), BigInt(to));
    const [a, b] = [offsets.subarray(0, 1), offsets.subarray(1)];
    return this.#calls.now(this.#calls.library.copyFileRange, source, a, target, b, lengthBytes, 0);
  }

  async copyFileRange(
    source: number,
    from: number,
    target: number,
    to: number,
    lengthBytes: number,
  ): Promise<CallResult> {
    const offsets = BigInt64Array.of(BigInt(from), BigInt(to));
    const [a, b] = [offsets.subarray(0, 1), offsets.subarray(1)];
    return this.#calls.inPool(this.#calls.library.copyFileRange, [source, a, target, b, lengthBytes, 0]);
  }

  /** Sends bytes of a file to a socket at once, as many as it takes. */
  sendFile(socketFd: number, fd: number, position: number, lengthBytes: number): CallResult {
    this.#position[0] = BigInt(position);
    return this.#calls.now(this.#calls.library.sendfile, socketFd, fd, this.#position, lengthBytes);
  }

  /** All pages of a stretch are in the page cache, or on their way there. False where the kernel (before 6.5) does not say. */
  isCached(fd: number, position: number, lengthBytes: number): boolean {
    this.#position[0] = BigInt(position);
    this.#position[1] = BigInt(lengthBytes);
    const { cachestat } = this.#calls.library;
    const { value } = this.#calls.now(cachestat, SYS_CACHESTAT, fd, this.#position, this.#cached, 0);
    const pages =
      Math.floor((position + lengthBytes - 1) / PAGE_BYTES) - Math.floor(position / PAGE_BYTES) + 1;
    return value === 0 && this.#cached[0] === BigInt(pages);
  }

  startWriteback(fd: number, position: number, lengthBytes: number): Promise<CallResult> {
    return this.#calls.inPool(this.#calls.library.syncFileRange, [
      fd,
      position,
      lengthBytes,
      SYNC_FILE_RANGE_WRITE,
    ]);
  }

  /** Takes a shared OFD lock on one byte; false when another description holds it exclusively. */
  lockByteShared(fd: number, byteOffset: number): boolean {
    const { value, errno } = this.#lock(fd, F_OFD_SETLK, LockType.read, byteOffset);
    if (value === 0) return true;
    if (errno === 'EAGAIN' || errno === 'EACCES') return false;
    throw errnoError(errno, 'Failed to lock byte ' + String(byteOffset));
  }

  unlockByte(fd: number, byteOffset: number): void {
    const { value, errno } = this.#lock(fd, F_OFD_SETLK, LockType.none, byteOffset);
    if (value !== 0) throw errnoError(errno, 'Failed to unlock byte ' + String(byteOffset));
  }

  /** How a descriptor was opened, and O_DIRECT (open(2)). */
  fileFlags(fd: number): number {
    return this.#control(fd, F_GETFL, 0);
  }

  /** Of all duplicates. */
  setFileFlags(fd: number, flags: number): void {
    this.#control(fd, F_SETFL, flags);
  }

  /** Where the file system has no such attribute there is nothing to do. */
  forbidCopyOnWrite(fd: number): void {
    const attributes = this.#attributes(fd);
    if (attributes === undefined) return;
    // The kernel's int, in the memory of the long that the numbers above speak of.
    const memory = Buffer.alloc(8);
    memory.writeUInt32LE((attributes | FS_NOCOW_FL) >>> 0, 0);
    this.#calls.now(this.#calls.library.ioctl, fd, FS_IOC_SETFLAGS, memory);
  }

  /** Whether a file of ext2 to ext4 is mapped block by block, as all are that ext2 and ext3 made. */
  isMappedByBlocks(fd: number): boolean {
    const attributes = this.#attributes(fd);
    return attributes !== undefined && (attributes & (FS_EXTENT_FL | FS_INLINE_DATA_FL)) === 0;
  }

  /** Undefined where the file system has none. */
  #attributes(fd: number): number | undefined {
    const memory = Buffer.alloc(8);
    const { value } = this.#calls.now(this.#calls.library.ioctl, fd, FS_IOC_GETFLAGS, memory);
    return value < 0 ? undefined : memory.readUInt32LE(0);
  }

  #control(fd: number, command: number, argument: number): number {
    const { value, errno } = this.#calls.now(this.#calls.library.fcntl, fd, command, 'int', argument);
    if (value < 0) throw errnoError(errno);
    return value;
  }

  isByteLockedByOther(fd: number, byteOffset: number): boolean {
    const { value, errno } = this.#lock(fd, F_OFD_GETLK, LockType.write, byteOffset);
    if (value !== 0) throw errnoError(errno, 'Failed to get "lock" state of byte ' + String(byteOffset));
    return this.#flock.readInt16LE(0) !== LockType.none;
  }

  /** struct flock on 64-bit Linux: l_type and l_whence (16 bits each), padding, l_start, l_len, l_pid (0 for OFD). */
  #lock(fd: number, command: number, type: number, byteOffset: number): CallResult {
    this.#flock.fill(0);
    this.#flock.writeInt16LE(type, 0);
    this.#flock.writeBigInt64LE(BigInt(byteOffset), 8);
    this.#flock.writeBigInt64LE(1n, 16);
    return this.#calls.now(this.#calls.library.fcntl, fd, command, 'void *', this.#flock);
  }
}
