import fs from 'node:fs';
import type net from 'node:net';
import { assert } from '../base/assert.js';
import { toBlockError } from '../base/error.js';
import { KiB } from '../base/limits.js';
import type { HostSocket, SocketHandler } from './host.js';
import type { HostPeer } from './passing.js';
import { RealFile } from './real-file.js';
import { SocketQueue } from './socket-queue.js';
import type { Syscalls } from './syscalls.js';

/** The kernel takes twice that, its own costs included, and no more than its administrator lets it. */
const SEND_BUFFER_BYTES = 256 * KiB;

/** Of a socket's undeclared handle; where a future Node has none, its peers are gone when Node says so. */
export function descriptorOf(socket: object): number | undefined {
  const handle: unknown = '_handle' in socket ? socket._handle : undefined;
  if (typeof handle !== 'object' || handle === null || !('fd' in handle)) return undefined;
  return typeof handle.fd === 'number' && handle.fd >= 0 ? handle.fd : undefined;
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // It has ended.
  }
}

/** Whether none of its threads runs. */
function isAtRest(pid: number): boolean {
  let threads: string[];
  try {
    threads = fs.readdirSync(`/proc/${pid}/task`);
  } catch {
    return true;
  }
  try {
    return threads.every((thread) => {
      const text = fs.readFileSync(`/proc/${pid}/task/${thread}/stat`, 'latin1');
      return 'TtZX'.includes(text.charAt(text.lastIndexOf(')') + 2));
    });
  } catch {
    // A thread has ended meanwhile.
    return false;
  }
}

/** Throws away what comes until the peer hangs up, or for so long; then the descriptor is closed. */
function untilPeerGone(fd: number, mostMs: number | undefined): Promise<void> {
  const { Socket } = process.getBuiltinModule('node:net');
  return new Promise((resolve) => {
    const socket = new Socket({ fd, readable: true, writable: false });
    const timer = mostMs === undefined ? undefined : setTimeout(() => socket.destroy(), mostMs);
    socket.on('error', () => undefined);
    socket.on('close', () => {
      clearTimeout(timer);
      resolve();
    });
    socket.resume();
    // What it waits for may never come, and keeps no program from ending.
    socket.unref();
  });
}

/** A connected stream socket whose chunks arrive through deliver(), see RealNet. */
export class RealSocket implements HostSocket {
  readonly #system: Syscalls;
  #socket!: net.Socket;
  #handler: SocketHandler | undefined;
  #error: Error | undefined;
  #closed = false;
  #closeTold = false;
  #ended = false;
  #queue!: SocketQueue;
  #isWide = false;
  #isHandedOver = false;

  readonly takeFds?: () => number[];
  readonly sendFds?: (buffer: Uint8Array, fds: readonly number[]) => boolean;

  /** `fds`: where received descriptors are put; undefined when they are dropped. */
  constructor(system: Syscalls, fds?: number[]) {
    this.#system = system;
    if (!fds) return;
    this.takeFds = () => fds.splice(0);
    this.sendFds = (buffer, passed) => {
      const fd = this.#fd();
      return fd !== undefined && system.sockets.send(fd, buffer, passed).value === buffer.length;
    };
  }

