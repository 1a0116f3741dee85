import { closeSync, constants as fileConstants, openSync } from 'node:fs';
import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { alignUp } from '../base/align.js';
import { assert } from '../base/assert.js';
import { BlockError, errnoError, type ErrorContext, toBlockError } from '../base/error.js';
import type { IoVector } from '../base/io-vector.js';
import { MiB } from '../base/limits.js';

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
const F_DUPFD_CLOEXEC = 1030;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const LockType = { read: 0, write: 1, none: 2 } as const;
const SYNC_FILE_RANGE_WRITE = 2;
/** statx(2): of the descriptor itself; what O_DIRECT wants of memory and of offsets; struct statx. */
const AT_EMPTY_PATH = 0x1000;
const STATX_DIOALIGN = 0x2000;
const STATX_BYTES = 256;
const STX_DIO_MEM_ALIGN = 0x98;
const STX_DIO_OFFSET_ALIGN = 0x9c;
/** recvmsg(2) flags and the control message that carries descriptors (bits/socket.h). */
const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x40000000;
const MSG_NOSIGNAL = 0x4000;
/** poll(2): the peer has shut down its sending half; asked for or not, also that the connection is over. */
const POLLRDHUP = 0x2000;
const POLLGONE = POLLRDHUP | 0x10 | 0x08;
const SHUT_WR = 1;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const SCM_RIGHTS = 1;
/** struct cmsghdr: cmsg_len (8 bytes), cmsg_level, cmsg_type (4 each). */
const CMSG_HEADER_BYTES = 16;
/** Linux passes at most SCM_MAX_FD = 253 descriptors with one message. */
const CONTROL_BYTES = CMSG_HEADER_BYTES + 253 * 4 + 4;
/** UIO_MAXIOV: most pieces of memory of one call. */
export const MOST_PIECES = 1024;
/** struct iovec. */
const IOVEC_BYTES = 16;
/** The address of memory up to this size is kept, and with it the memory. */
const MOST_KEPT_BYTES = MiB;
/** koffi copies its arguments per call and refuses too many at once; more than the pool has threads gain nothing. */
const MAX_ASYNC_CALLS = 32;

export type Koffi = typeof import('koffi');
/** A C function; `async` runs it in libuv's pool and leaves errno as it was there while the callback runs. */
export interface NativeFunction {
  (...args: unknown[]): number;
  async(...args: unknown[]): void;
}

interface Library {
  koffi: Koffi;
  pread: NativeFunction;
  pwrite: NativeFunction;
  preadv2: NativeFunction;
  pwritev: NativeFunction;
  pwritev2: NativeFunction;
  lseek: NativeFunction;
  fallocate: NativeFunction;
  copyFileRange: NativeFunction;
  syncFileRange: NativeFunction;
  statx: NativeFunction;
  fcntl: NativeFunction;
  recvmsg: NativeFunction;
  sendmsg: NativeFunction;
  poll: NativeFunction;
  shutdown: NativeFunction;
  setsockopt: NativeFunction;
  exit: NativeFunction;
}

/** Outcome of a call that may fail: the result, or -1 with the errno's name. */
export interface CallResult {
  value: number;
  errno: string;
}

/**
 * The Linux system calls that Node does not offer, through koffi. Nothing is loaded before the first call. Offsets
 * and lengths are plain numbers below 2^53. Calls that retry do so on EINTR.
 */
export class Syscalls {
  #library: Library | undefined;
  /** Of one call at a time: what is made at once. */
  readonly #iovec = new Uint32Array((MOST_PIECES * IOVEC_BYTES) / 4);
  #iovecAddress = 0;
  readonly #addresses = [new KnownAddress(), new KnownAddress()] as const;
  readonly #flock = Buffer.alloc(32);
  #running = 0;
  readonly #queue: Array<() => void> = [];

  #lib(): Library {
    return (this.#library ??= load());
  }

  get koffi(): Koffi {
    return this.#lib().koffi;
  }

  /** Any number of bytes at an address, which are there until they are unmapped. */
  viewOf(address: number, lengthBytes: number): Buffer {
    const view = Buffer.from(this.koffi.view(BigInt(address), lengthBytes));
    ADDRESSES.set(view, address);
    return view;
  }

