import fs from 'node:fs';
import type net from 'node:net';
import { dirname } from 'node:path';
import { assert } from '../base/assert.js';
import { BlockError, errnoError, toBlockError } from '../base/error.js';
import { KiB } from '../base/limits.js';
import { BusyPolling } from './busy-polling.js';
import { type DescriptorHandle, isDescriptorHandle, receiveWithDescriptors } from './descriptors.js';
import type {
  ConnectOptions,
  HostListener,
  HostNet,
  HostSocket,
  ListenOptions,
  SocketAddress,
  TlsEnd,
} from './host.js';
import { RealPassing } from './real-passing.js';
import { RealSocket } from './real-socket.js';
import type { Syscalls } from './syscalls.js';

/** One read(2) of a socket takes at most this; a unix socket holds 208 KiB by default. */
const READ_BUFFER_BYTES = 256 * KiB;
/** Alignment of the buffer: see HostFiles.buffer. */
const PAGE_BYTES = 4096;
/** sun_path of sockaddr_un, less its final zero (unix(7)). */
const MAX_UNIX_PATH_BYTES = 107;
const LISTEN_BACKLOG = 128;

/** What Node does not declare: a socket's libuv handle, and the constructor's option to take one over. */
type Handle = object;
interface HandleOwner {
  _handle?: Handle | null;
}

export class RealNet implements HostNet {
  /**
   * Shared by all sockets: libuv reads a chunk and hands it over in one go, and a handler may not keep it.
   */
  readonly #system: Syscalls;
  readonly passing = new RealPassing((socket, receiveFds) => this.#accepted(socket, receiveFds));
  #readBufferOrNone: Buffer | undefined;
  readonly #polling = new BusyPolling();

  constructor(system: Syscalls) {
    this.#system = system;
  }

  #readBuffer(): Buffer {
    return (this.#readBufferOrNone ??= this.#system.alignedBuffer(READ_BUFFER_BYTES, PAGE_BYTES));
  }

  async connect(address: SocketAddress, options: ConnectOptions = {}): Promise<HostSocket> {
    const { receiveFds = false } = options;
    checkAddress(address);
    if (address.type === 'fd') return this.#connected(address.fd, receiveFds);
    const what = `Failed to connect to '${addressText(address)}'`;
    const result = new RealSocket(this.#system);
    const onread = this.#onread(result);
    const socket =
      address.type === 'unix'
        ? nodeNet().connect({ path: address.path, onread })
        : nodeNet().connect({ host: address.host, port: address.port, noDelay: true, onread });
    try {
      await connected(socket, options.timeoutMs);
    } catch (error) {
      socket.destroy();
      throw resolutionError(error, address) ?? toBlockError(error, what);
    }
    if (receiveFds) return this.#accepted(socket, true);
    result.attach(socket);
    return result;
  }

  async secure(socket: HostSocket, end: TlsEnd): Promise<HostSocket> {
    assert(socket instanceof RealSocket, 'TLS over a socket of another host');
    // First of all it must stop reading: what comes next is TLS.
    const raw = socket.handOver();
    return (await this.loadTls()).secureSocket(socket, await raw, end);
  }

  /** It is for few. */
  loadTls(): Promise<typeof import('./tls-socket.js')> {
    return import('./tls-socket.js');
  }

  /** A descriptor of a connected socket. */
  #connected(fd: number, receiveFds: boolean): HostSocket {
    if (!receiveFds) return this.#adopt({ fd, readable: true, writable: true });
    let socket: net.Socket;
    try {
      socket = new (nodeNet().Socket)({ fd, readable: true, writable: true });
    } catch (error) {
      throw toBlockError(error, 'Failed to use the socket descriptor');
    }
    return this.#accepted(socket.pause(), true);
  }

  async listen(
    address: SocketAddress,
    onConnection: (socket: HostSocket) => void,
    options: ListenOptions = {},
  ): Promise<HostListener> {
    checkAddress(address);
    const passed = this.passing.takeListener(JSON.stringify(address));
    if (address.type === 'unix' && passed === undefined) unlinkSocket(address.path);
    const receiveFds = options.receiveFds ?? false;
    const server = nodeNet().createServer({ pauseOnConnect: true, noDelay: true }, (socket) => {
      if (this.passing.isHeld(server, socket)) return;
      onConnection(this.#accepted(socket, receiveFds));
    });
    if (passed !== undefined) this.passing.whenBegun(() => server.listen({ fd: passed }));
    else
      await new Promise<void>((resolve, reject) => {
        server.once('error', (error) => reject(bindError(error, address)));
        server.listen(listenOptions(address), resolve);
      });
    // Nothing but a failed accept comes here, such as too many open files: the listener goes on.
    server.on('error', () => undefined);
    const bound = boundAddress(server, address);
    const names = [...new Set([JSON.stringify(address), JSON.stringify(bound)])];
    this.passing.listensOn(server, { names, onConnection, receiveFds });
    return {
      address: bound,
      close: async () => {
        this.passing.forget(server);
        if (!server.listening) return;
        // What was passed libuv does not know by its path.
        if (address.type === 'unix' && passed !== undefined) unlinkSocket(address.path);
        // Accepted connections go on, so its callback may be long in coming; libuv unlinks the path now.
        server.close();
        await new Promise((resolve) => setImmediate(resolve));
      },
    };
  }

  /**
   * Gives an accepted connection the shared read buffer, which net.Server has no option for: its handle moves to a
   * new Socket. Where a future Node has no such handle, chunks come as freshly allocated buffers.
   */
  #accepted(socket: net.Socket, receiveFds: boolean): HostSocket {
    const owner = socket as unknown as HandleOwner;
    const handle = owner._handle;
    if (receiveFds && isDescriptorHandle(handle)) {
      owner._handle = null;
      return this.#withDescriptors(handle);
    }
    if (handle) {
      owner._handle = null;
      return this.#adopt({ handle });
    }
    const result = new RealSocket(this.#system);
    socket.on('data', (chunk: Buffer) => result.deliver(chunk));
    socket.pause();
    result.attach(socket);
    return result;
  }

  #withDescriptors(handle: DescriptorHandle): HostSocket {
    const fds: number[] = [];
    const result = new RealSocket(this.#system, fds);
    const onread = { buffer: Buffer.alloc(0), callback: () => true };
    const all = { handle, onread, pauseOnCreate: true } as unknown as net.SocketConstructorOpts;
    const socket = new (nodeNet().Socket)(all);
    socket.pause();
    receiveWithDescriptors(this.#system, handle, socket, this.#readBuffer(), fds, (chunk) =>
      result.deliver(chunk),
    );
    result.attach(socket);
    return result;
  }

  #adopt(options: { fd: number; readable: true; writable: true } | { handle: Handle }): HostSocket {
    const result = new RealSocket(this.#system);
    const onread = this.#onread(result);
    const all = { ...options, onread, pauseOnCreate: true } as unknown as net.SocketConstructorOpts;
    let socket: net.Socket;
    try {
      socket = new (nodeNet().Socket)(all);
    } catch (error) {
      throw toBlockError(error, 'Failed to use the socket descriptor');
    }
    socket.pause();
    if (socket.remoteAddress !== undefined) socket.setNoDelay(true);
    result.attach(socket);
    return result;
  }

  #onread(target: RealSocket): net.OnReadOpts {
    const buffer = this.#readBuffer();
    return {
      buffer,
      callback: (bytes) => {
        target.deliver(buffer.subarray(0, bytes));
        this.#polling.came();
        return true;
      },
    };
  }
}

/** Loaded when it is first needed: that takes longer than many a command. */
const nodeNet = (): typeof net => process.getBuiltinModule('node:net');

function connected(socket: net.Socket, timeoutMs: number | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer =
      timeoutMs === undefined
        ? undefined
        : setTimeout(() => {
            reject(errnoError('ETIMEDOUT'));
          }, timeoutMs);
    socket.once('connect', () => {
      clearTimeout(timer);
      socket.pause();
      resolve();
    });
    // Stays: an error after the timeout must not be thrown by the emitter.
    socket.on('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
  });
}

