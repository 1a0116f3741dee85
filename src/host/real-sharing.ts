import fs from 'node:fs';
import { assert, defined } from '../base/assert.js';
import { alignUp } from '../base/align.js';
import { BlockError } from '../base/error.js';
import { MAX_VIEW_BYTES } from '../base/limits.js';
import type { HostEvent, HostSharing, HostWatch, SharedMemory } from './sharing.js';
import { callError } from './call-error.js';
import type { NativeFunction } from './libc.js';
import type { Syscalls } from './syscalls.js';

/** mmap(2), memfd_create(2), fcntl(2) and eventfd(2) of x86-64 and arm64 Linux. */
const PROT_READ_WRITE = 1 | 2;
const MAP_SHARED = 1;
const MAP_NORESERVE = 0x4000;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const F_ADD_SEALS = 1033;
const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0o4000;
const Seal = { seal: 1, shrink: 2, grow: 4 } as const;
/** Count of an eventfd that is added to it: one. */
const ONE = Buffer.from('0100000000000000', 'hex');

/** What is used of Node's undeclared handle of a pipe: it polls any descriptor that epoll takes, and reads what comes. */
interface PipeHandle {
  onread: () => void;
  open(fd: number): number;
  useUserBuffer(buffer: Uint8Array): void;
  readStart(): number;
  readStop(): number;
  close(callback: () => void): void;
}
type PipeConstructor = new (type: number) => PipeHandle;

interface Calls {
  mmap: NativeFunction;
  munmap: NativeFunction;
  memfdCreate: NativeFunction;
  fcntl: NativeFunction;
  write: NativeFunction;
}

export class RealSharing implements HostSharing {
  readonly #system: Syscalls;
  /** Where the counts of those that are open go. */
  readonly #watched = new Map<PipeHandle, Buffer>();
  #calls: Calls | undefined;
  #pipe: PipeConstructor | undefined;

  constructor(system: Syscalls) {
    this.#system = system;
  }

  #lib(): Calls {
    if (this.#calls) return this.#calls;
    const libc = this.#system.koffi.load(null);
    const declare = (prototype: string): NativeFunction => libc.func(prototype);
    return (this.#calls = {
      mmap: declare(
        'int64_t mmap(uintptr_t where, size_t n, int protection, int flags, int fd, int64_t offset)',
      ),
      munmap: declare('int munmap(uintptr_t where, size_t n)'),
      memfdCreate: declare('int memfd_create(const char *name, unsigned int flags)'),
      fcntl: declare('int fcntl(int fd, int command, int argument)'),
      write: declare('int64_t write(int fd, void *buffer, size_t n)'),
    });
  }

  map(fd: number, offset: number, lengthBytes: number): SharedMemory {
    const { mmap, munmap, fcntl } = this.#lib();
    const { size, blksize } = fs.fstatSync(fd);
    if (offset + lengthBytes > size || lengthBytes === 0) {
      const text = `Memory of ${lengthBytes} bytes from ${offset} on does not lie in its file of ${size} bytes`;
      throw new BlockError('invalid', text, { errno: 'EINVAL' });
    }
    // What is no memfd, or may not be sealed, stays as it is.
    fcntl(fd, F_ADD_SEALS, Seal.shrink);
    // From the file's beginning: huge pages take no other offset. Their unit is st_blksize.
    const mappedBytes = alignUp(offset + lengthBytes, blksize);
    const address = mmap(0, mappedBytes, PROT_READ_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (address < 0) throw callError(this.#system.lastErrno(), 'Failed to map memory', {});
    return new RealMemory(this.#system, address + offset, lengthBytes, () => {
      assert(munmap(address, mappedBytes) === 0, 'memory that was mapped is unmapped');
    });
  }

  create(name: string, lengthBytes: number): number {
    const { memfdCreate, fcntl } = this.#lib();
    const fd = memfdCreate(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) throw callError(this.#system.lastErrno(), 'Failed to make memory', {});
    fs.ftruncateSync(fd, lengthBytes);
    fcntl(fd, F_ADD_SEALS, Seal.seal | Seal.shrink | Seal.grow);
    return fd;
  }

  watch(fd: number, onEvent: () => void): HostWatch {
    checkEvent(fd);
    this.#pipe ??= this.#pipeConstructor();
    const handle = new this.#pipe(0);
    const status = handle.open(fd);
    assert(status === 0, () => `an eventfd cannot be watched (${status})`);
    // The count that was reached; reading sets it back. The handle does not keep the memory alive.
    const count = Buffer.alloc(8);
    handle.useUserBuffer(count);
    handle.onread = onEvent;
    handle.readStart();
    this.#watched.set(handle, count);
    return {
      fd,
      pause: () => void handle.readStop(),
      resume: () => void handle.readStart(),
      close: () => {
        // What is closed reads no more, though libuv lets go of it in the next round only.
        handle.onread = () => undefined;
        handle.close(() => this.#watched.delete(handle));
      },
    };
  }

  /** Node gives it away with each pipe only. */
  #pipeConstructor(): PipeConstructor {
    const { Server } = process.getBuiltinModule('node:net');
    const server = new Server();
    server.on('error', () => undefined);
    server.listen({ path: `\0livedisk-${process.pid}-${Date.now()}` });
    const { _handle: handle } = server as unknown as { _handle?: { constructor: PipeConstructor } };
    server.close();
    return defined(handle, 'Node has a handle for pipes').constructor;
  }

  openEvent(fd: number): HostEvent {
    checkEvent(fd);
    const { write, fcntl } = this.#lib();
    // Its flags are everybody's who has it; QEMU's back-ends set this one, too.
    const isSet = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL, 0) | O_NONBLOCK) === 0;
    assert(isSet, 'an eventfd takes its flags');
    return {
      fd,
      // A count that cannot go up any more is seen as well, and is not waited for.
      signal: () => void write(fd, ONE, ONE.length),
      close: () => fs.closeSync(fd),
    };
  }

  close(fd: number): void {
    fs.closeSync(fd);
  }
}

class RealMemory implements SharedMemory {
  readonly lengthBytes: number;
  readonly #system: Syscalls;
  readonly #address: number;
  #unmap: (() => void) | undefined;

  constructor(system: Syscalls, address: number, lengthBytes: number, unmap: () => void) {
    this.#system = system;
    this.#address = address;
    this.lengthBytes = lengthBytes;
    this.#unmap = unmap;
  }

  view(offset: number, lengthBytes: number): Uint8Array {
    assert(this.#unmap, 'memory is used while it is mapped');
    assert(offset >= 0 && lengthBytes >= 0 && lengthBytes <= MAX_VIEW_BYTES, 'a view of mapped memory');
    assert(offset + lengthBytes <= this.lengthBytes, 'a view lies in the memory that is mapped');
    return this.#system.viewOf(this.#address + offset, lengthBytes);
  }

  unmap(): void {
    this.#unmap?.();
    this.#unmap = undefined;
  }
}

/** Other kinds of descriptors could keep whoever uses them waiting, or cannot be polled. Errors: kind invalid. */
function checkEvent(fd: number): void {
  if (fs.readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[eventfd]') return;
  throw new BlockError('invalid', 'A descriptor for events is no eventfd', { errno: 'EINVAL' });
}
