import type { Trace } from '../base/trace.js';
import type { BlockError } from '../base/error.js';
import type { RequestWatch } from '../base/io-request.js';
import type { IoVector } from '../base/io-vector.js';
import type { ComputeProgram, HostCompute } from './compute.js';
import type { HostHttp } from './http.js';
import type { HostPassing, HostPeer } from './passing.js';
import type { HostSharing } from './sharing.js';

/**
 * What livedisk needs of the machine. The engine reaches files, sockets, time and randomness only through this
 * interface: real.ts talks to Linux, simulated.ts replays a seed.
 */
export interface Host {
  readonly files: HostFiles;
  readonly net: HostNet;
  /** A simulated machine has none. */
  readonly http?: HostHttp;
  /** A simulated machine has none. */
  readonly terminals?: HostTerminals;
  /** A simulated machine has none. */
  readonly pipes?: HostPipes;
  /** The same. */
  readonly sharing?: HostSharing;
  /** The same. */
  readonly passing?: HostPassing;
  readonly clock: HostClock;
  readonly random: HostRandom;
  readonly compute: HostCompute;
  readonly trace: Trace;
  /** Of all requests to disks; the simulation has one. */
  readonly requestWatch?: RequestWatch;
  /** What is kept to be faster is compared with the slow way each time: in simulations. */
  readonly checksShortcuts?: boolean;
  /**
   * Loads what would be loaded when it is needed first, `programs` of compute threads too: of a process that goes on while
   * an update puts other files in the place of its program's. A simulated machine has no such files.
   */
  loadWhole?(programs: readonly ComputeProgram[]): Promise<void>;
}

export interface OpenFileOptions {
  /** Open for writing too. */
  write: boolean;
  /** Create the file when missing. */
  create?: boolean;
  /** With create: fail with kind 'exists' when it is there. */
  exclusive?: boolean;
  /** Cut to zero bytes. */
  truncate?: boolean;
  /** With create: a new file is for its owner alone. */
  isPrivate?: boolean;
  /** O_DIRECT: buffers, offsets and lengths must be aligned to traits.alignmentBytes. */
  direct?: boolean;
  /**
   * An open file of that path: it is what is opened, whatever lies at the path by now, if anything does. It must not be
   * closed. A set of descriptors is asked again.
   */
  again?: HostFile;
  /** Taken over from another process, opened as these options say; it is this file's from here on. */
  descriptor?: number;
}

export interface HostStat {
  sizeBytes: number;
  isBlockDevice: boolean;
  isDirectory: boolean;
  /** Opening a pipe, a socket or a character device may wait for ever. */
  isSpecial: 'no' | 'socket' | 'character device' | 'other';
  /** Alike for two paths exactly when they name the same file. */
  identity: string;
  /** Grows when the content is changed; milliseconds of the file system's clock. */
  modifiedMs: number;
  /** When it was made, where its file system remembers: an identity may be given again when a file is gone. */
  bornMs?: number;
  /** It is this process's user's, and nobody else may read or change it. */
  isPrivate: boolean;
}

export interface HostRoom {
  /** For who is not root. */
  freeBytes: number;
  /** The file, or where nothing is yet its folder, may be written to by this process. */
  isWritable: boolean;
}

/** Open descriptors that stand for files (`/dev/fdset/N`). */
export interface DescriptorSetInfo {
  readonly setId: number;
  readonly members: ReadonlyArray<{ readonly fd: number; readonly opaque: string | undefined }>;
}

/** A descriptor of a set, and the number that clients know it by. */
export interface PassedMember {
  readonly fd: number;
  readonly open: number;
  readonly opaque: string | undefined;
}

export interface DescriptorSets {
  /** Takes over a descriptor; without an id, into a set of its own. Errors: invalid. */
  add(fd: number, setId?: number, opaque?: string): { setId: number; fd: number };
  /** The same of a descriptor that the process was started with. Errors: invalid. */
  adopt(fd: number, setId: number, opaque?: string): void;
  /** One member or all; files that are open by them stay so. Errors: not-found. */
  remove(setId: number, fd?: number): void;
  /** The highest id first. */
  list(): DescriptorSetInfo[];
  /** Closes a descriptor that came and nobody wants. */
  close(fd: number): void;
  /** All sets by which no file is open. */
  removeUnused(): void;
  /** To be passed to another process, which makes them again with restore(). Only of the real machine. */
  passed?(): Array<{ setId: number; members: readonly PassedMember[] }>;
  restore?(setId: number, members: readonly PassedMember[]): void;
}

