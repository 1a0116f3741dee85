import { assert } from '../base/assert.js';
import { deferred } from '../base/async.js';
import { BlockError, errnoError } from '../base/error.js';
import { KiB } from '../base/limits.js';
import type { HostListener, HostNet, HostSocket, SocketAddress, SocketHandler } from './host.js';
import { SimulatedFile } from './simulated-file.js';
import type { Machine } from './simulated-machine.js';

/** What one direction of a connection takes before its writer has to queue. */
const SOCKET_BUFFER_BYTES = 64 * KiB;
const FIRST_FREE_PORT = 49_152;

/** The sockets of one boot. All ends of all connections are in this one simulation. */
export class SimulatedNet implements HostNet {
  readonly #machine: Machine;
  readonly #boot: number;
  readonly #listeners = new Map<string, { accept: (socket: HostSocket) => void }>();
  readonly #connections = new Set<Connection>();
  #nextPort = FIRST_FREE_PORT;

  constructor(machine: Machine) {
    this.#machine = machine;
    this.#boot = machine.boot;
  }

  async connect(address: SocketAddress, options: { timeoutMs?: number } = {}): Promise<HostSocket> {
    const key = keyOf(address);
    const what = `Failed to connect to '${key.replace('\0', '')}'`;
    const result = deferred<HostSocket>();
    const { queue } = this.#machine;
    const timer =
      options.timeoutMs === undefined
        ? undefined
        : queue.schedule(options.timeoutMs, () => result.reject(errnoError('ETIMEDOUT', what)));
    queue.schedule(this.#machine.latencyMs(), () => {
      const listener = this.#machine.boot === this.#boot ? this.#listeners.get(key) : undefined;
      timer?.cancel();
      if (!listener) {
        result.reject(errnoError(address.type === 'unix' ? 'ENOENT' : 'ECONNREFUSED', what));
        return;
      }
      const connection = new Connection(this.#machine, key, () => this.#connections.delete(connection));
      this.#connections.add(connection);
      listener.accept(connection.server);
      result.resolve(connection.client);
    });
    return result.promise;
  }

  async secure(): Promise<HostSocket> {
    throw new BlockError('unsupported', 'the simulation has no TLS');
  }