  /** Bytes read at once from the page cache or memory, or -1 with lastErrno(). Never more than one attempt. */
  read(fd: number, memory: IoVector, from: number, lengthBytes: number, position: number): number {
    const lib = this.#lib();
    const address = this.#addressOf(memory, from, lengthBytes, 0);
    if (address > 0) return lib.pread(fd, address, lengthBytes, position);
    const count = this.#fillIovec(memory, from, lengthBytes);
    return lib.preadv2(fd, this.#iovecAddress, count, position, 0);
  }

  write(fd: number, memory: IoVector, from: number, lengthBytes: number, position: number): number {
    const lib = this.#lib();
    const address = this.#addressOf(memory, from, lengthBytes, 1);
    if (address > 0) return lib.pwrite(fd, address, lengthBytes, position);
    const count = this.#fillIovec(memory, from, lengthBytes);
    return lib.pwritev(fd, this.#iovecAddress, count, position);
  }

  /** Writes a first part of the pieces, at most MOST_PIECES, durably (RWF_DSYNC), in the pool; answers its length. */
  writeDurable(fd: number, pieces: readonly Uint8Array[], position: number): Promise<CallResult> {
    const { koffi, pwritev2 } = this.#lib();
    const few = pieces.slice(0, MOST_PIECES);
    const iovec = BigUint64Array.from(few.flatMap((piece) => [koffi.address(piece), BigInt(piece.length)]));
    return this.#inPool(pwritev2, [fd, iovec, few.length, position, RWF_DSYNC], few);
  }

  /** Like read, but answers EAGAIN, or fewer bytes, where the page cache lacks them. */
  readNoWait(fd: number, memory: IoVector, from: number, lengthBytes: number, position: number): number {
    const lib = this.#lib();
    const address = this.#addressOf(memory, from, lengthBytes, 0);
    let count = 1;
    if (address > 0) this.#setPiece(0, address, lengthBytes);
    else count = this.#fillIovec(memory, from, lengthBytes);
    return lib.preadv2(fd, this.#iovecAddress, count, position, RWF_NOWAIT);
  }

  /**
   * The address of a stretch in one piece, else 0. Numbers are exact: user addresses are below 2^47. `side`: reads and
   * writes each have a buffer of theirs again and again.
   */
  #addressOf(memory: IoVector, from: number, lengthBytes: number, side: 0 | 1): number {
    const { buffers, start } = memory;
    const buffer = buffers[0];
    if (!buffer || start + from + lengthBytes > buffer.length) return 0;
    return this.#addresses[side].of(buffer, this.#lib().koffi) + start + from;
  }

  /** Answers how many pieces there are; what is beyond MOST_PIECES is left out, so the call does less than asked. */
  #fillIovec(memory: IoVector, from: number, lengthBytes: number): number {
    let at = memory.start + from;
    let left = lengthBytes;
    let count = 0;
    for (const buffer of memory.buffers) {
      if (left === 0 || count === MOST_PIECES) return count;
      const length = Math.min(left, buffer.length - at);
      if (length > 0) {
        this.#setPiece(count++, this.#addresses[0].of(buffer, this.#lib().koffi) + at, length);
        left -= length;
      }
      at = Math.max(0, at - buffer.length);
    }
    assert(left === 0, 'a request uses memory that it has');
    return count;
  }

  /** struct iovec of a little-endian machine: address, length. */
  #setPiece(index: number, address: number, lengthBytes: number): void {
    const iovec = this.#iovec;
    if (this.#iovecAddress === 0) this.#iovecAddress = Number(this.#lib().koffi.address(iovec));
    const at = index * 4;
    const high = Math.floor(address / 2 ** 32);
    iovec[at] = address - high * 2 ** 32;
    iovec[at + 1] = high;
    iovec[at + 2] = lengthBytes;
    iovec[at + 3] = 0;
  }

  /** Ends the process now, without waiting for calls in libuv's pool as process.exit does. */
  exit(status: number): void {
    this.#lib().exit(status);
  }

  lseek(fd: number, position: number, whence: number): number {
    return this.#lib().lseek(fd, position, whence);
  }

  lseekInPool(fd: number, position: number, whence: number): Promise<CallResult> {
    return this.#inPool(this.#lib().lseek, [fd, position, whence]);
  }

  /** Errno name of the call that just failed. */
  lastErrno(): string {
    return errnoName(this.#lib().koffi.errno());
  }

  /** Memory address of a buffer's first byte, modulo `unit` (a power of two below 2^31). */
  addressModulo(buffer: Uint8Array, unit: number): number {
    return Number(this.#lib().koffi.address(buffer) % BigInt(unit));
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
    const { value } = this.#now(this.#lib().statx, fd, '', AT_EMPTY_PATH, STATX_DIOALIGN, answer);
    if (value < 0 || (answer.readUInt32LE(0) & STATX_DIOALIGN) === 0) return undefined;
    const units = [answer.readUInt32LE(STX_DIO_MEM_ALIGN), answer.readUInt32LE(STX_DIO_OFFSET_ALIGN)];
    return units.includes(0) ? undefined : Math.max(...units);
  }

  fallocateNow(fd: number, mode: number, position: number, lengthBytes: number): CallResult {
    return this.#now(this.#lib().fallocate, fd, mode, position, lengthBytes);
  }

  fallocate(fd: number, mode: number, position: number, lengthBytes: number): Promise<CallResult> {
    return this.#inPool(this.#lib().fallocate, [fd, mode, position, lengthBytes]);
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
    return this.#now(this.#lib().copyFileRange, source, a, target, b, lengthBytes, 0);
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
    return this.#inPool(this.#lib().copyFileRange, [source, a, target, b, lengthBytes, 0]);
  }

  startWriteback(fd: number, position: number, lengthBytes: number): Promise<CallResult> {
    return this.#inPool(this.#lib().syncFileRange, [fd, position, lengthBytes, SYNC_FILE_RANGE_WRITE]);
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

  #control(fd: number, command: number, argument: number): number {
    const { value, errno } = this.#now(this.#lib().fcntl, fd, command, 'int', argument);
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
    return this.#now(this.#lib().fcntl, fd, command, 'void *', this.#flock);
  }

  /** Receives into `buffer` without waiting; descriptors that came along (close-on-exec) are added to `fds`. */
  receive(fd: number, buffer: Uint8Array, fds: number[]): CallResult {
    const control = Buffer.alloc(CONTROL_BYTES);
    const { recvmsg } = this.#lib();
    const { result, controlBytes: end } = this.#message(recvmsg, fd, [buffer, control], MSG_CMSG_CLOEXEC);
    if (result.value < 0) return result;
    for (let at = 0; at + CMSG_HEADER_BYTES <= end;) {
      const length = Number(control.readBigUInt64LE(at));
      const isRights =
        control.readInt32LE(at + 8) === SOL_SOCKET && control.readInt32LE(at + 12) === SCM_RIGHTS;
      for (let fdAt = at + CMSG_HEADER_BYTES; isRights && fdAt + 4 <= at + length; fdAt += 4)
        fds.push(control.readInt32LE(fdAt));
      at += Math.max(alignUp(length, 8), CMSG_HEADER_BYTES);
    }
    return result;
  }

  /** Whether the peer of a connected socket has hung up, unread data or not. */
  isPeerGone(fd: number): boolean {
    const pollfd = Buffer.alloc(8);
    pollfd.writeInt32LE(fd, 0);
    pollfd.writeInt16LE(POLLRDHUP, 4);
    const { value } = this.#now(this.#lib().poll, pollfd, 1, 0);
    return value !== 0 && (pollfd.readInt16LE(6) & POLLGONE) !== 0;
  }

  /** A new pseudo terminal that passes bytes as they are, by its own side's descriptor, close-on-exec. Errors: by errno. */
  openTerminal(): { fd: number; path: string } {
    const { posixOpenpt, unlockpt, ptsname, tcgetattr, cfmakeraw, tcsetattr } = terminalCalls(
      this.#lib().koffi,
    );
    const { value: fd, errno } = this.#now(posixOpenpt, TERMINAL_FLAGS | O_CLOEXEC);
    if (fd < 0) throw errnoError(errno, 'Failed to create PTY');
    const name = Buffer.alloc(64);
    if (unlockpt(fd) < 0 || ptsname(fd, name, name.length) !== 0)
      throw errnoError(this.lastErrno(), 'Failed to create PTY');
    const path = name.toString('latin1', 0, name.indexOf(0));
    const other = openSync(path, TERMINAL_FLAGS);
    const termios = Buffer.alloc(TERMIOS_BYTES);
    tcgetattr(other, termios);
    cfmakeraw(termios);
    tcsetattr(other, 0, termios);
    closeSync(other);
    return { fd, path };
  }

  /** Sends without waiting, together with descriptors. */
  send(fd: number, buffer: Uint8Array, fds: readonly number[]): CallResult {
    const lengthBytes = CMSG_HEADER_BYTES + 4 * fds.length;
    const control = Buffer.alloc(alignUp(lengthBytes, 8));
    control.writeBigUInt64LE(BigInt(lengthBytes), 0);
    control.writeInt32LE(SOL_SOCKET, 8);
    control.writeInt32LE(SCM_RIGHTS, 12);
    fds.forEach((passed, i) => control.writeInt32LE(passed, CMSG_HEADER_BYTES + 4 * i));
    return this.#message(this.#lib().sendmsg, fd, [buffer, control], MSG_NOSIGNAL).result;
  }

  /** recvmsg or sendmsg of one piece, without waiting; answers how much of `control` there is, too. */
  #message(
    call: NativeFunction,
    fd: number,
    [buffer, control]: readonly [Uint8Array, Buffer],
    flags: number,
  ): { result: CallResult; controlBytes: number } {
    const { koffi } = this.#lib();
    const iovec = BigUint64Array.of(koffi.address(buffer), BigInt(buffer.length));
    // struct msghdr: name, namelen, iov, iovlen, control, controllen, flags.
    const message = new BigUint64Array(7);
    message[2] = koffi.address(iovec);
    message[3] = 1n;
    message[4] = koffi.address(control);
    message[5] = BigInt(control.length);
    const result = this.#now(call, fd, message, MSG_DONTWAIT | flags);
    return { result, controlBytes: Number(message[5]) };
  }

  /** Whether somebody has the other side of a pseudo terminal open. */
  isTerminalOpen(fd: number): boolean {
    const pollfd = Buffer.alloc(8);
    pollfd.writeInt32LE(fd, 0);
    this.#now(this.#lib().poll, pollfd, 1, 0);
    return (pollfd.readInt16LE(6) & POLLHUP) === 0;
  }

  /** Another descriptor of the same open socket or file, close-on-exec; -1 in `value` where there is none. */
  duplicate(fd: number): CallResult {
    return this.#now(this.#lib().fcntl, fd, F_DUPFD_CLOEXEC, 'int', 3);
  }

  /** The peer of a socket gets what the kernel has, and then its end. */
  shutDownSending(fd: number): CallResult {
    return this.#now(this.#lib().shutdown, fd, SHUT_WR);
  }

  /** How much the kernel takes of what is sent before a writer must wait; as far as it allows (socket(7), SO_SNDBUF). */
  setSendBuffer(fd: number, lengthBytes: number): void {
    const value = Buffer.alloc(4);
    value.writeInt32LE(lengthBytes);
    this.#lib().setsockopt(fd, SOL_SOCKET, SO_SNDBUF, value, value.length);
  }

  #now(call: NativeFunction, ...args: unknown[]): CallResult {
    for (;;) {
      const value = call(...args);
      if (value >= 0) return { value, errno: '' };
      const errno = this.lastErrno();
      if (errno !== 'EINTR') return { value, errno };
    }
  }

  /** `memory`: what the arguments have the addresses of. */
  async #inPool(call: NativeFunction, args: unknown[], memory?: unknown): Promise<CallResult> {
    if (this.#running >= MAX_ASYNC_CALLS) await new Promise<void>((resolve) => this.#queue.push(resolve));
    else this.#running++;
    try {
      for (;;) {
        const result = await this.#start(call, args, memory);
        if (result.errno !== 'EINTR') return result;
      }
    } finally {
      const next = this.#queue.shift();
      if (next) next();
      else this.#running--;
    }
  }

  #start(call: NativeFunction, args: unknown[], memory: unknown): Promise<CallResult> {
    return new Promise((resolve, reject) => {
      call.async(...args, (error: unknown, value: number) => {
        // They are held here so that buffers outlive the call.
        const cause = [args, memory];
        if (error) reject(error instanceof Error ? error : new Error('native call failed', { cause }));
        else resolve({ value, errno: value < 0 ? this.lastErrno() : '' });
      });
    });
  }
}