export interface HostFiles {
  readonly descriptorSets: DescriptorSets;
  /** Errors: not-found, permission, exists, invalid, with the path and "Could not open 'PATH': TEXT". */
  open(path: string, options: OpenFileOptions): Promise<HostFile>;
  /** What is at a path, links followed; undefined when nothing is. */
  stat(path: string): Promise<HostStat | undefined>;
  unlink(path: string): Promise<void>;
  /** What the file system has that a path lies on, which may not be there yet. Errors: those of stat(). */
  room(path: string): Promise<HostRoom>;
  /** A second name for a file. Errors: exists; unsupported where the file system has no such names. */
  link(path: string, newPath: string): Promise<void>;
  /** fsync of a directory, so that a file made or renamed in it survives a power loss. */
  syncDirectory(path: string): Promise<void>;
  /** `isPrivate`: for its owner alone. */
  mkdir(path: string, options?: { isPrivate?: boolean }): Promise<void>;
  /** In one step, in the place of what was at the new path; certain to survive a power loss after syncDirectory(). */
  rename(from: string, to: string): Promise<void>;
  /** The names in a folder, in no order. */
  list(path: string): Promise<string[]>;
  /**
   * Memory to read into, contents undefined. It begins at a page: into memory that is not aligned, some processors
   * let the kernel copy at a quarter of the speed.
   */
  buffer(lengthBytes: number): Buffer;
}

export interface FileTraits {
  /** On tmpfs or the like: reads never wait for a device. */
  inMemory: boolean;
  /** Another program or machine answers (FUSE, NFS): any call may take for ever. Nothing is done on the event loop. */
  isRemote: boolean;
  isBlockDevice: boolean;
  /** Required alignment of O_DIRECT I/O; 1 for buffered files. */
  alignmentBytes: number;
}

export interface HostExtent {
  isHole: boolean;
  lengthBytes: number;
}

/**
 * An open file. try* methods complete now or answer false having done nothing that matters: the caller then uses
 * the promise form of the same request. Reads beyond the end of the file give zeroes.
 */
export interface HostFile {
  readonly path: string;
  readonly writable: boolean;
  readonly traits: FileTraits;
  /** To be passed to another process. Only of the real machine. */
  readonly descriptor?: number;
  /** Past the page cache. */
  readonly isDirect?: boolean;

  /** Current size in bytes (fstat, synchronous). */
  sizeBytes(): number;
  /** st_blocks * 512; of a remote file, as it was at the last flush or when this was asked for the last time. */
  allocatedBytes(): number;