  async listen(address: SocketAddress, onConnection: (socket: HostSocket) => void): Promise<HostListener> {
    const port = address.type === 'inet' && address.port === 0 ? this.#nextPort++ : undefined;
    const bound = address.type === 'inet' && port !== undefined ? { ...address, port } : address;
    const key = keyOf(bound);
    if (this.#listeners.has(key)) throw errnoError('EADDRINUSE', 'Failed to bind socket');
    this.#listeners.set(key, { accept: onConnection });
    return {
      address: bound,
      close: async () => {
        this.#listeners.delete(key);
      },
    };
  }

  /** Resets every connection made to an address (all of them when left out). */
  cut(address?: SocketAddress): void {
    for (const connection of this.#matching(address)) connection.fail(errnoError('ECONNRESET'));
  }

  /** While silent, nothing of what was written arrives on the connections of an address. */
  setSilent(silent: boolean, address?: SocketAddress): void {
    for (const connection of this.#matching(address)) connection.setSilent(silent);
  }

  #matching(address: SocketAddress | undefined): Connection[] {
    const key = address === undefined ? undefined : keyOf(address);
    return [...this.#connections].filter((connection) => key === undefined || connection.key === key);
  }
}

function keyOf(address: SocketAddress): string {
  switch (address.type) {
    case 'unix':
      return address.path;
    case 'inet':
      return `${isLocal(address.host) ? 'localhost' : address.host}:${address.port}`;
    case 'fd':
      throw new BlockError('unsupported', 'the simulation has no inherited descriptors');
  }
}

function isLocal(host: string): boolean {
  return ['', '::', '::1', '0.0.0.0', '127.0.0.1', 'localhost'].includes(host);
}

class Connection {
  readonly key: string;
  readonly client: SimulatedSocket;
  readonly server: SimulatedSocket;
  readonly #forget: () => void;

  constructor(machine: Machine, key: string, forget: () => void) {
    this.key = key;
    this.#forget = forget;
    const isLocal = key.startsWith('/') || key.startsWith('\0');
    this.client = new SimulatedSocket(machine, isLocal, () => this.server, forget);
    this.server = new SimulatedSocket(machine, isLocal, () => this.client, forget);
  }

  fail(error: Error): void {
    this.#forget();
    this.client.close(error);
    this.server.close(error);
  }

  setSilent(silent: boolean): void {
    this.client.setSilent(silent);
    this.server.setSilent(silent);
  }
}

/** Of a file that is sent without being read: what it is sent with is what is there when it arrives. */
class FileStretch {
  readonly #file: SimulatedFile;
  readonly #position: number;
  readonly length: number;
  /** Of the queue: told once it is in the pipe, or is sent no more. */
  readonly left: () => void;

  constructor(file: SimulatedFile, position: number, length: number, left: () => void) {
    this.#file = file;
    this.#position = position;
    this.length = length;
    this.left = left;
  }

  subarray(from: number, to = this.length): FileStretch {
    return new FileStretch(this.#file, this.#position + from, to - from, this.left);
  }

  bytes(): Buffer {
    return this.#file.cached(this.#position, this.length);
  }
}

/**
 * One end. What is written travels as: queued here (buffers of the writer, read only when there is room), in the
 * pipe (copied, but for what is of a file; at most SOCKET_BUFFER_BYTES), and then, cut into chunks at random places, to
 * the peer's handler.
 */
class SimulatedSocket implements HostSocket {
  readonly #machine: Machine;
  readonly #boot: number;
  readonly isLocal: boolean;
  readonly #peer: () => SimulatedSocket;
  readonly #forget: () => void;
  #handler: SocketHandler | undefined;
  readonly #queued: Array<Uint8Array | FileStretch> = [];
  #queuedBytes = 0;
  #owesDrain = false;
  /** Bytes from here to the peer that its handler has not seen. */
  #pipe: Array<Buffer | FileStretch> = [];
  #pipeBytes = 0;
  #deliveryDue = false;
  #paused = true;
  #silent = false;
  #ending = false;
  #closed = false;
  /** The peer's end has come here, whether it was read or not. */
  #isPeerGone = false;
  readonly #gone: Array<() => void> = [];
  #closeError: Error | undefined;

  constructor(machine: Machine, isLocal: boolean, peer: () => SimulatedSocket, forget: () => void) {
    this.#machine = machine;
    this.isLocal = isLocal;
    this.#boot = machine.boot;
    this.#peer = peer;
    this.#forget = forget;
  }

  start(handler: SocketHandler): void {
    assert(!this.#handler, 'socket was started twice');
    this.#handler = handler;
    this.#paused = false;
    if (this.#closed) this.#later(() => handler.onClose(this.#closeError));
    else this.#peer().#schedule();
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    if (this.#closed || this.#ending || buffer.length === 0) return 'sent';
    this.#queued.push(buffer);
    this.#queuedBytes += buffer.length;
    this.#fill();
    if (this.#queuedBytes === 0) return 'sent';
    this.#owesDrain = true;
    return 'queued';
  }

  sendFile(
    head: Uint8Array,
    file: object,
    position: number,
    lengthBytes: number,
    left: () => void = () => undefined,
  ): boolean {
    if (this.#closed || this.#ending || lengthBytes === 0) return false;
    if (!(file instanceof SimulatedFile) || !file.isAtHand()) return false;
    this.#queued.push(Uint8Array.from(head), new FileStretch(file, position, lengthBytes, left));
    this.#queuedBytes += head.length + lengthBytes;
    this.#fill();
    if (this.#queuedBytes > 0) this.#owesDrain = true;
    return true;
  }

  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#peer().#schedule();
  }

  end(): void {
    if (this.#closed) return;
    this.#ending = true;
    this.#tellPeer();
    this.#schedule();
  }

  isPeerGone(): boolean {
    return this.#closed || this.#isPeerGone;
  }

  shutDown(): Promise<void> {
    if (this.#closed) return Promise.resolve();
    this.#dropQueue();
    this.#handler?.onClose(undefined);
    this.#handler = { onData: () => undefined, onClose: () => undefined };
    this.#paused = false;
    this.#peer().#schedule();
    this.end();
    return new Promise((resolve) => this.#gone.push(resolve));
  }

  #tellPeer(): void {
    const peer = this.#peer();
    this.#later(() => (peer.#isPeerGone = true));
  }

  destroy(): void {
    this.close(undefined);
    const peer = this.#peer();
    // As Linux: what the peer has sent and nobody read breaks the connection.
    const error = peer.#pipeBytes > 0 ? errnoError('ECONNRESET') : undefined;
    this.#later(() => peer.close(error));
  }

  setSilent(silent: boolean): void {
    this.#silent = silent;
    if (!silent) this.#schedule();
  }

  /** Nothing more comes or goes; the handler hears it soon. */
  close(error: Error | undefined): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#forget();
    this.#closeError = error;
    this.#dropQueue();
    this.#pipe = [];
    this.#pipeBytes = 0;
    if (this.#handler) this.#later(() => this.#handler?.onClose(error));
    for (const resolve of this.#gone.splice(0)) resolve();
  }

  #dropQueue(): void {
    const dropped = this.#queued.splice(0);
    this.#queuedBytes = 0;
    for (const item of dropped) if (item instanceof FileStretch) item.left();
  }

  /** Moves what is queued into the pipe as far as it has room. */
  #fill(): void {
    while (this.#pipeBytes < SOCKET_BUFFER_BYTES) {
      const item = this.#queued.shift();
      if (!item) break;
      const length = Math.min(item.length, SOCKET_BUFFER_BYTES - this.#pipeBytes);
      const part = item.subarray(0, length);
      this.#pipe.push(part instanceof FileStretch ? part : Buffer.from(part));
      this.#pipeBytes += length;
      this.#queuedBytes -= length;
      if (length < item.length) this.#queued.unshift(item.subarray(length));
      else if (item instanceof FileStretch) item.left();
    }
    this.#schedule();
  }

  #later(callback: () => void): void {
    this.#machine.queue.schedule(this.#machine.latencyMs(), () => {
      if (this.#machine.boot === this.#boot) callback();
    });
  }

  #schedule(): void {
    if (this.#deliveryDue || this.#closed || (this.#pipeBytes === 0 && !this.#ending)) return;
    this.#deliveryDue = true;
    this.#later(() => {
      this.#deliveryDue = false;
      this.#deliver();
    });
  }

  /** Hands the peer what is in the pipe, or the beginning of it; once empty, the end if it was ended. */
  #deliver(): void {
    const peer = this.#peer();
    if (this.#closed || this.#silent || peer.#paused || !peer.#handler) return;
    if (this.#pipeBytes > 0) {
      const pieces = this.#pipe.map((piece) => (piece instanceof FileStretch ? piece.bytes() : piece));
      const all = pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
      const length = this.#machine.shorten(all.length);
      this.#pipe = length < all.length ? [all.subarray(length)] : [];
      this.#pipeBytes = all.length - length;
      // A copy of its own, spoilt afterwards: a handler that keeps the chunk is found out.
      const chunk = Buffer.from(all.subarray(0, length));
      peer.#handler.onData(chunk);
      chunk.fill(0xdb);
      this.#fill();
      if (this.#owesDrain && this.#queuedBytes === 0 && !this.#closed) {
        this.#owesDrain = false;
        this.#handler?.onDrain?.();
      }
    } else if (this.#ending) {
      this.close(undefined);
      peer.close(undefined);
    }
  }
}