/** struct termios of glibc, with room to spare. */
const TERMIOS_BYTES = 128;
const O_CLOEXEC = 0o2000000;
const TERMINAL_FLAGS = fileConstants.O_RDWR | fileConstants.O_NOCTTY;
/** poll(2): nobody has the other side open. */
const POLLHUP = 0x10;

function terminalCalls(
  koffi: Koffi,
): Record<'posixOpenpt' | 'unlockpt' | 'ptsname' | 'tcgetattr' | 'cfmakeraw' | 'tcsetattr', NativeFunction> {
  const libc = koffi.load(null);
  return {
    posixOpenpt: libc.func('int posix_openpt(int flags)'),
    unlockpt: libc.func('int unlockpt(int fd)'),
    ptsname: libc.func('int ptsname_r(int fd, void *name, size_t n)'),
    tcgetattr: libc.func('int tcgetattr(int fd, void *termios)'),
    cfmakeraw: libc.func('void cfmakeraw(void *termios)'),
    tcsetattr: libc.func('int tcsetattr(int fd, int when, const void *termios)'),
  };
}

/** Of memory that is mapped for as long as its buffers are used: nothing moves it. */
const ADDRESSES = new WeakMap<Uint8Array, number>();

/** Where a buffer's memory is, kept for the next call with the same one. */
class KnownAddress {
  #buffer: Uint8Array | undefined;
  #address = 0;