  /** Fills a stretch of memory (from `from` on) from `position` if the page cache has it all. */
  tryRead(position: number, memory: IoVector, from: number, lengthBytes: number): boolean;
  read(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void>;
  /** Writes all of a stretch of memory if that will not wait for a device (no flush running, the last one was quick). */
  tryWrite(position: number, memory: IoVector, from: number, lengthBytes: number): boolean;
  /** Looks at the memory at any time until it resolves, once. */
  write(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void>;
  /** write() of what is durable when it resolves, as after a flush of this alone. Errors: those of both. */
  writeDurable(position: number, memory: IoVector, from: number, lengthBytes: number): Promise<void>;
  /** fdatasync. Once one has failed, every later one fails too, unless the storage keeps what it could not write. */
  flush(): Promise<void>;
  /** A flush has failed, and what the kernel dropped cannot be known. */
  readonly hasLostWrites: boolean;
  /** Frees [position, position + lengthBytes): reads as zeroes afterwards. kind 'unsupported' where it cannot. */
  punchHole(position: number, lengthBytes: number): Promise<void>;
  /** Zeroes a range, kept allocated, without sending zeroes. kind 'unsupported' where it cannot. */
  zeroRange(position: number, lengthBytes: number): Promise<void>;
  truncate(sizeBytes: number): Promise<void>;
  tryTruncate(sizeBytes: number): boolean;
  /** Of an empty file: what is written to it later is overwritten in place (btrfs). Where it always is, nothing. */
  forbidCopyOnWrite(): void;
  /** Reserves blocks for a range (fallocate mode 0); kind 'unsupported' where it cannot. */
  allocate(position: number, lengthBytes: number): Promise<void>;
  tryAllocate(position: number, lengthBytes: number): boolean;
  /** The data or hole at `position` (SEEK_DATA/SEEK_HOLE) and how far it reaches, at most lengthBytes; at once unless remote. */
  extentAt(position: number, lengthBytes: number): HostExtent | Promise<HostExtent>;
  /**
   * Copies from another open file into this one, as copy_file_range does or by it; answers the bytes copied, which may
   * be fewer (0 at the source's end). kind 'unsupported' where the file systems cannot: the caller reads and writes instead.
   */
  copyFrom(source: HostFile, sourcePosition: number, position: number, lengthBytes: number): Promise<number>;
  /** The same, at once, when neither side would wait for a device; -1 when the promise form must be used. */
  tryCopyFrom(source: HostFile, sourcePosition: number, position: number, lengthBytes: number): number;
  /** Starts writeback of a range without waiting (sync_file_range WRITE); a hint. */
  startWriteback(position: number, lengthBytes: number): void;

  /** Takes a shared OFD lock on one byte. Answers false when somebody holds it exclusively. */
  lockByteShared(byteOffset: number): boolean;
  unlockByte(byteOffset: number): void;
  /** Whether another open file description holds any lock on that byte (F_OFD_GETLK for an exclusive lock). */
  isByteLockedByOther(byteOffset: number): boolean;

  close(): Promise<void>;
  /**
   * Requests in flight fail now with ECANCELED, whatever becomes of them, and so does every later one. The descriptor,
   * with its locks, and the memory of calls stay until those return.
   */
  abandon(): void;
}

export type SocketAddress =
  /** A path that begins with a zero byte is an abstract name (unix(7)). */
  | { type: 'unix'; path: string }
  | { type: 'inet'; host: string; port: number }
  /** An inherited or received descriptor of a listening or connected socket. */
  | { type: 'fd'; fd: number };

/** What one end of TLS shows and asks for. */
export interface TlsEnd {
  isServer: boolean;
  /** The other end must show a certificate that `ca` has signed. */
  verifiesPeer: boolean;
  /** PEM. */
  ca?: Buffer;
  crl?: Buffer;
  certificate?: Buffer;
  key?: Buffer;
  passphrase?: string;
  /** A server's, PEM. */
  dhParameters?: Buffer;
  /** In place of certificates: keys by the name of who has them. A client's is `userName`'s. */
  sharedKeys?: ReadonlyMap<string, Buffer>;
  userName?: string;
  /** A client's: what the server's certificate must say. */
  hostname?: string;
  /** Whether who has shown a certificate of that name comes in. */
  isAllowed?: (identity: string) => boolean | Promise<boolean>;
}

export interface HostNet {
  /**
   * Speaks TLS from here on over a socket, of which nothing more is told to who has started it. Errors: kind permission,
   * when the ends do not accept each other; the socket is closed then.
   */
  secure(socket: HostSocket, end: TlsEnd): Promise<HostSocket>;
  /** Errors: "Failed to connect to 'ADDRESS': TEXT", kind by errno; gives up after timeoutMs with kind 'timeout'. */
  connect(address: SocketAddress, options?: ConnectOptions): Promise<HostSocket>;
  /** Each accepted connection goes to `onConnection`, which must call start() on it. */
  listen(
    address: SocketAddress,
    onConnection: (socket: HostSocket) => void,
    options?: ListenOptions,
  ): Promise<HostListener>;
}

export interface HostTerminals {
  /** Errors: kind by errno. */
  open(onConnection: (socket: HostSocket) => void): HostTerminal;
}

/** Bytes in one direction. Errors: closed when the other end is gone, those of the medium. */
export interface HostPipe {
  /** What came; undefined at the end. */
  read(): Promise<Buffer | undefined>;
  /** Resolves when there is room for more. */
  write(bytes: Uint8Array): Promise<void>;
  /** All that was written is gone out, and a command has ended well. Errors: kind io when it has not. */
  finish(): Promise<void>;
  destroy(): void;
}

export interface ProgramHandler {
  /** A piece of standard output; it is only valid during the call. */
  onData(chunk: Buffer): void;
  /** The same of standard error. */
  onErrorText(chunk: Buffer): void;
  /** Called once; nothing follows. The program has ended, or closed its output, or could not be started. */
  onEnd(how: BlockError): void;
}

/** A program that is talked to. */
export interface HostProgram {
  /** To its standard input; the bytes stay unchanged until it has answered them. Nothing where it has ended. */
  write(bytes: Uint8Array): void;
  /** Its input ends, and it does soon. */
  destroy(): void;
}

export interface HostPipes {
  /** Starts a command to talk to, out of reach of this terminal's signals. */
  talk(argv: readonly string[], handler: ProgramHandler): HostProgram;
  /** Starts a command: its standard input is the pipe's end, or its standard output. */
  run(argv: readonly string[], direction: 'to' | 'from'): HostPipe;
  /** Takes over a descriptor that is no socket. */
  open(fd: number, direction: 'to' | 'from'): HostPipe;
  /** PATH.in and PATH.out, for reading and writing, or what is at the path, for both. Errors: kind by errno. */
  openNamed(path: string): HostSocket;
  /** Undefined: nothing is open by that number. */
  kindOf(fd: number): 'socket' | 'other' | undefined;
}

export interface ConnectOptions {
  timeoutMs?: number;
  /** As in ListenOptions. */
  receiveFds?: boolean;
}

export interface ListenOptions {
  /** Unix sockets: keep descriptors that peers send by SCM_RIGHTS for takeFds(). Without it they are dropped. */
  receiveFds?: boolean;
}

export interface HostListener {
  /** What was bound (an inet port 0 has become a real port). */
  readonly address: SocketAddress;
  /** Stops accepting; unlinks a unix socket's path. Connections that were accepted go on. */
  close(): Promise<void>;
}

export interface SocketHandler {
  /** The chunk is only valid during the call: copy what must be kept. */
  onData(chunk: Buffer): void;
  /** The peer closed, or the connection failed (error set). Called once; no onData follows. */
  onClose(error?: Error): void;
  /** After write() answered false: the queued bytes are gone. */
  onDrain?(): void;
}

export interface HostSocket {
  /** Begins delivery. */
  start(handler: SocketHandler): void;
  /**
   * Sends, queueing what the kernel does not take now; the bytes are taken or copied before it returns only if
   * `copied` is answered: 'sent' the buffer is free again; 'queued' it must stay unchanged until onDrain.
   */
  write(buffer: Uint8Array): 'sent' | 'queued';
  /**
   * Sends `head`, which is the caller's again at once, and then bytes of a HostFile without reading them, some of them
   * maybe later: what is written there meanwhile may be sent in their place. `left` is told once the kernel has them, or
   * they are sent no more. False: nothing is sent, and they are to be read. Absent: always.
   */
  sendFile?(
    head: Uint8Array,
    file: object,
    position: number,
    lengthBytes: number,
    left?: () => void,
  ): boolean;
  /** The peer is on this machine: bytes cost it little. Absent: false. */
  readonly isLocal?: boolean;
  /** Bytes accepted by write() and not yet handed to the kernel. */
  readonly queuedBytes: number;
  pause(): void;
  resume(): void;
  /** Sends what is queued, then closes. */
  end(): void;
  /** Drops the connection now. */
  destroy(): void;
  /**
   * The peer has hung up, or the connection is broken, though data that it sent may be unread still. Over TCP not before
   * there is room for all that it sent.
   */
  isPeerGone(): boolean;
  /**
   * Sends nothing more, not even what is queued, and lets the peer know; what comes is thrown away. Resolves when the
   * peer has hung up, too: then it reads nothing more of what was sent.
   */
  shutDown(): Promise<void>;
  /**
   * File descriptors received by SCM_RIGHTS with the data so far, oldest first; caller owns them. What is not taken is
   * closed after onClose. Only where receiveFds was asked for, of a unix socket.
   */
  takeFds?(): number[];
  /**
   * Sends a short message together with descriptors, which stay the caller's, ahead of what is queued. False: it was not
   * sent, the kernel takes nothing now or the connection is broken. Only where receiveFds was asked for.
   */
  sendFds?(buffer: Uint8Array, fds: readonly number[]): boolean;
  /** To be passed to another process; undefined where it is closed, or is no plain socket. It stays this one's. */
  descriptor?(): number | undefined;
  /** Of a unix socket. */
  peer?(): HostPeer | undefined;
}

/** A pseudo terminal; each who opens its path is a connection. */
export interface HostTerminal {
  readonly path: string;
  close(): Promise<void>;
}

export interface HostTimer {
  cancel(): void;
}

export interface HostClock {
  /** Monotonic milliseconds, fractional. */
  nowMs(): number;
  /** Wall clock for event timestamps. */
  wallClock(): { seconds: number; microseconds: number };
  setTimer(delayMs: number, callback: () => void): HostTimer;
  sleep(delayMs: number): Promise<void>;
  /** Gives way to I/O and timers (microtasks do not). */
  macrotask(): Promise<void>;
  /** Runs soon, after I/O callbacks of this turn (setImmediate). */
  defer(callback: () => void): void;
}

export interface HostRandom {
  /** An integer in [0, bound), good enough for names and choices. */
  below(bound: number): number;
  /** Bytes that nobody can guess. */
  bytes(length: number): Buffer;
}