  /** The socket is paused: it delivers nothing before start(). */
  attach(socket: net.Socket): void {
    this.#socket = socket;
    this.#queue = new SocketQueue(
      socket,
      this.#system.sockets,
      () => this.#fd(),
      () => {
        if (!this.#closeTold) this.#handler?.onDrain?.();
      },
    );
    socket.on('error', (error) => (this.#error ??= toBlockError(error)));
    socket.on('close', () => {
      this.#closed = true;
      this.#tellClose();
      // What nobody has taken nobody will.
      for (const fd of this.takeFds?.() ?? []) fs.closeSync(fd);
    });
  }

  /** A chunk of the shared read buffer. */
  deliver(chunk: Buffer): void {
    // Read before the pause took effect: whoever has the socket now finds it there.
    if (this.#isHandedOver) this.#socket.push(Buffer.from(chunk));
    else if (!this.#closeTold) this.#handler?.onData(chunk);
  }

  start(handler: SocketHandler): void {
    assert(!this.#handler, 'socket was started twice');
    this.#handler = handler;
    if (this.#closed) setImmediate(() => this.#tellClose());
    else this.#socket.resume();
  }

  /**
   * Leaves the connection to who speaks TLS over it, once all that was written is sent; nothing more is told of it here.
   * destroy(), shutDown() and isPeerGone() go on.
   */
  async handOver(): Promise<net.Socket> {
    this.#closeTold = true;
    this.#isHandedOver = true;
    const socket = this.#socket;
    socket.pause();
    if (socket.writableLength > 0) await new Promise<void>((sent) => socket.write('', () => sent()));
    return socket;
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    // What a dead peer does not get is not an error of the writer: onClose tells it.
    if (this.#ended || this.#queue.write(buffer) === 'sent') return 'sent';
    this.#widen();
    return 'queued';
  }

  get isLocal(): boolean {
    return this.#socket.remoteAddress === undefined;
  }

  sendFile(
    head: Uint8Array,
    file: object,
    position: number,
    lengthBytes: number,
    left?: () => void,
  ): boolean {
    if (this.#ended || this.#fd() === undefined) return false;
    if (!(file instanceof RealFile) || !file.sending.isAtHand(position, lengthBytes)) return false;
    this.#widen();
    this.#queue.sendFile(head, file.sending, position, lengthBytes, left);
    return true;
  }

  /**
   * A unix socket takes 208 KiB by default, which a peer has read before we have heard that there is room. TCP sees to
   * itself.
   */
  #widen(): void {
    if (this.#isWide) return;
    this.#isWide = true;
    const fd = this.isLocal ? this.#fd() : undefined;
    if (fd !== undefined) this.#system.sockets.setSendBuffer(fd, SEND_BUFFER_BYTES);
  }

  get queuedBytes(): number {
    return this.#queue.queuedBytes;
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#queue.whenInStream(() => this.#socket.end(() => this.#socket.destroy()));
  }

  destroy(): void {
    this.#ended = true;
    this.#socket.destroy();
  }

  isPeerGone(): boolean {
    if (this.#closed || this.#socket.destroyed) return true;
    const fd = this.#fd();
    return fd !== undefined && this.#system.sockets.isPeerGone(fd);
  }

  /** Node would send its queue first, and stop reading at the first error; so the connection lives on in a descriptor of ours. */
  shutDown(mostMs?: number): Promise<void> {
    const fd = this.#fd();
    const copy = fd === undefined ? -1 : this.#system.sockets.duplicate(fd).value;
    this.destroy();
    if (copy < 0) return Promise.resolve();
    this.#system.sockets.shutDownSending(copy);
    return untilPeerGone(copy, mostMs);
  }

  descriptor(): number | undefined {
    return this.#isHandedOver ? undefined : this.#fd();
  }

  peer(): HostPeer | undefined {
    const fd = this.#fd();
    const found = fd === undefined ? undefined : this.#system.sockets.peer(fd);
    if (!found) return undefined;
    const { pid, uid } = found;
    return {
      ...{ pid, isSameUser: uid === process.geteuid?.() },
      kill: () => signal(pid, 'SIGKILL'),
      terminate: () => signal(pid, 'SIGTERM'),
      stop: () => signal(pid, 'SIGSTOP'),
      get isStopped() {
        return isAtRest(pid);
      },
      goOn: () => signal(pid, 'SIGCONT'),
    };
  }

  #fd(): number | undefined {
    return this.#socket.destroyed ? undefined : descriptorOf(this.#socket);
  }

  #tellClose(): void {
    if (this.#closeTold || !this.#handler) return;
    this.#closeTold = true;
    this.#handler.onClose(this.#error);
  }
}