function listenOptions(address: SocketAddress): net.ListenOptions & { fd?: number } {
  switch (address.type) {
    case 'unix':
      return { path: address.path, backlog: LISTEN_BACKLOG };
    case 'inet':
      // The empty host is every address of both families.
      return { host: address.host === '' ? '::' : address.host, port: address.port, backlog: LISTEN_BACKLOG };
    case 'fd':
      return { fd: address.fd };
  }
}

function boundAddress(server: net.Server, asked: SocketAddress): SocketAddress {
  const bound = server.address();
  if (asked.type === 'inet' && bound !== null && typeof bound !== 'string')
    return { ...asked, port: bound.port };
  return asked;
}

/** A socket left behind by a process that is gone; any other kind of file stays and makes bind fail. */
function unlinkSocket(path: string): void {
  if (path.startsWith('\0')) return;
  const stat = fs.lstatSync(path, { throwIfNoEntry: false });
  if (stat?.isSocket()) fs.unlinkSync(path);
}

function bindError(error: Error, address: SocketAddress): BlockError {
  if (address.type === 'unix') {
    const what = `Failed to bind socket to ${addressText(address)}`;
    // Node tells a missing folder as EACCES.
    if (!address.path.startsWith('\0') && !fs.existsSync(dirname(address.path)))
      return errnoError('ENOENT', what, { cause: error });
    return toBlockError(error, what);
  }
  return resolutionError(error, address) ?? toBlockError(error, 'Failed to bind socket');
}

/** getaddrinfo(3) failed: not an errno. */
function resolutionError(error: unknown, address: SocketAddress): BlockError | undefined {
  if (!(error instanceof Error) || !('syscall' in error) || error.syscall !== 'getaddrinfo') return undefined;
  const text =
    'code' in error && error.code === 'EAI_AGAIN'
      ? 'Temporary failure in name resolution'
      : 'Name or service not known';
  const what = `address resolution failed for ${addressText(address)}`;
  return new BlockError('not-found', `${what}: ${text}`, { cause: error });
}

function checkAddress(address: SocketAddress): void {
  if (address.type === 'fd') checkIsSocket(address.fd);
  if (address.type !== 'unix') return;
  if (address.path === '') throw new BlockError('invalid', 'UNIX socket path is empty');
  if (Buffer.byteLength(address.path) <= MAX_UNIX_PATH_BYTES) return;
  throw new BlockError('invalid', `UNIX socket path '${address.path}' is too long`, {
    path: address.path,
    hint: `Path must be less than ${MAX_UNIX_PATH_BYTES + 1} bytes`,
  });
}

/** Of a descriptor that a user names by its number. */
function checkIsSocket(fd: number): void {
  let isSocket = false;
  try {
    isSocket = fs.fstatSync(fd).isSocket();
  } catch {
    // There is none of that number.
  }
  if (!isSocket) throw new BlockError('invalid', `File descriptor '${fd}' is not a socket`);
}

export function addressText(address: SocketAddress): string {
  switch (address.type) {
    case 'unix':
      return address.path.replace(/^\0/, '');
    case 'inet':
      return `${address.host}:${address.port}`;
    case 'fd':
      return `fd:${address.fd}`;
  }
}