  of(buffer: Uint8Array, koffi: Koffi): number {
    if (buffer === this.#buffer) return this.#address;
    const address = ADDRESSES.get(buffer) ?? Number(koffi.address(buffer));
    if (buffer.length > MOST_KEPT_BYTES) return address;
    this.#buffer = buffer;
    return (this.#address = address);
  }
}

function load(): Library {
  try {
    const koffi = createRequire(import.meta.url)('koffi') as Koffi;
    if (koffi.sizeof('long') !== 8) throw new Error('64-bit Linux is needed');
    const libc = koffi.load(null);
    const declare = (prototype: string): NativeFunction => libc.func(prototype);
    return {
      koffi,
      // Addresses are passed as numbers: to find out that of a buffer takes as long as the rest of a call.
      pread: declare('int64_t pread(int fd, uintptr_t buffer, size_t n, int64_t offset)'),
      pwrite: declare('int64_t pwrite(int fd, uintptr_t buffer, size_t n, int64_t offset)'),
      preadv2: declare('int64_t preadv2(int fd, uintptr_t iov, int n, int64_t offset, int flags)'),
      pwritev: declare('int64_t pwritev(int fd, uintptr_t iov, int n, int64_t offset)'),
      pwritev2: declare('int64_t pwritev2(int fd, void *iov, int n, int64_t offset, int flags)'),
      lseek: declare('int64_t lseek(int fd, int64_t offset, int whence)'),
      fallocate: declare('int fallocate(int fd, int mode, int64_t offset, int64_t length)'),
      copyFileRange: declare(
        'int64_t copy_file_range(int in, void *from, int out, void *to, size_t n, unsigned int flags)',
      ),
      syncFileRange: declare('int sync_file_range(int fd, int64_t offset, int64_t n, unsigned int flags)'),
      statx: declare('int statx(int fd, const char *path, int flags, unsigned int mask, void *buffer)'),
      fcntl: declare('int fcntl(int fd, int command, ...)'),
      exit: declare('void _exit(int status)'),
      poll: declare('int poll(void *fds, unsigned long n, int timeout)'),
      setsockopt: declare('int setsockopt(int fd, int level, int name, uint8_t *value, unsigned int n)'),
      shutdown: declare('int shutdown(int fd, int how)'),
      recvmsg: declare('int64_t recvmsg(int fd, void *message, int flags)'),
      sendmsg: declare('int64_t sendmsg(int fd, void *message, int flags)'),
    };
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new BlockError('unsupported', `livedisk cannot reach this system's calls (koffi): ${text}`, {
      cause: error,
    });
  }
}

/** Errno names by number on this system. */
function errnoName(number: number): string {
  for (const [name, value] of Object.entries(constants.errno)) if (value === number) return name;
  return `errno ${number}`;
}

/** The error of a call through Node, which has no name for some errnos (EDQUOT). */
export function nodeError(error: unknown, what: string | undefined, context: ErrorContext): BlockError {
  const isNameless =
    error instanceof Error &&
    'code' in error &&
    String(error.code).startsWith('Unknown system error') &&
    'errno' in error &&
    typeof error.errno === 'number';
  // A name with a zero byte in it: no file has such a one.
  if (error instanceof Error && 'code' in error && error.code === 'ERR_INVALID_ARG_VALUE')
    return errnoError('ENOENT', what, { ...context, cause: error });
  if (!isNameless) return toBlockError(error, what, context);
  return errnoError(errnoName(-Number(error.errno)), what, { ...context, cause: error });
}

/** Errnos by which a file system says that it does not have an operation. */
const NOT_SUPPORTED = new Set(['EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'ENODEV', 'ENOTTY', 'EXDEV']);

/** The error of a failed call; kind 'unsupported' where the file system lacks the operation. */
export function callError(errno: string, what: string | undefined, context: ErrorContext): BlockError {
  if (NOT_SUPPORTED.has(errno)) return errnoError('ENOTSUP', what, context);
  return errnoError(errno, what, context);
}
