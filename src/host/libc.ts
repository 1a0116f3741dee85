import { BlockError } from '../base/error.js';
import { type Koffi, loadKoffi } from './koffi.js';

/** A C function; `async` runs it in libuv's pool and leaves errno as it was there while the callback runs. */
export interface NativeFunction {
  (...args: unknown[]): number;
  async(...args: unknown[]): void;
}

/** What is called of the C library; addresses and offsets are numbers. */
export interface Library {
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
  sendfile: NativeFunction;
  cachestat: NativeFunction;
  send: NativeFunction;
  statx: NativeFunction;
  fcntl: NativeFunction;
  ioctl: NativeFunction;
  recvmsg: NativeFunction;
  sendmsg: NativeFunction;
  poll: NativeFunction;
  shutdown: NativeFunction;
  setsockopt: NativeFunction;
  getsockopt: NativeFunction;
  exit: NativeFunction;
}

/** Errors: unsupported where this system has no such calls. */
export function loadLibrary(): Library {
  try {
    const koffi = loadKoffi();
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
      sendfile: declare('int64_t sendfile(int out, int in, void *offset, size_t n)'),
      // cachestat(2), which libraries lack: the first argument is its number.
      cachestat: declare(
        'long syscall(long number, unsigned int fd, void *range, void *out, unsigned int flags)',
      ),
      send: declare('int64_t send(int fd, const uint8_t *bytes, size_t n, int flags)'),
      statx: declare('int statx(int fd, const char *path, int flags, unsigned int mask, void *buffer)'),
      fcntl: declare('int fcntl(int fd, int command, ...)'),
      ioctl: declare('int ioctl(int fd, unsigned long request, void *argument)'),
      exit: declare('void _exit(int status)'),
      poll: declare('int poll(void *fds, unsigned long n, int timeout)'),
      setsockopt: declare('int setsockopt(int fd, int level, int name, uint8_t *value, unsigned int n)'),
      getsockopt: declare('int getsockopt(int fd, int level, int name, void *value, void *n)'),
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
